package peer_test

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/limits"
	"github.com/shoal-project/shoal/peer/peertest"
	"github.com/shoal-project/shoal/scheduler/api"
)

// A slow origin is no reason to leave the cluster for it: everybody would, and make it slower.
func TestWhoCouldReadTheOriginWaitsWhileItIsReadForAll(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, _ := s.Origin.Random(256<<10, 1)
	s.Origin.Lock()
	s.Origin.Pace = 700 * time.Millisecond // of a quarter of the blob
	s.Origin.Unlock()
	s.Host(peertest.Seed)
	var group errgroup.Group
	for _, h := range []*peertest.Host{s.Host(), s.Host(), s.Host()} {
		group.Go(func() error {
			r, err := h.Open(t.Context(), b, "")
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = r.AwaitMoving(t.Context(), 0, b.Size, 1500*time.Millisecond)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if got := s.Origin.Copies(b); got != 1 {
		t.Errorf("%.2f copies left the origin", got)
	}
}

func TestWhoCouldReadTheOriginDoesNotWaitForEver(t *testing.T) {
	const quiet = 300 * time.Millisecond
	for name, tc := range map[string]struct {
		held        int64 // pieces are there from this byte on
		least, most time.Duration
	}{
		"nothing moves":                {20 * mib, quiet, 2 * time.Second},
		"all moves but what is wanted": {4 * mib, 12 * quiet, 6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := peertest.NewSwarm(t)
			b, data := s.Origin.Random(20*mib, 1)
			b = s.Origin.WithMap(t, b, data)
			s.Origin.Lock()
			s.Origin.Holds = func(d digest.Digest, off int64) bool { return d == b.Digest && off < tc.held }
			s.Origin.Unlock()
			parent := open(t, s.Host(), b)
			for off := tc.held; off < b.Size; {
				n, err := parent.Await(t.Context(), off, b.Size-off)
				if err != nil {
					t.Fatal(err)
				}
				off += n
			}
			slow, err := limits.New(limits.Rates{Download: 2 * mib})
			if err != nil {
				t.Fatal(err)
			}
			r := open(t, s.Host(peertest.Limits(slow)), b)
			began := time.Now()
			_, err = r.AwaitMoving(t.Context(), 0, b.Size, quiet)
			took := time.Since(began)
			if err == nil || !strings.Contains(err.Error(), "no byte for ") || !strings.Contains(err.Error(), b.Digest.String()) {
				t.Errorf("error %v, want one that says of what no byte came for how long", err)
			}
			if took < tc.least || took > tc.most {
				t.Errorf("waited %v, want %v to %v", took, tc.least, tc.most)
			}
		})
	}
}

// Where a cluster trickles the origin is better.
func TestWhoCouldReadTheOriginDoesNotWaitForATrickle(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, _ := s.Origin.Random(mib, 1)
	s.Origin.Lock()
	s.Origin.Pace = 2 * time.Second // of 64 KiB
	s.Origin.Unlock()
	began := time.Now()
	if _, err := open(t, s.Host(peertest.Lone), b).AwaitMoving(t.Context(), 0, b.Size, time.Second); err == nil {
		t.Error("no error although nothing came to speak of")
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("waited %v", took)
	}
}

// promiser is a scheduler that leases nothing and says that all is coming.
type promiser struct{ commands *api.Queue }

func (p promiser) Open(context.Context, api.Host) (string, *api.Queue, func(), error) {
	return "session", p.commands, func() {}, nil
}

func (p promiser) Events(_ string, events []api.Event) error {
	for _, ev := range events {
		if ev.Stuck != nil {
			p.commands.Push(api.Command{Coming: &api.Coming{Task: ev.Stuck.Task}})
		}
	}
	return nil
}

func (p promiser) Hosts() []api.Host { return nil }

func TestSchedulersWordIsNotBelievedForEver(t *testing.T) {
	t.Parallel() // it takes twelve times what a host waits without that word
	web := httptest.NewServer(api.NewHandler(promiser{api.NewQueue()}, ""))
	t.Cleanup(func() { web.CloseClientConnections(); web.Close() })
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(256<<10, 1)
	readAll(t, b, data, s.Host(peertest.ScheduledBy(web.URL), peertest.SelfAfter(time.Second)))
}

func open(t *testing.T, h *peertest.Host, b peer.Blob) *peer.Reader {
	t.Helper()
	r, err := h.Open(t.Context(), b, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}
