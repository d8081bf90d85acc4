package peer

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/piece"
)

// move has a stream move for a while, n bytes every so often, and returns how many bytes a second those were.
func move(t *testing.T, g *gate, n int, every, during time.Duration) float64 {
	began, moved := time.Now(), 0
	for time.Since(began) < during {
		time.Sleep(every)
		moved += n
		g.pass(t.Context(), n, nil)
	}
	return float64(moved) / time.Since(began).Seconds()
}

func TestGateSlowsDownByHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		if free := move(t, &g, 1000, time.Millisecond, time.Second); free < 999_000 || g.closed() {
			t.Fatalf("%.0f bytes/s before anybody waits, want 1,000,000", free)
		}
		g.close()
		if held := move(t, &g, 1000, time.Millisecond, 25*time.Second); held < 480_000 || held > 520_000 {
			t.Errorf("%.0f bytes/s while somebody waits, want half of 1,000,000", held)
		}
		if held := move(t, &g, 1000, 0, 2*time.Second); held < 480_000 || held > 520_000 {
			t.Errorf("%.0f bytes/s of what could be quicker by now, want half of 1,000,000", held)
		}
		if !g.open() || g.closed() {
			t.Error("closed although nobody waits")
		}
		if free := move(t, &g, 1000, time.Millisecond, time.Second); free < 990_000 {
			t.Errorf("%.0f bytes/s when nobody waits any more", free)
		}
	})
}

// Who waits from the beginning must not keep the rest slow because nobody knows how quick it could be; nor for good at a speed of once.
func TestGateLearnsTheSpeedWhileSomebodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		g.close()
		move(t, &g, 1000, 10*time.Millisecond, time.Second)
		if held := move(t, &g, 1000, 10*time.Millisecond, time.Second); held < 48_000 || held > 52_000 {
			t.Errorf("%.0f bytes/s, want half of 100,000", held)
		}
		move(t, &g, 1000, time.Millisecond, gateMemory+time.Second)
		if held := move(t, &g, 1000, time.Millisecond, time.Second); held < 480_000 || held > 520_000 {
			t.Errorf("%.0f bytes/s of what is ten times as quick by now, want half of 1,000,000", held)
		}
	})
}

func TestNothingStandsStillAtTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		move(t, &g, 10, time.Millisecond, time.Second) // 10 kB/s
		g.close()
		if held := move(t, &g, 1<<20, 0, 10*time.Second); held < 1<<20/gatePause.Seconds()*0.9 {
			t.Errorf("%.0f bytes/s, want a step each %v at the least", held, gatePause)
		}
	})
}

func TestGateOpensWhenTheLastIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		move(t, &g, 1000, time.Millisecond, time.Second)
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
	read := func(first, end piece.Index) *hurry {
		return &hurry{run: dispatch.Run{First: first, End: end}, on: make(chan struct{})}
	}
	before, wanted, behind := read(0, 8), read(8, 16), read(16, 24)
	task := &task{cm: &chunkmap.Map{}, hurries: []*hurry{before, wanted, behind}}
	g := gate{speed: 1, asOf: time.Now()}
	g.close()
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		for range 100 { // ten seconds, if it makes way
			g.pass(t.Context(), 1<<20, wanted.on)
		}
	}()
	task.hurryUp(dispatch.Run{First: 10, End: 11})
	task.hurryUp(dispatch.Run{First: 15, End: 16})
	select {
	case <-passed:
	case <-time.After(5 * time.Second):
		t.Error("the read still makes way")
	}
	for _, h := range []*hurry{before, behind} {
		select {
		case <-h.on:
			t.Errorf("nobody waits for %v, and it makes way no more", h.run)
		default:
		}
	}
}
