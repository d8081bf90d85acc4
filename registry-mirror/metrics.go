package mirror

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	manifests, sent            prometheus.Counter
	refusals, fallbacks, stale *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		manifests: f.NewCounter(prometheus.CounterOpts{Name: "shoal_mirror_manifests_total", Help: "Manifests answered."}),
		sent: f.NewCounter(prometheus.CounterOpts{Name: "shoal_mirror_sent_bytes_total",
			Help: "Bytes of blobs sent to callers."}),
		refusals: f.NewCounterVec(prometheus.CounterOpts{Name: "shoal_mirror_refusals_total",
			Help: "Requests answered with an error, by its code in the distribution specification."}, []string{"code"}),
		fallbacks: f.NewCounterVec(prometheus.CounterOpts{Name: "shoal_mirror_fallbacks_total",
			Help: "Blobs for which the caller was sent to the origin: before the first byte, in mid-stream (cut), or because that had happened before (refused)."},
			[]string{"reason"}),
		stale: f.NewCounterVec(prometheus.CounterOpts{Name: "shoal_mirror_stale_total",
			Help: "Answers out of old knowledge while the origin was down: own manifests, a seed's, or an old verdict on credentials."},
			[]string{"source"}),
	}
}
