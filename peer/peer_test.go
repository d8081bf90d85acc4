package peer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/peertest"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

func readAll(t *testing.T, b peer.Blob, want []byte, hosts ...*peertest.Host) {
	t.Helper()
	var group errgroup.Group
	for i, h := range hosts {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			got, err := h.Read(ctx, b)
			if err != nil {
				return fmt.Errorf("host %d: %w", i, err)
			}
			if !bytes.Equal(got, want) {
				return fmt.Errorf("host %d: read %d bytes that differ from the %d of the blob", i, len(got), len(want))
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// kinds runs a test for a blob with and for one without a chunk map.
func kinds(t *testing.T, f func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte)) {
	for _, name := range []string{"with chunk map", "without"} {
		t.Run(name, func(t *testing.T) {
			s := peertest.NewSwarm(t)
			b, data := s.Origin.Random(5*mib+12345, 1)
			if name == "with chunk map" {
				b = s.Origin.WithMap(t, b, data)
			}
			f(t, s, b, data)
		})
	}
}

func TestOneCopyLeavesTheOrigin(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		seed := s.Host(peertest.Seed)
		hosts := []*peertest.Host{s.Host(), s.Host(), s.Host(), s.Host()}
		readAll(t, b, data, hosts...)
		if got := s.Origin.Copies(b); got != 1 {
			t.Errorf("%.2f copies left the origin, want 1", got)
		}
		if got := seed.Counter(t, "shoal_peer_read_bytes_total", "source"); got < float64(b.Size) {
			t.Errorf("the seed read %.0f bytes from the origin, want %d", got, b.Size)
		}
		for i, h := range hosts {
			if got := h.Counter(t, "shoal_peer_read_bytes_total", "source"); got != 0 {
				t.Errorf("host %d read %.0f bytes from the origin", i, got)
			}
		}
	})
}

func TestWithoutSeedOneCopyLeavesTheOrigin(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		readAll(t, b, data, s.Host(), s.Host(), s.Host())
		if got := s.Origin.Copies(b); got != 1 {
			t.Errorf("%.2f copies left the origin, want 1", got)
		}
	})
}

func TestLateJoinerReadsFromPeersWhenTheOriginIsDown(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		readAll(t, b, data, s.Host(peertest.Seed), s.Host())
		s.Origin.Lock()
		s.Origin.Err = piece.ErrTransient
		s.Origin.Unlock()
		readAll(t, b, data, s.Host(), s.Host())
	})
}

func TestLoneHostReadsTheOriginOnce(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		h := s.Host(peertest.Lone)
		readAll(t, b, data, h, h)
		readAll(t, b, data, h)
		if got := s.Origin.Copies(b); got != 1 {
			t.Errorf("%.2f copies left the origin, want 1", got)
		}
	})
}

func TestDeadSchedulerInMidDownloadStopsNobody(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		s.Origin.Pace = 5 * time.Millisecond
		hosts := []*peertest.Host{s.Host(peertest.Seed), s.Host(), s.Host()}
		killAt(t, s, b, s.Scheduler)
		readAll(t, b, data, hosts...)
	})
}

// killAt kills a process when about a quarter of the blob has left the origin.
func killAt(t *testing.T, s *peertest.Swarm, b peer.Blob, p interface{ Kill() }) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; s.Origin.Copies(b) < 0.25 && i < 10000; i++ {
			time.Sleep(time.Millisecond)
		}
		p.Kill()
	})
	t.Cleanup(wg.Wait)
}

func TestSchedulerDeadBeforeTheReadMeansTheKnownSeedIsAsked(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		seed := s.Host(peertest.Seed)
		h1, h2 := s.Host(), s.Host()
		s.Scheduler.Kill()
		for h1.Connected() || h2.Connected() || seed.Connected() {
			time.Sleep(time.Millisecond)
		}
		readAll(t, b, data, h1, h2)
	})
}

func TestHostsWithoutASchedulerLearnOfEachOtherByTheSeed(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		s.Origin.Pace = 5 * time.Millisecond // 12 MB/s
		seed := s.Host(peertest.Seed)
		hosts := []*peertest.Host{s.Host(), s.Host(), s.Host(), s.Host()}
		s.Scheduler.Kill()
		for _, h := range append(hosts, seed) {
			for h.Connected() {
				time.Sleep(time.Millisecond)
			}
		}
		readAll(t, b, data, hosts...)
		shared := 0.0
		for _, h := range hosts {
			shared += h.Counter(t, "shoal_transfer_uploaded_bytes_total", "")
		}
		if shared == 0 {
			t.Error("the seed sent every copy")
		}
	})
}

func TestDeadSeedInMidDownloadStopsNobody(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		s.Origin.Pace = 5 * time.Millisecond
		seed := s.Host(peertest.Seed)
		hosts := []*peertest.Host{s.Host(), s.Host()}
		killAt(t, s, b, seed)
		readAll(t, b, data, hosts...)
	})
}

func TestLyingParentIsDroppedAndTheBytesComeFromElsewhere(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(5*mib, 1)
	b = s.Origin.WithMap(t, b, data)
	liar := s.Host(peertest.Wrap(flipBits))
	readAll(t, b, data, liar)
	honest := s.Host()
	readAll(t, b, data, honest)
	h := s.Host()
	readAll(t, b, data, h)
	if got := h.Counter(t, "shoal_peer_verify_failures_total", "peer"); got == 0 {
		t.Error("no verification failure was counted")
	}
}

