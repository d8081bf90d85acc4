package snapshotter

import (
	"context"
	"sync"
)

// locks are mutexes by name whose waiters can leave.
type locks struct {
	mu   sync.Mutex // guards held
	held map[string]chan struct{}
}

func newLocks() locks { return locks{held: map[string]chan struct{}{}} }

// lock waits until it has the name, and returns what gives it back.
func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		busy := l.held[name]
		if busy == nil {
			mine := make(chan struct{})
			l.held[name] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, name)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
