package peer

import (
	"context"
	"sync"
	"time"
)

const (
	// gatePause is the longest that the gate holds back one step of a transfer: nothing stands still for good.
	gatePause = 100 * time.Millisecond
	// gateShare is the part of its speed that is left to what makes way.
	gateShare = 0.5
	// gateWindow is how long that speed is measured for, and gateMemory how long it counts as known.
	gateWindow = 250 * time.Millisecond
	gateMemory = 30 * time.Second
)

// gate slows down what nobody waits for while others wait for something: to half of its speed, so that links are half empty for these, and readers that
// wait all the time, as those of a whole model do, do not keep the rest of it away from everybody. Its zero value is open. It is safe for concurrent use.
type gate struct {
	mu    sync.Mutex // guards the others
	n     int
	free  chan struct{} // closed when n falls to zero; nil while it is zero
	speed float64       // bytes a second while nothing was held back; zero while not known
	asOf  time.Time     // when that was measured
	from  time.Time     // since when the present measurement goes on
	last  time.Time     // when a byte moved last
	moved int64         // bytes of the present measurement
	held  bool          // some of them were held back
	next  time.Time     // when the next byte may move
}

// close closes the gate until open was called as often.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n++; g.n == 1 {
		g.free = make(chan struct{})
	}
}

// open reports whether the gate is open now.
func (g *gate) open() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n--; g.n > 0 {
		return false
	}
	close(g.free)
	g.free = nil
	return true
}

func (g *gate) closed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n > 0
}

// measure takes note that n bytes have moved.
func (g *gate) measure(now time.Time, n int) {
	if now.Sub(g.last) > gateWindow { // nothing did for a while, which says nothing about the speed
		g.from, g.last, g.moved, g.held = now, now, 0, false
		return
	}
	g.last = now
	g.moved += int64(n)
	span := now.Sub(g.from)
	switch {
	case span < gateWindow:
		return
	case !g.held:
		g.speed, g.asOf = float64(g.moved)/span.Seconds(), now
	case now.Sub(g.asOf) > gateMemory:
		g.speed = 0
	}
	g.from, g.moved, g.held = now, 0, false
}

// delay returns how long n bytes that have moved have to be waited for, and what ends that early.
func (g *gate) delay(now time.Time, n int) (time.Duration, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	last := g.last
	g.measure(now, n)
	if g.n == 0 || g.speed == 0 {
		return 0, nil
	}
	g.held = true
	if g.next.Before(last) { // what these bytes took by themselves counts
		g.next = last
	}
	g.next = g.next.Add(time.Duration(float64(n) / (g.speed * gateShare) * float64(time.Second)))
	if most := now.Add(gatePause); g.next.After(most) {
		g.next = most
	}
	return max(g.next.Sub(now), 0), g.free
}

// pass is called when n bytes have moved, and waits until more may, or hurry is closed.
func (g *gate) pass(ctx context.Context, n int, hurry <-chan struct{}) {
	select {
	case <-hurry:
		return
	default:
	}
	wait, free := g.delay(time.Now(), n)
	if wait == 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-free:
	case <-hurry:
	case <-timer.C:
	case <-ctx.Done():
	}
}