// flipBits corrupts every piece that is served.
func flipBits(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w = &flipper{w}
		}
		next.ServeHTTP(w, r)
	})
}

type flipper struct{ http.ResponseWriter }

func (f *flipper) Write(p []byte) (int, error) {
	p = bytes.Clone(p)
	for i := range p {
		p[i] ^= 1
	}
	return f.ResponseWriter.Write(p)
}

func TestBitFlippedOnTheParentsDiskIsFoundAndRefetched(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(5*mib, 1)
	b = s.Origin.WithMap(t, b, data)
	parent := s.Host(peertest.Seed)
	readAll(t, b, data, parent)
	flip(t, parent.Dir, len(data))
	h := s.Host()
	readAll(t, b, data, h)
	if got := h.Counter(t, "shoal_peer_verify_failures_total", "peer"); got == 0 {
		t.Error("no verification failure was counted")
	}
	if got := parent.Counter(t, "shoal_store_verify_failures_total", ""); got != 1 {
		t.Errorf("the parent counted %v bad pieces on its disk, want 1", got)
	}
	readAll(t, b, data, parent) // it has repaired itself
}

// flip changes one byte in the middle of the store's only file of that size.
func flip(t *testing.T, dir string, size int) { t.Helper(); flipAt(t, dir, size, size/2) }

// flipAt changes the byte at off in the store's only file of that size.
func flipAt(t *testing.T, dir string, size, off int) {
	t.Helper()
	found := false
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil || info.Size() != int64(size) {
			return err
		}
		found = true
		overwriteFile(t, path, func(data []byte) { data[off] ^= 1 })
		return nil
	})
	if err != nil || !found {
		t.Fatalf("flip a byte below %s: found %v, %v", dir, found, err)
	}
}

// overwriteFile changes a file's bytes in place.
func overwriteFile(t *testing.T, path string, change func([]byte)) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	change(data)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
}

func TestRestartFindsWhatTheDiskHolds(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(3*mib, 1)
	b = s.Origin.WithMap(t, b, data)
	h := s.Host()
	readAll(t, b, data, h)
	h.Kill()
	flip(t, h.Dir, len(data))
	again := s.Host(peertest.Dir(h.Dir))
	other := s.Host()
	if err := readRange(t.Context(), again, b, 0, data[:4096]); err != nil { // else other may ask, and read the origin, before anybody knows what again has
		t.Fatal(err)
	}
	readAll(t, b, data, other, again)
	if got := again.Counter(t, "shoal_store_verify_failures_total", ""); got != 1 {
		t.Errorf("counted %v bad pieces on the disk, want 1", got)
	}
	if got := other.Counter(t, "shoal_peer_verify_failures_total", "peer"); got != 0 {
		t.Errorf("%v bad pieces left a node that was started over them", got)
	}
	if got := s.Origin.Copies(b); got > 1.5 {
		t.Errorf("%.2f copies left the origin: the disk was not used", got)
	}
}

func TestCorruptOriginIsAnErrorAndNeverBytes(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		s.Origin.Corrupt = true
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		got, err := s.Host().Read(ctx, b)
		if !errors.Is(err, piece.ErrMismatch) {
			t.Errorf("error %v, want a mismatch", err)
		}
		if len(got) == len(data) {
			t.Error("a corrupt blob was delivered whole")
		}
	})
}

func TestUnknownBlobFailsAtOnce(t *testing.T) {
	s := peertest.NewSwarm(t)
	s.Host(peertest.Seed)
	b, _ := peertest.NewOrigin().Random(mib, 9)
	began := time.Now()
	_, err := s.Host().Read(t.Context(), b)
	if !errors.Is(err, piece.ErrAbsent) || time.Since(began) > 3*time.Second {
		t.Errorf("error %v after %v", err, time.Since(began))
	}
}

func TestFullStoreIsAnErrorThatNamesTheWayOut(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, _ := s.Origin.Random(3*mib, 1)
	_, err := s.Host(peertest.Quota(mib)).Read(t.Context(), b)
	if !errors.Is(err, store.ErrNoSpace) || !strings.Contains(err.Error(), b.Digest.String()) {
		t.Errorf("error %v", err)
	}
}

func TestReadIsBoundedByItsContext(t *testing.T) {
	s := peertest.NewSwarm(t)
	s.Origin.Gate = make(chan struct{})
	b, data := s.Origin.Random(mib, 1)
	h := s.Host()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Read(ctx, b); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	close(s.Origin.Gate)
	readAll(t, b, data, h) // the download itself was not given up
}

func TestRangesLeaveTheOriginOnce(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(20*mib, 1)
	b = s.Origin.WithMap(t, b, data)
	s.Host(peertest.Seed)
	var group errgroup.Group
	for range 3 {
		h := s.Host()
		group.Go(func() error {
			r, err := h.Open(t.Context(), b, "")
			if err != nil {
				return err
			}
			defer r.Close()
			for off := int64(17 * mib); off > 0; off -= 3 * mib {
				buf := make([]byte, 64<<10)
				if _, err := r.ReadAt(t.Context(), buf, off); err != nil || !bytes.Equal(buf, data[off:off+64<<10]) {
					return fmt.Errorf("range at %d: %w", off, err)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := s.Origin.Copies(b); got > 1 {
		t.Errorf("%.2f copies left the origin, want at most 1", got)
	}
}
