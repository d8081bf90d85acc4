package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// lockFolder takes a folder for this process, which lets it go when it closes the file or ends.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		other := "another process"
		if data, readErr := os.ReadFile(f.Name()); readErr == nil && len(data) > 0 {
			other = "process " + strings.TrimSpace(string(data))
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%s has it; stop that one or give each node a folder of its own", other)
		}
		return nil, errors.Join(fmt.Errorf("snapshots in %s: %w", dir, err), f.Close())
	}
	text := fmt.Sprintln(os.Getpid())
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := f.WriteAt([]byte(text), 0); err != nil { // for the error above only
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

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
