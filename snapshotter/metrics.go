package snapshotter

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	layers    *prometheus.CounterVec
	fallbacks prometheus.Counter
	mounts    prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		layers: f.NewCounterVec(prometheus.CounterOpts{Name: "shoal_snapshotter_layers_total",
			Help: "Layers of images by what was done: placed (left as it is, the image is mounted), overlay (unpacked by containerd), late (placed, and unpacked when something needed it)."},
			[]string{"how"}),
		fallbacks: f.NewCounter(prometheus.CounterOpts{Name: "shoal_snapshotter_fallbacks_total",
			Help: "Layers that were unpacked although their image has a Nydus variant, because its bootstrap could not be read or was refused."}),
		mounts: f.NewGauge(prometheus.GaugeOpts{Name: "shoal_snapshotter_mounts", Help: "Images that are mounted."}),
	}
	for _, how := range []string{"placed", "overlay", "late"} {
		m.layers.WithLabelValues(how)
	}
	return m
}
