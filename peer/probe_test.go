package peer_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/peer/peertest"
)

// sites knows where hosts are: a stand-in for two places 30 ms from each other.
type sites struct {
	mu sync.Mutex // guards of
	of map[string]string
}

func (s *sites) set(addr, site string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of[addr] = site
}

// from returns what a host at a site measures.
func (s *sites) from(site string) func(context.Context, string) (time.Duration, error) {
	return func(_ context.Context, addr string) (time.Duration, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.of[addr] == site {
			return 200 * time.Microsecond, nil
		}
		return 30 * time.Millisecond, nil
	}
}

func TestZonesThatNobodyNamedAreFoundByProbing(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(3*mib, 1)
	b = s.Origin.WithMap(t, b, data)
	at := &sites{of: map[string]string{}}
	var m meter
	host := func(site string, options ...peertest.Option) *peertest.Host {
		h := s.Host(append(options, peertest.RoundTrip(at.from(site)))...)
		at.set(h.Addr, site)
		return h
	}
	host("a", peertest.Seed, peertest.Wrap(m.wrap))
	far := []*peertest.Host{host("b"), host("b"), host("b")}
	var status string
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(status, "~"); time.Sleep(5 * time.Millisecond) {
		if status = strings.Join(s.Server.Zones(), " "); time.Now().After(deadline) {
			t.Fatalf("zones %q after 20 s", status)
		}
		if strings.Count(status, "~") < 3 {
			status = ""
		}
	}
	readAll(t, b, data, far...)
	// On a machine that stands still for a second the layer with the chunk map, one piece, may be asked for again.
	if got, want := m.sent.Load(), b.Size+b.Origin.Map.Size; got != want && got != want+b.Origin.Map.Size {
		t.Errorf("%d bytes crossed the border, want %d", got, want)
	}
}

func TestHostsThatAreNearAreOneZone(t *testing.T) {
	s := peertest.NewSwarm(t)
	s.Host(peertest.Seed)
	s.Host()
	b, data := s.Origin.Random(mib, 1)
	readAll(t, b, data, s.Host())
	for _, z := range s.Server.Zones() {
		if z != "" {
			t.Errorf("zone %q on loopback", z)
		}
	}
}
