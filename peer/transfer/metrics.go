package transfer

import "github.com/prometheus/client_golang/prometheus"

type serverMetrics struct {
	requests  prometheus.Counter
	uploaded  prometheus.Counter
	frames    prometheus.Counter
	busy      *prometheus.CounterVec
	suspected prometheus.Counter
	watchers  prometheus.Gauge
}

// newServerMetrics registers the metrics of the serving end with r; nil means nowhere.
func newServerMetrics(r prometheus.Registerer) *serverMetrics {
	m := &serverMetrics{
		requests: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_transfer_requests_total", Help: "Ranges of blobs that other peers asked for, those refused included."}),
		frames: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_transfer_have_writes_total", Help: "Times that other peers were told what this one holds."}),
		uploaded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_transfer_uploaded_bytes_total", Help: "Bytes of blobs sent to other peers."}),
		busy: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shoal_transfer_busy_total",
			Help: "Requests refused because all upload slots were taken (host) or another peer was getting the piece (piece)."},
			[]string{"cause"}),
		suspected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_transfer_suspected_pieces_total", Help: "Pieces other peers found bad and asked this one to verify."}),
		watchers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_transfer_watchers", Help: "Open streams that tell other peers what this one holds."}),
	}
	if r != nil {
		r.MustRegister(m.requests, m.uploaded, m.frames, m.busy, m.suspected, m.watchers)
	}
	return m
}

type clientMetrics struct {
	received prometheus.Counter
	stalls   prometheus.Counter
}

// newClientMetrics registers the metrics of the asking end with r; nil means nowhere.
func newClientMetrics(r prometheus.Registerer) *clientMetrics {
	m := &clientMetrics{
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_transfer_received_bytes_total", Help: "Bytes of blobs received from other peers, before verification."}),
		stalls: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_transfer_stalls_total", Help: "Requests given up because the parent sent nothing for the stall time."}),
	}
	if r != nil {
		r.MustRegister(m.received, m.stalls)
	}
	return m
}
