package peer_test

import (
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/peertest"
)

// meter counts the bytes a handler answers requests for pieces with, and how often it is to refuse them before.
type meter struct {
	sent   atomic.Int64
	refuse atomic.Int64
}

func (m *meter) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") == "" {
			h.ServeHTTP(w, r)
			return
		}
		if m.refuse.Add(-1) >= 0 {
			panic(http.ErrAbortHandler)
		}
		h.ServeHTTP(&metered{w, m}, r)
	})
}

type metered struct {
	http.ResponseWriter
	m *meter
}

func (w *metered) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.m.sent.Add(int64(n))
	return n, err
}

func (w *metered) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func TestOneCopyCrossesTheBorderOfAZone(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		var m meter
		s.Host(peertest.Seed, peertest.Zone("a"), peertest.Wrap(m.wrap))
		b1, b2, b3 := s.Host(peertest.Zone("b")), s.Host(peertest.Zone("b")), s.Host(peertest.Zone("b"))
		readAll(t, b, data, b1, b2, b3)
		if got := s.Origin.Copies(b); got != 1 {
			t.Errorf("%.2f copies left the origin, want 1", got)
		}
		layer := int64(0) // with the chunk map, which crosses too
		if b.Origin.Map != nil {
			layer = b.Origin.Map.Size
		}
		if got, want := m.sent.Load(), b.Size+layer; got != want {
			t.Errorf("%d bytes crossed the border, want %d", got, want)
		}
	})
}

func TestCrossingThatBreaksIsTriedAgain(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(2*mib, 1)
	b = s.Origin.WithMap(t, b, data)
	var m meter
	m.refuse.Store(2)
	s.Host(peertest.Seed, peertest.Zone("a"), peertest.Wrap(m.wrap))
	readAll(t, b, data, s.Host(peertest.Zone("b")), s.Host(peertest.Zone("b")))
	if got := s.Origin.Copies(b); got != 1 {
		t.Errorf("%.2f copies left the origin, want 1", got)
	}
}

func TestHolderInAnotherZoneIsAskedBeforeTheOrigin(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(2*mib, 1)
	b = s.Origin.WithMap(t, b, data)
	readAll(t, b, data, s.Host(peertest.Zone("a")))
	readAll(t, b, data, s.Host(peertest.Zone("b")))
	if got := s.Origin.Copies(b); got != 1 {
		t.Errorf("%.2f copies left the origin, want 1", got)
	}
}

func TestGroupsShareNothing(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(2*mib, 1)
	b = s.Origin.WithMap(t, b, data)
	s.Host(peertest.Seed)
	all := []*peertest.Host{s.Host(), s.Host(peertest.Group("x")), s.Host(peertest.Group("x")), s.Host(peertest.Group("y"))}
	readAll(t, b, data, all...)
	if got := s.Origin.Copies(b); got != 3 {
		t.Errorf("%.2f copies left the origin, want one for each of the two groups and one for who has none", got)
	}
}
