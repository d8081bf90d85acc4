package lazy

import (
	"context"
	"sync"
	"time"
)

const (
	// lead is how long before the steps under way are done, at the rate at which they go, the next one begins: blobs come in the order in which they are
	// wanted, and no link waits for the last bytes of one, which the seed has sent long before all nodes have them.
	lead = 2500 * time.Millisecond
	// leastLead is how many bytes they lack then at the least.
	leastLead = 4 << 20
	// stalled is how long nothing comes before the next step begins in spite of that, and maxStalled how many are under way at the most then.
	stalled    = 2 * time.Second
	maxStalled = 3
	// maxSteps is how many steps are under way at the most.
	maxSteps = 16
)

// pace decides when the steps of a plan begin. It is safe for concurrent use.
type pace struct {
	clock   func() time.Time
	changed chan struct{} // holds one when something has come or a step is done

	mu    sync.Mutex // guards the others
	steps int        // under way
	lacks int64      // bytes that they have yet to bring
	came  int64      // bytes since from
	from  time.Time
	rate  float64 // bytes a second, before from
	moved time.Time
}

func newPace(clock func() time.Time) *pace {
	return &pace{clock: clock, changed: make(chan struct{}, 1), from: clock(), moved: clock()}
}

// wait blocks until the next step may begin: at once while fewer than least are under way. It reports false when ctx has ended.
func (p *pace) wait(ctx context.Context, least int) bool {
	ticker := time.NewTicker(lead / 10)
	defer ticker.Stop()
	for !p.ready(least) {
		select {
		case <-p.changed:
		case <-ticker.C:
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// ready reports whether the next step may begin, as told for wait.
func (p *pace) ready(least int) bool {
	now := p.clock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if passed := now.Sub(p.from); passed >= lead/5 {
		p.rate = (p.rate + float64(p.came)/passed.Seconds()) / 2
		p.came, p.from = 0, now
	}
	switch {
	case p.steps < least:
		return true
	case p.steps >= maxSteps:
		return false
	case now.Sub(p.moved) >= stalled:
		return p.steps < maxStalled
	}
	return p.lacks <= max(leastLead, int64(p.rate*lead.Seconds()))
}

// begin notes that a step of so many bytes begins. What it returns is to be told how many of them are there, and in the end, all.
func (p *pace) begin(length int64) (progress func(done int64)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.steps++
	p.lacks += length
	told, ended := int64(0), false
	return func(done int64) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if ended {
			return
		}
		if done > told { // what is tried again begins at zero
			p.moved = p.clock()
			p.came += done - told
			p.lacks -= done - told
			told = done
		}
		if ended = done >= length; ended {
			p.steps--
		}
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
}
