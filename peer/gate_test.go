package peer

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/piece"
)

// move has streams move for a while, each n bytes every so often, and returns how many bytes a second those were together.
func move(g *gate, streams, n int, every, during time.Duration) float64 {
	began, moved := time.Now(), atomic.Int64{}
	var group sync.WaitGroup
	for range streams {
		group.Go(func() {
			for time.Since(began) < during {
				time.Sleep(max(every, time.Microsecond))
				moved.Add(int64(n))
				g.pass(context.Background(), n, nil)
			}
		})
	}
	group.Wait()
	return float64(moved.Load()) / time.Since(began).Seconds()
}

// about fails the test when a speed is more than a twentieth off.
func about(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > want/20 {
		t.Errorf("%s: %.0f bytes/s, want %.0f", what, got, want)
	}
}

func TestGateSlowsDownByHalf(t *testing.T) {
	for _, streams := range []int{1, 2, 5} {
		synctest.Test(t, func(t *testing.T) {
			var g gate
			all := float64(streams) * 1e6
			about(t, "before anybody waits", move(&g, streams, 1000, time.Millisecond, time.Second), all)
			g.close()
			about(t, "while somebody waits", move(&g, streams, 1000, time.Millisecond, gateMemory/2), all/2)
			about(t, "what could be quicker", move(&g, streams, 1000, 0, gateMemory/4), all/2)
			g.open()
			about(t, "when nobody waits any more", move(&g, streams, 1000, time.Millisecond, time.Second), all)
		})
	}
}

// Who waits from the beginning must not keep the rest slow because nobody knows how quick it could be; nor at what was its speed once.
func TestGateLearnsTheSpeedWhileSomebodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		g.close()
		move(&g, 1, 1000, 10*time.Millisecond, 4*gateWindow)
		about(t, "slow", move(&g, 1, 1000, 10*time.Millisecond, time.Second), 50_000)
		move(&g, 1, 1000, time.Millisecond, gateMemory)
		about(t, "ten times as quick by now", move(&g, 1, 1000, time.Millisecond, time.Second), 500_000)
		time.Sleep(2 * gateMemory)
		move(&g, 1, 1000, 10*time.Millisecond, 4*gateWindow)
		about(t, "slow again after a pause", move(&g, 1, 1000, 10*time.Millisecond, time.Second), 50_000)
	})
}

// What came while streams were held back is read at once when they are not: that is not their speed.
func TestGateDoesNotTakeABurstForTheSpeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		move(&g, 1, 1000, time.Millisecond, time.Second)
		g.close()
		move(&g, 1, 1000, time.Millisecond, time.Second)
		g.open()
		move(&g, 1, 1_000_000, time.Millisecond, 5*time.Millisecond)
		move(&g, 1, 1000, time.Millisecond, time.Second)
		g.close()
		about(t, "after a burst", move(&g, 1, 1000, time.Millisecond, time.Second), 500_000)
	})
}

func TestNothingStandsStillAtTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		if got := g.step(); got < 1<<20 {
			t.Errorf("steps of %d bytes although nobody waits", got)
		}
		move(&g, 1, 10, time.Millisecond, time.Second) // 10 kB/s
		g.close()
		about(t, "a step each pause", move(&g, 1, g.step(), 0, 10*time.Second), gateStep/gatePause.Seconds())
	})
}

func TestGateOpensWhenTheLastIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		move(&g, 1, 1000, time.Millisecond, time.Second)
		g.close()
		g.close()
		if g.open() || !g.closed() {
			t.Error("open although one waits")
		}
		time.AfterFunc(gatePause/2, func() {
			if !g.open() {
				t.Error("closed although nobody waits")
			}
		})
		began := time.Now()
		g.pass(t.Context(), 1<<20, nil)
		if took := time.Since(began); took != gatePause/2 {
			t.Errorf("held back for %v, want %v", took, gatePause/2)
		}
	})
}

// What readers wait for may be in the middle of a read that had to make way for it.
func TestReadsThatReadersWaitForMakeWayNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		read := func(first, end piece.Index) *hurry {
			return &hurry{run: dispatch.Run{First: first, End: end}, on: make(chan struct{})}
		}
		before, wanted, behind := read(0, 8), read(8, 16), read(16, 24)
		task := &task{cm: &chunkmap.Map{}, hurries: []*hurry{before, wanted, behind}}
		var g gate
		move(&g, 1, 10, time.Millisecond, time.Second)
		g.close()
		began := time.Now()
		passed := make(chan time.Duration, 1)
		go func() {
			for range 100 { // ten seconds, if it makes way
				g.pass(t.Context(), 1<<20, wanted.on)
			}
			passed <- time.Since(began)
		}()
		time.Sleep(gatePause / 2)
		task.hurryUp(dispatch.Run{First: 10, End: 11})
		task.hurryUp(dispatch.Run{First: 15, End: 16})
		if took := <-passed; took != gatePause/2 {
			t.Errorf("the read made way for %v, want %v", took, gatePause/2)
		}
		for _, h := range []*hurry{before, behind} {
			select {
			case <-h.on:
				t.Errorf("nobody waits for %v, and it makes way no more", h.run)
			default:
			}
		}
	})
}
