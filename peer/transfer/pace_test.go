package transfer_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/peer/limits"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store/storetest"
	"github.com/shoal-project/shoal/peer/transfer"
)

// endless serves any range of any blob out of one sparse file.
type endless struct {
	path      string
	size      int64
	suspected chan piece.Index
}

func newEndless(t *testing.T, size int64) endless {
	t.Helper()
	e := endless{path: t.TempDir() + "/data", size: size, suspected: make(chan piece.Index, 1)}
	if err := os.WriteFile(e.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(e.path, size); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e endless) Open(digest.Digest, int64, int64) (*os.File, func(), error) {
	f, err := os.Open(e.path)
	return f, func() { _ = f.Close() }, err
}

func (endless) Groups(digest.Digest, piece.Index) ([]piece.Digest, error) {
	return nil, piece.ErrAbsent
}

func (e endless) Suspect(_ digest.Digest, i piece.Index) error {
	e.suspected <- i
	return nil
}

func (endless) Watch(context.Context, digest.Digest, json.RawMessage) (transfer.Haves, error) {
	return nil, piece.ErrAbsent
}

// counted counts what passes, by task.
type counted struct {
	transfer.Pacer
	mu     sync.Mutex
	passed map[string]int64
}

// Step makes a cut leave little uncounted.
func (c *counted) Step() int { return min(c.Pacer.Step(), 32<<10) }

func (c *counted) Pace(ctx context.Context, task string, n int) error {
	err := c.Pacer.Pace(ctx, task, n)
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.passed[task] += int64(n)
	}
	return err
}

// move has streams of several tasks read for d.
func move(ctx context.Context, c *transfer.Client, addr string, d time.Duration, streams map[digest.Digest]int) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var group errgroup.Group
	for task, n := range streams {
		for i := range n {
			group.Go(func() error {
				buf := make([]byte, 4<<20)
				for off := int64(i) << 28; ctx.Err() == nil; off += int64(len(buf)) {
					if err := c.Piece(ctx, addr, task, off, buf); err != nil && ctx.Err() == nil {
						return err
					}
				}
				return nil
			})
		}
	}
	return group.Wait()
}

// TestRatesAreKeptOverLoopback measures for five seconds. A rate is never exceeded; that it is reached can be seen only while the
// machine does not starve the test.
func TestRatesAreKeptOverLoopback(t *testing.T) {
	if testing.Short() {
		t.Skip("takes five seconds")
	}
	const rate, seconds = 8 << 20, 5
	blobs := newEndless(t, 4<<30)
	one, two := digest.FromString("one"), digest.FromString("two")
	for name, r := range map[string]limits.Rates{"upload": {Upload: rate}, "download": {Download: rate}, "upload per task": {UploadPerTask: rate / 2}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range 3 {
				l, err := limits.New(r)
				if err != nil {
					t.Fatal(err)
				}
				addr := serve(t, transfer.Config{Pacer: l.Upload()}, blobs)
				received := &counted{Pacer: l.FromPeer(), passed: map[string]int64{}}
				c := newClient(t, transfer.ClientConfig{Pacer: received, Stall: 10 * time.Second})
				late := lateness(t, seconds*time.Second)
				if err := move(t.Context(), c, addr, seconds*time.Second, map[digest.Digest]int{one: 1, two: 6}); err != nil {
					t.Fatal(err)
				}
				a, b := float64(received.passed[one.String()]), float64(received.passed[two.String()])
				t.Logf("%.3f of the rate passed, %.3f of it to the task with one stream of seven; timers up to %v late",
					(a+b)/(rate*seconds), a/(a+b), <-late)
				reached := a+b > 0.95*rate*seconds && a/(a+b) > 0.45
				if a+b > 1.05*rate*seconds || a/(a+b) > 0.55 {
					t.Fatal("more than the limit")
				}
				if reached {
					return
				}
			}
			if late := <-lateness(t, time.Second); late < 20*time.Millisecond {
				t.Error("less than the limit on an idle machine")
			}
		})
	}
}

// lateness tells by how much a timer was late at most within d.
func lateness(t *testing.T, d time.Duration) <-chan time.Duration {
	out := make(chan time.Duration, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		most, tick := time.Duration(0), 5*time.Millisecond
		for end := time.Now().Add(d); time.Now().Before(end); {
			began := time.Now()
			time.Sleep(tick) // what is measured
			most = max(most, time.Since(began)-tick)
		}
		out <- most
	})
	t.Cleanup(wg.Wait)
	return out
}

// slow is a pacer that takes its time.
type slow time.Duration

func (slow) Step() int { return 64 << 10 }

func (s slow) Pace(ctx context.Context, _ string, _ int) error {
	select {
	case <-time.After(time.Duration(s)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestParentIsNotBlamedForTheOwnLimit(t *testing.T) {
	s := newStore(t)
	data, _ := storetest.Content(1, piece.GroupSize)
	d := storetest.Fill(t, s, data)
	addr := serve(t, transfer.Config{}, stored{s})
	c := newClient(t, transfer.ClientConfig{Stall: 500 * time.Millisecond, Pacer: slow(700 * time.Millisecond)})
	if err := c.Piece(t.Context(), addr, d, 0, make([]byte, piece.GroupSize)); err != nil {
		t.Errorf("at the own rate: %v", err)
	}
}

func TestUploadEndsWithItsRequestWhileItWaits(t *testing.T) {
	l, err := limits.New(limits.Rates{Upload: limits.MinRate})
	if err != nil {
		t.Fatal(err)
	}
	blobs := newEndless(t, 64<<20)
	addr := serve(t, transfer.Config{Pacer: l.Upload(), UploadSlots: 1}, blobs)
	c := newClient(t, transfer.ClientConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := c.Piece(ctx, addr, digest.FromString("x"), 0, make([]byte, 32<<20)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the slot becomes free
		err := c.Piece(t.Context(), addr, digest.FromString("x"), 0, make([]byte, 1))
		if err == nil {
			return
		}
		if !errors.Is(err, transfer.ErrBusy) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// badDisk is a connection to which the kernel cannot send the file from some place on.
type badDisk struct {
	http.ResponseWriter
	left int64
}

func (b *badDisk) ReadFrom(src io.Reader) (int64, error) {
	limited := src.(*io.LimitedReader)
	n, _ := io.Copy(io.Discard, io.LimitReader(limited, b.left))
	if b.left -= n; b.left == 0 {
		return n, unix.EIO
	}
	return n, nil
}

func TestPieceThatTheDiskCannotReadIsRecheckedAtOnce(t *testing.T) {
	blobs := newEndless(t, 64*piece.GroupSize)
	h, err := transfer.NewHandler(transfer.Config{}, blobs)
	if err != nil {
		t.Fatal(err)
	}
	addr := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(&badDisk{ResponseWriter: w, left: 2*piece.GroupSize + 10}, r)
	}))
	c := newClient(t, transfer.ClientConfig{})
	err = c.Piece(t.Context(), addr, digest.FromString("x"), 8*piece.GroupSize, make([]byte, 8*piece.GroupSize))
	if !errors.Is(err, piece.ErrTransient) {
		t.Errorf("error %v", err)
	}
	if got := <-blobs.suspected; got != 10 {
		t.Errorf("piece %d was rechecked, want 10", got)
	}
}
