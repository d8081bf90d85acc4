package peer_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/peertest"
)

// readRange reads the part of the blob from off on that should be as want.
func readRange(ctx context.Context, h *peertest.Host, b peer.Blob, off int64, want []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := h.Open(ctx, b, "")
	if err != nil {
		return err
	}
	defer r.Close()
	got := make([]byte, len(want))
	if _, err := r.ReadAt(ctx, got, off); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("range at %d differs", off)
	}
	return nil
}

func TestRangesOnSeveralHostsLeaveTheOriginOnceAndNothingElseDoes(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, small peer.Blob, _ []byte) {
		b, data := s.Origin.Random(64*mib+5, 2)
		if small.Origin.Map != nil {
			b = s.Origin.WithMap(t, b, data)
		}
		s.Host(peertest.Seed)
		var group errgroup.Group
		for range 4 {
			h := s.Host()
			group.Go(func() error {
				for k := range int64(8) {
					if err := readRange(t.Context(), h, b, (k*8+4)*mib, data[(k*8+4)*mib:][:mib]); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		s.Origin.Lock()
		defer s.Origin.Unlock()
		if got := s.Origin.Served[b.Digest]; got != 8*mib {
			t.Errorf("%.2f MiB left the origin for eight ranges of 1 MiB", float64(got)/mib)
		}
	})
}

func TestRangeOvertakesTheFetchOfTheWholeBlob(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, small peer.Blob, _ []byte) {
		b, data := s.Origin.Random(32*mib, 3)
		if small.Origin.Map != nil {
			b = s.Origin.WithMap(t, b, data)
		}
		s.Host(peertest.Seed)
		h := s.Host()
		s.Origin.Lock()
		s.Origin.Holds = func(d digest.Digest, off int64) bool { return d == b.Digest && off > mib && off < 30*mib } // who reads in order does not get there
		s.Origin.Unlock()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		whole, err := h.Open(ctx, b, "")
		if err != nil {
			t.Fatal(err)
		}
		defer whole.Close()
		if _, err := whole.Await(ctx, 0, b.Size); err != nil {
			t.Fatal(err)
		}
		if err := readRange(ctx, h, b, 30*mib, data[30*mib:][:mib/2]); err != nil {
			t.Fatal(err)
		}
	})
}

func TestBlobIsWholeAfterRangesOfItAndNoPieceIsReadTwice(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		s.Host(peertest.Seed)
		h := s.Host()
		for _, off := range []int64{3 * mib, mib} {
			if err := readRange(t.Context(), h, b, off, data[off:][:mib/4]); err != nil {
				t.Fatal(err)
			}
		}
		readAll(t, b, data, h, s.Host())
		if got := s.Origin.Copies(b); got != 1 {
			t.Errorf("%.3f copies left the origin, want 1", got)
		}
	})
}

// An image that is mounted has its blobs open long before all of them are wanted.
func TestHostThatWantedNothingForLongDoesNotTakeThatForAStandstill(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(8*mib, 6)
	b = s.Origin.WithMap(t, b, data)
	s.Host(peertest.Seed)
	h := s.Host(peertest.SelfAfter(100 * time.Millisecond))
	r, err := h.Open(t.Context(), b, "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := readRange(t.Context(), h, b, 3*mib, data[3*mib:][:4096]); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond) // longer than its patience
	if _, err := r.AwaitAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := h.Counter(t, "shoal_peer_read_bytes_total", "source"); got != 0 {
		t.Errorf("the host read %.0f bytes from the origin by itself", got)
	}
}

func TestRangesOfABlobThatIsWrongAtTheOriginAreDroppedWhenThatShows(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(5*mib, 4)
	seed := s.Host(peertest.Seed)
	s.Origin.Lock()
	s.Origin.Corrupt = true
	s.Origin.Unlock()
	if err := readRange(t.Context(), seed, b, 2*mib, data[2*mib:][:mib/4]); err == nil {
		t.Fatal("the origin is not corrupt")
	}
	s.Origin.Lock()
	s.Origin.Corrupt = false
	s.Origin.Unlock()
	var once sync.Once
	for deadline := time.Now().Add(30 * time.Second); ; {
		got, err := seed.Read(t.Context(), b)
		if err == nil && bytes.Equal(got, data) {
			return
		}
		if err == nil {
			t.Fatal("bytes that are not the blob's were read as the whole of it")
		}
		once.Do(func() { t.Logf("first: %v", err) })
		if time.Now().After(deadline) {
			t.Fatalf("the blob cannot be read: %v", err)
		}
	}
}

func TestHostWithoutASchedulerReadsOnlyTheRangeItself(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		h := s.Host(peertest.Lone)
		if err := readRange(t.Context(), h, b, 3*mib, data[3*mib:][:mib/2]); err != nil {
			t.Fatal(err)
		}
		s.Origin.Lock()
		got := s.Origin.Served[b.Digest]
		s.Origin.Unlock()
		if got != mib/2 {
			t.Errorf("%d bytes left the origin, want %d", got, mib/2)
		}
		readAll(t, b, data, h)
		if got := s.Origin.Copies(b); got != 1 {
			t.Errorf("%.3f copies left the origin, want 1", got)
		}
	})
}

// A lone host reads a range as soon as it is asked for: nothing waits for a timer, or for the gate that the range before has closed.
func TestLoneHostReadsRangeAfterRangeWithoutAPause(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(64*mib, 9)
	b = s.Origin.WithMap(t, b, data)
	h := s.Host(peertest.Lone)
	begin := time.Now()
	const ranges = 60
	for k := range int64(ranges) {
		if err := readRange(t.Context(), h, b, k*mib, data[k*mib:][:64<<10]); err != nil {
			t.Fatal(err)
		}
	}
	// Each waited for 200 ms before, 12 s in all.
	if took := time.Since(begin); took > ranges*100*time.Millisecond {
		t.Errorf("%d ranges took %v", ranges, took)
	}
}
