package lazy

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	waited prometheus.Histogram
	failed prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	m := &metrics{
		waited: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "shoal_lazy_read_wait_seconds",
			Help:    "How long the kernel's reads of lazy mounts waited for their bytes.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10)}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{Name: "shoal_lazy_read_failures_total",
			Help: "Reads of lazy mounts that failed because nobody had the bytes."}),
	}
	reg.MustRegister(m.waited, m.failed)
	return m
}
