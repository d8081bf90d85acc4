package peer

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	fromCache, fromPeer        prometheus.Counter
	fromSource, fromLocal      prometheus.Counter
	corruptPeer, corruptSource prometheus.Counter
	selfReads, sessionsLost    prometheus.Counter
	tasks                      prometheus.Gauge
	requestFailures            *prometheus.CounterVec
	askedAgain                 *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	read := f.NewCounterVec(prometheus.CounterOpts{Name: "shoal_peer_read_bytes_total",
		Help: "Bytes that became available to readers: fetched from other peers (peer) or from the origin (source), or put together out of other blobs held here (local), each once, or read again out of what was held before the blob was opened (cache)."},
		[]string{"origin"})
	corrupt := f.NewCounterVec(prometheus.CounterOpts{Name: "shoal_peer_verify_failures_total",
		Help: "Pieces that arrived with the wrong digest and were discarded, by where they came from."}, []string{"origin"})
	return &metrics{
		fromCache: read.WithLabelValues("cache"), fromPeer: read.WithLabelValues("peer"), fromSource: read.WithLabelValues("source"),
		fromLocal:   read.WithLabelValues("local"),
		corruptPeer: corrupt.WithLabelValues("peer"), corruptSource: corrupt.WithLabelValues("source"),
		selfReads: f.NewCounter(prometheus.CounterOpts{Name: "shoal_peer_unleased_reads_total",
			Help: "Reads of the origin without a lease, because no scheduler and no seed could be reached or nothing moved."}),
		sessionsLost: f.NewCounter(prometheus.CounterOpts{Name: "shoal_peer_scheduler_failures_total",
			Help: "Sessions with a scheduler that broke or could not be opened."}),
		tasks: f.NewGauge(prometheus.GaugeOpts{Name: "shoal_peer_tasks", Help: "Live tasks."}),
		requestFailures: f.NewCounterVec(prometheus.CounterOpts{Name: "shoal_peer_request_failures_total",
			Help: "Requests to parents that failed, by class."}, []string{"class"}),
		askedAgain: f.NewCounterVec(prometheus.CounterOpts{Name: "shoal_peer_origin_asked_again_total",
			Help: "Ranges asked of an origin once more, by reason: no answer within a second (late), or a failure in passing (failed). Each may cost what the origin had sent ahead."},
			[]string{"reason"}),
	}
}
