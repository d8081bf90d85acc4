package store

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	written     prometheus.Counter
	copied      prometheus.Counter
	verified    prometheus.Counter
	verifyFails prometheus.Counter
	evictions   prometheus.Counter
	noSpace     prometheus.Counter
	discarded   prometheus.Counter
}

// newMetrics registers the metrics of s with r; nil means nowhere.
func newMetrics(r prometheus.Registerer, s *Store) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		if r != nil {
			r.MustRegister(c)
		}
		return c
	}
	gauge := func(name, help string, f func() float64) {
		if r != nil {
			r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
		}
	}
	gauge("shoal_store_blobs", "Blobs in the store, complete or not.", func() float64 { return float64(s.Usage().Blobs) })
	gauge("shoal_store_held_bytes", "Bytes of the pieces held.", func() float64 { return float64(s.Usage().Held) })
	gauge("shoal_store_reserved_bytes", "Sizes of all blobs in the store, held or not.",
		func() float64 { return float64(s.Usage().Reserved) })
	gauge("shoal_store_beside_bytes", "Bytes of files beside the blobs, such as expanded ones, that count against the limits.",
		func() float64 { return float64(s.Usage().Beside) })
	return &metrics{
		written:     counter("shoal_store_written_bytes_total", "Bytes of verified pieces written to disk."),
		copied:      counter("shoal_store_copied_bytes_total", "Bytes of pieces put together out of other blobs."),
		verified:    counter("shoal_store_verified_bytes_total", "Bytes read back from disk and hashed."),
		verifyFails: counter("shoal_store_verify_failures_total", "Pieces on disk that no longer had their digest and were dropped."),
		evictions:   counter("shoal_store_evictions_total", "Blobs removed to make room for others."),
		noSpace:     counter("shoal_store_no_space_total", "Blobs and pieces refused for lack of room."),
		discarded:   counter("shoal_store_discarded_blobs_total", "Blobs removed at start because their files could not be read."),
	}
}
