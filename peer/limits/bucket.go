package limits

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// bucket is the shell around a line: the lock, the clock and the timer.
type bucket struct {
	steps   atomic.Int64 // the present step; freeStep without a limit
	limited atomic.Bool

	mu    sync.Mutex // guards the fields below
	line  line
	timer *time.Timer // runs serve while somebody waits
}

func newBucket() *bucket {
	b := &bucket{line: line{flows: map[string]*flow{}}}
	b.steps.Store(freeStep)
	return b
}

func (b *bucket) set(total, perTask Rate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.line.set(time.Now(), total, perTask)
	b.steps.Store(int64(stepFor(lower(total, perTask))))
	b.limited.Store(total > 0 || perTask > 0)
	b.serveLocked()
}

func (b *bucket) step() int { return int(b.steps.Load()) }

// pace waits until n bytes may pass.
func (b *bucket) pace(ctx context.Context, task string, n int) error {
	for n > 0 && b.limited.Load() {
		step := min(n, b.step())
		if err := b.wait(ctx, task, step); err != nil {
			return err
		}
		n -= step
	}
	return nil
}

func (b *bucket) wait(ctx context.Context, task string, n int) error {
	t := &ticket{n: n, ready: make(chan struct{})}
	b.mu.Lock()
	b.line.join(time.Now(), task, t)
	b.serveLocked()
	b.mu.Unlock()
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
		b.mu.Lock()
		defer b.mu.Unlock()
		b.line.leave(task, t)
		b.serveLocked() // its place in the line may have kept others waiting
		return context.Cause(ctx)
	}
}

// serveLocked lets pass who may, and comes back when the next one may.
func (b *bucket) serveLocked() {
	wait := b.line.serve(time.Now())
	switch {
	case wait == 0 && b.timer != nil:
		b.timer.Stop()
	case wait == 0:
	case b.timer == nil:
		b.timer = time.AfterFunc(wait, b.wake)
	default:
		b.timer.Reset(wait)
	}
}

func (b *bucket) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.serveLocked()
}
