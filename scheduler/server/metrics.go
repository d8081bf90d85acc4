package server

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/shoal-project/shoal/scheduler"
)

type metrics struct {
	events, commands prometheus.Counter
	hosts, seeds     prometheus.Gauge
	tasks, leased    prometheus.Gauge
	step             prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: "shoal_scheduler_" + name, Help: help})
	}
	return &metrics{
		events: f.NewCounter(prometheus.CounterOpts{Name: "shoal_scheduler_events_total",
			Help: "Events received from hosts."}),
		commands: f.NewCounter(prometheus.CounterOpts{Name: "shoal_scheduler_commands_total",
			Help: "Commands sent to hosts."}),
		hosts:  gauge("hosts", "Hosts with a live session."),
		seeds:  gauge("seeds", "Seeds with a live session."),
		tasks:  gauge("tasks", "Tasks with at least one member."),
		leased: gauge("leased_pieces", "Pieces that are being read from the origin."),
		step: f.NewHistogram(prometheus.HistogramOpts{Name: "shoal_scheduler_step_seconds",
			Help: "Time the state machine takes over one event.", Buckets: prometheus.ExponentialBuckets(1e-6, 2, 20)}),
	}
}

func (m *metrics) observe(s scheduler.Snapshot) {
	seeds, leased := 0, 0
	for _, h := range s.Hosts {
		if h.Seed {
			seeds++
		}
	}
	for _, t := range s.Tasks {
		leased += t.Leased
	}
	m.hosts.Set(float64(len(s.Hosts)))
	m.seeds.Set(float64(seeds))
	m.tasks.Set(float64(len(s.Tasks)))
	m.leased.Set(float64(leased))
}
