package source

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/peer/piece"
)

type metrics struct {
	fetched  prometheus.Counter
	stalls   prometheus.Counter
	requests *prometheus.CounterVec
}

// newMetrics registers the metrics with r; nil means nowhere.
func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		fetched: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_source_fetched_bytes_total", Help: "Bytes of blobs received from origins, before verification."}),
		stalls: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_source_stalls_total", Help: "Requests given up because the origin sent nothing for too long."}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_source_requests_total", Help: "Ranges asked of origins, by how the answer began."}, []string{"result"}),
	}
	if r != nil {
		r.MustRegister(m.fetched, m.stalls, m.requests)
	}
	return m
}

// request counts one answer by its class.
func (m *metrics) request(err error) {
	result := "error"
	switch {
	case err == nil:
		result = "ok"
	case errors.Is(err, piece.ErrAbsent):
		result = "absent"
	case errors.Is(err, piece.ErrDenied):
		result = "denied"
	case errors.Is(err, piece.ErrTransient):
		result = "transient"
	}
	m.requests.WithLabelValues(result).Inc()
}
