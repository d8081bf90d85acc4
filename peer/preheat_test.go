package peer_test

import (
	"errors"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/peertest"
	"github.com/shoal-project/shoal/peer/piece"
)

func TestPreheatBringsABlobToTheHostThatIsNamed(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, _ []byte) {
		asks, other := s.Host(peertest.Seed), s.Host()
		addr, err := asks.Find(t.Context(), "host-2")
		if err != nil || addr != other.Addr {
			t.Fatalf("host-2 is at %q, error %v; want %q", addr, err, other.Addr)
		}
		var told int64
		if err := asks.Preheat(t.Context(), addr, b, 10*time.Second, func(held int64) { told = held }); err != nil {
			t.Fatal(err)
		}
		if told != b.Size {
			t.Errorf("%d bytes are told to be held, want %d", told, b.Size)
		}
		held, err := other.Store.Get(b.Digest)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		if got := held.Held(); got != b.Size {
			t.Errorf("the host holds %d bytes, want %d", got, b.Size)
		}
		if got := s.Origin.Copies(b); got != 1 {
			t.Errorf("%.2f copies left the origin, want 1", got)
		}
	})
}

// Whoever is asked for a blob is shown the cluster's token.
func TestOnlyHostsOfTheClusterAreFound(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := peertest.NewSwarm(t)
	asks, other := s.Host(), s.Host()
	for _, node := range []string{l.Addr().String(), "host-9", ""} {
		if addr, err := asks.Find(t.Context(), node); err == nil || !strings.Contains(err.Error(), "no running node") {
			t.Errorf("%q is found at %q, error %v", node, addr, err)
		}
	}
	for _, node := range []string{"host-1", asks.Addr, "host-2", other.Addr} {
		if _, err := asks.Find(t.Context(), node); err != nil {
			t.Error(err)
		}
	}
	s.Scheduler.Kill()
	if _, err := asks.Find(t.Context(), "host-2"); err == nil || !strings.Contains(err.Error(), "scheduler") {
		t.Errorf("error %v does not say that the scheduler is gone", err)
	}
	listed := s.Listed(2)
	if addr, err := listed[0].Find(t.Context(), listed[1].Addr); err != nil || addr != listed[1].Addr {
		t.Errorf("a host of the list is at %q, error %v", addr, err)
	}
	if addr, err := listed[0].Find(t.Context(), l.Addr().String()); err == nil {
		t.Errorf("a host that is not of the list is found at %q", addr)
	}
}

func TestBlobOfAbsurdSizeIsRefused(t *testing.T) {
	s := peertest.NewSwarm(t)
	h := s.Host()
	b, _ := s.Origin.Random(mib, 1)
	for _, size := range []int64{-1, 0, 1<<44 + 1, 1 << 62, math.MaxInt64} {
		b.Size = size
		if err := h.Preheat(t.Context(), h.Addr, b, time.Second, func(int64) {}); err == nil || !strings.Contains(err.Error(), "size") {
			t.Errorf("preheating %d bytes: error %v", size, err)
		}
		if _, err := h.Open(t.Context(), b, ""); err == nil || !strings.Contains(err.Error(), "size") {
			t.Errorf("opening %d bytes: error %v", size, err)
		}
	}
}

func TestPreheatSaysWhyItFails(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(o *peertest.Origin)
		class error
	}{
		"wrong bytes": {func(o *peertest.Origin) { o.Corrupt = true }, piece.ErrMismatch},
		"absent":      {func(o *peertest.Origin) { o.Err = piece.ErrAbsent }, piece.ErrAbsent},
		"denied":      {func(o *peertest.Origin) { o.Err = piece.ErrDenied }, piece.ErrDenied},
	} {
		t.Run(name, func(t *testing.T) {
			s := peertest.NewSwarm(t)
			b, _ := s.Origin.Random(mib, 1)
			asks, other := s.Host(), s.Host(peertest.Seed)
			s.Origin.Lock()
			c.spoil(s.Origin)
			s.Origin.Unlock()
			for range 2 { // the second meets what is left of the first
				if err := asks.Preheat(t.Context(), other.Addr, b, time.Minute, func(int64) {}); !errors.Is(err, c.class) || !strings.Contains(err.Error(), other.Addr) {
					t.Errorf("error %v, want the host and %v", err, c.class)
				}
			}
			s.Origin.Lock()
			s.Origin.Corrupt, s.Origin.Err = false, nil
			s.Origin.Unlock()
			if err := asks.Preheat(t.Context(), other.Addr, b, time.Minute, func(int64) {}); err != nil {
				t.Errorf("the origin is mended: %v", err)
			}
		})
	}
}

func TestPreheatFetchesTheRestOfWhatIsReadInPart(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(16*mib, 1)
	asks, other := s.Host(), s.Host()
	r, err := other.Open(t.Context(), b, "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := readRange(t.Context(), other, b, 12*mib, data[12*mib:][:4096]); err != nil {
		t.Fatal(err)
	}
	if err := asks.Preheat(t.Context(), other.Addr, b, 10*time.Second, func(int64) {}); err != nil {
		t.Error(err)
	}
}
