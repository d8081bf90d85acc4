package peer

import (
	"testing"
	"time"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/piece"
)

// A gate that is closed all the time holds others back a seventeenth of it, in the long run.
func TestGateDoesNotHoldOthersBackForGood(t *testing.T) {
	var g gate
	now := time.Now()
	if g.closed(now) {
		t.Fatal("closed before anybody waits")
	}
	g.close(now)
	held := 0
	const steps, step = 6000, 10 * time.Millisecond
	for i := range steps {
		now = now.Add(step)
		if g.closed(now) {
			held++
		}
		if i == int((gateFor-step)/step)-1 && held != i+1 {
			t.Errorf("open after %v, although it may be closed for %v", time.Duration(held)*step, gateFor)
		}
	}
	if share := float64(held) / steps; share < 0.04 || share > 0.08 {
		t.Errorf("others were held back %.2f of a minute", share)
	}
	if !g.open(now) || g.closed(now) {
		t.Error("closed although nobody waits")
	}
}

func TestGateIsClosedAtOnceAfterAPause(t *testing.T) {
	var g gate
	now := time.Now()
	for range 100 {
		g.close(now)
		for range 10 {
			if now = now.Add(20 * time.Millisecond); !g.closed(now) {
				t.Fatal("open although somebody waits")
			}
		}
		g.open(now)
		now = now.Add(time.Second)
	}
}

func TestGateOpensWhenTheLastIsServed(t *testing.T) {
	var g gate
	now := time.Now()
	g.close(now)
	g.close(now)
	if g.open(now) || !g.closed(now) {
		t.Error("open although one waits")
	}
	passed := make(chan time.Duration)
	go func() {
		begin := time.Now()
		g.pass(t.Context(), nil)
		passed <- time.Since(begin)
	}()
	if !g.open(now) {
		t.Error("closed although nobody waits")
	}
	<-passed
	g.pass(t.Context(), nil)
}

// What readers wait for may be in the middle of a read that had to make way for it.
func TestReadsThatReadersWaitForMakeWayNoMore(t *testing.T) {
	read := func(first, end piece.Index) *hurry {
		return &hurry{run: dispatch.Run{First: first, End: end}, on: make(chan struct{})}
	}
	before, wanted, behind := read(0, 8), read(8, 16), read(16, 24)
	task := &task{cm: &chunkmap.Map{}, hurries: []*hurry{before, wanted, behind}}
	var g gate
	g.close(time.Now())
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		for range 100 { // ten seconds, if it makes way
			g.pass(t.Context(), wanted.on)
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
