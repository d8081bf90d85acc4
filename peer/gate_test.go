package peer

import (
	"testing"
	"time"
)

// a gate that is closed all the time holds others back a fifth of it, in the long run.
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
		if g.strained(now) == g.closed(now) {
			t.Fatalf("step %d: strained %t and closed %[2]t", i, g.closed(now))
		}
		if g.closed(now) {
			held++
		}
		if i == int((gateFor-step)/step)-1 && held != i+1 {
			t.Errorf("open after %v, although it may be closed for %v", time.Duration(held)*step, gateFor)
		}
	}
	if share := float64(held) / steps; share < 0.15 || share > 0.25 {
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
		g.pass(t.Context())
		passed <- time.Since(begin)
	}()
	if !g.open(now) {
		t.Error("closed although nobody waits")
	}
	<-passed
	g.pass(t.Context())
}
