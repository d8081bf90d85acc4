package peer

import (
	"context"
	"sync"
	"time"
)

const (
	// gatePause is the longest that the gate holds back one step of a transfer: nothing stands still for good.
	gatePause = 100 * time.Millisecond
	// gateFor is how long the gate may be closed at a stretch. It gains a gateShare of the time in which nobody waits, and a strainShare of that in which
	// somebody does although it is open: readers that wait all the time, as those of a whole model do, must not keep the rest of the model away
	// from everybody.
	gateFor     = time.Second
	gateShare   = 4
	strainShare = 16
)

// gate holds back what nobody waits for while others wait for something. Its zero value is open. It is safe for concurrent use.
type gate struct {
	mu     sync.Mutex // guards the others
	n      int
	free   chan struct{} // closed when n falls to zero; nil while it is zero
	spent  time.Duration // of gateFor, as of at
	at     time.Time
	strain bool // all of gateFor was spent; it stays open until half of it is there again
}

// account brings what was spent up to date. mu is held.
func (g *gate) account(now time.Time) {
	passed := now.Sub(g.at)
	switch g.at = now; {
	case g.n == 0:
		g.spent -= passed / gateShare
	case g.strain:
		g.spent -= passed / strainShare
	default:
		g.spent += passed
	}
	switch {
	case g.spent >= gateFor:
		g.strain = true
	case g.spent < gateFor/2:
		g.strain = false
	}
	g.spent = min(max(g.spent, 0), gateFor)
}

// close closes the gate until open was called as often.
func (g *gate) close(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.account(now)
	if g.n++; g.n == 1 {
		g.free = make(chan struct{})
	}
}

// open reports whether the gate is open now.
func (g *gate) open(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.account(now)
	if g.n--; g.n > 0 {
		return false
	}
	close(g.free)
	g.free = nil
	return true
}

func (g *gate) closed(now time.Time) bool { return g.opening(now) != nil }

// opening returns what is closed when the gate opens; nil while it is open.
func (g *gate) opening(now time.Time) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.account(now); g.strain {
		return nil
	}
	return g.free
}

// pass waits until the gate is open or hurry is closed, for gatePause at the most.
func (g *gate) pass(ctx context.Context, hurry <-chan struct{}) {
	select {
	case <-hurry:
		return
	default:
	}
	free := g.opening(time.Now())
	if free == nil {
		return
	}
	timer := time.NewTimer(gatePause)
	defer timer.Stop()
	select {
	case <-free:
	case <-hurry:
	case <-timer.C:
	case <-ctx.Done():
	}
}
