package snapshotter

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	layers    *prometheus.CounterVec
	fallbacks *prometheus.CounterVec
	mounts    prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		layers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shoal_snapshotter_layers_total",
			Help: "Layers containerd brought, by what was done: placed (left unpacked, the image is mounted), overlay (unpacked by containerd), late (placed before and unpacked when something needed it)."}, []string{"how"}),
		fallbacks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shoal_snapshotter_fallbacks_total",
			Help: "Layers of images with a Nydus variant that were unpacked all the same, by cause: bootstrap (it could not be read or was refused), mount (the kernel cannot)."}, []string{"cause"}),
		mounts: prometheus.NewGauge(prometheus.GaugeOpts{Name: "shoal_snapshotter_mounts", Help: "Images that are mounted."}),
	}
	for _, how := range []string{"placed", "overlay", "late"} {
		m.layers.WithLabelValues(how)
	}
	for _, cause := range []string{"bootstrap", "mount"} {
		m.fallbacks.WithLabelValues(cause)
	}
	if r != nil {
		r.MustRegister(m.layers, m.fallbacks, m.mounts)
	}
	return m
}
