package peer_test

import (
	"net/http"
	"testing"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/peertest"
)

// A seed that sent everything to hosts who never give it to anybody refuses it to others, but not to those who say that they are alone.
func TestHostGetsFromASeedWhatTheFirstReceiverNeverGives(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		seed := s.Host(peertest.Seed, peertest.Wrap(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Range") != "" && r.Header.Get("Shoal-Alone") == "" {
					w.Header().Set("Shoal-Busy", "piece")
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				next.ServeHTTP(w, r)
			})
		}))
		if err := readRange(t.Context(), seed, b, 0, data); err != nil {
			t.Fatal(err)
		}
		h := s.Host()
		if err := readRange(t.Context(), h, b, int64(len(data)/2), data[len(data)/2:][:1000]); err != nil {
			t.Errorf("a range: %v", err)
		}
		if err := readRange(t.Context(), h, b, 0, data); err != nil {
			t.Errorf("all: %v", err)
		}
		if got := s.Origin.Copies(b); got != 1 {
			t.Errorf("%.2f copies left the origin", got)
		}
	})
}
