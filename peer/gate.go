package peer

import (
	"context"
	"math"
	"sync"
	"time"
)

const (
	// gateShare is the part of their speed that streams have while they make way.
	gateShare = 0.5
	// gatePause is the longest that one step of a stream is held back, and gateStep the longest step in bytes: nothing stands still for good, and nothing
	// comes in bursts.
	gatePause = 100 * time.Millisecond
	gateStep  = 128 << 10
	// gateWindow is how long their speed is measured for, and gateMemory how long it counts as known: then they are let go for two windows.
	gateWindow = 250 * time.Millisecond
	gateMemory = 20 * time.Second
)

// gate slows down the streams that nobody waits for while readers wait for something: all together to half of the speed that they had before. Links are half
// empty then for what is waited for; and readers that wait all the time, as those of a whole model do, do not keep the rest of the model away from
// everybody. Its zero value is open. It is safe for concurrent use.
type gate struct {
	mu      sync.Mutex // guards the others
	waiting int
	free    chan struct{} // closed when waiting falls to zero; nil while it is zero
	speed   float64       // bytes a second when nothing makes way; zero while not known
	asOf    time.Time     // when that was measured
	window  window        // of the measurement under way
	last    time.Time     // when bytes moved last
	next    time.Time     // when the next may
}

// window is a span of time in which a speed is measured.
type window struct {
	from   time.Time
	moved  int64 // bytes
	settle bool  // what moves is no measure yet: streams have only begun, or bring what came while they were held back
	closed bool  // the gate was, for some of it
}

// close closes the gate until open was called as often.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting++; g.waiting == 1 {
		g.free, g.next = make(chan struct{}), time.Time{}
	}
}

// open takes one close back, and reports whether the gate is open now.
func (g *gate) open() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting--; g.waiting > 0 {
		return false
	}
	close(g.free)
	g.free = nil
	return true
}

// closed reports whether readers wait.
func (g *gate) closed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting > 0
}

// step returns how many bytes a stream should move between two calls of pass.
func (g *gate) step() int {
	if g.closed() {
		return gateStep
	}
	return math.MaxInt
}

// measure takes note that n bytes have moved. mu is held.
func (g *gate) measure(now time.Time, n int) {
	pause := now.Sub(g.last)
	g.last = now
	if pause > gateWindow { // nothing moved for a while, which says nothing about the speed
		g.window = window{from: now, settle: true}
		return
	}
	w := &g.window
	w.moved += int64(n)
	span := now.Sub(w.from)
	if span < gateWindow {
		return
	}
	if !w.settle && !w.closed { // a stream that pauses between two reads makes one window slow, but hardly a few in a row
		g.speed, g.asOf = max(float64(w.moved)/span.Seconds(), g.speed*7/8), now
	}
	g.window = window{from: now, settle: w.closed}
}

// delay returns how long a stream that has moved n bytes has to wait before it moves more, and what ends that early.
func (g *gate) delay(n int) (time.Duration, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, last := time.Now(), g.last
	if g.speed > 0 && now.Sub(g.asOf) > gateMemory {
		g.speed, g.window = 0, window{from: now, settle: true}
	}
	g.measure(now, n)
	if g.waiting == 0 || g.speed == 0 {
		return 0, nil
	}
	g.window.closed = true
	if g.next.Before(last) { // the time that these bytes took by themselves counts
		g.next = last
	}
	g.next = g.next.Add(time.Duration(float64(n) / (g.speed * gateShare) * float64(time.Second)))
	if most := now.Add(gatePause); g.next.After(most) {
		g.next = most
	}
	return max(g.next.Sub(now), 0), g.free
}

// pass is called when a stream has moved n bytes, and waits until it may move more, or hurry is closed: who is waited for makes no way.
func (g *gate) pass(ctx context.Context, n int, hurry <-chan struct{}) {
	select {
	case <-hurry:
		return
	default:
	}
	wait, free := g.delay(n)
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
