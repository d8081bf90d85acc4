package mirror

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// settleAfter is how long after the last write all writes are brought to the disk.
const settleAfter = 5 * time.Second

// markAfter is how long after the first of them it is on the disk that there are some.
const markAfter = time.Second

const unsyncedSuffix = ".unsynced"

// unsynced says, in a file beside the records, in which boot of the machine they have writes that may not be on the disk: nobody waits for it. A process
// that dies leaves them to the kernel. A machine that does leaves any mixture of old and new pages, which nobody can tell from what is right.
type unsynced struct {
	path string       // of the file, which is missing when all is on the disk
	sync func() error // brings all writes to the disk

	settling sync.Mutex // taken before mu
	mu       sync.Mutex // guards the fields below
	marked   bool       // the file is there, with this boot's ID
	closed   bool
	under    int // writes under way
	writes   int // begun and ended, in all
	timer    *time.Timer
}

const bootID = "/proc/sys/kernel/random/boot_id"

func thisBoot() string {
	id, err := os.ReadFile(bootID)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(id))
}

// left reports whether the machine failed with writes that had not reached the disk.
func (u *unsynced) left() bool {
	boot, err := os.ReadFile(u.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	return err != nil || string(boot) != thisBoot()
}

// begin is called before a write, and what it returns behind it.
func (u *unsynced) begin() (end func(), err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, fs.ErrClosed
	}
	if err := u.mark(); err != nil {
		return nil, err
	}
	u.under++
	u.writes++
	return u.end, nil
}

func (u *unsynced) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.under--
	u.writes++
	if u.timer != nil {
		u.timer.Stop()
	}
	if !u.closed {
		u.timer = time.AfterFunc(settleAfter, func() { _ = u.settle(false) }) // in vain: after the next write, or at the end
	}
}

// mark writes the file, and has it on the disk a moment later: callers of the mirror wait for this write, and syncing the file at once would be a
// third of what a small blob takes. The kernel brings the write itself to the disk later than that.
func (u *unsynced) mark() error {
	if u.marked {
		return nil
	}
	if err := os.WriteFile(u.path, []byte(thisBoot()), 0o600); err != nil {
		return err
	}
	u.marked = true
	time.AfterFunc(markAfter, u.syncMark)
	return nil
}

func (u *unsynced) syncMark() {
	u.settling.Lock()
	defer u.settling.Unlock()
	u.mu.Lock()
	marked := u.marked
	u.mu.Unlock()
	if !marked {
		return // all is on the disk
	}
	for _, path := range []string{u.path, filepath.Dir(u.path)} {
		if f, err := os.Open(path); err == nil { // else the next settling decides
			_ = f.Sync() // in vain: as if the machine had failed before
			_ = f.Close()
		}
	}
}

// settle brings all writes to the disk, and removes the file unless there were others meanwhile. The last time ends its use.
func (u *unsynced) settle(last bool) error {
	u.settling.Lock()
	defer u.settling.Unlock()
	u.mu.Lock()
	writes, idle, closed := u.writes, u.under == 0, u.closed
	u.closed = closed || last
	u.mu.Unlock()
	if closed {
		return nil
	}
	if err := u.sync(); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.marked || !idle || u.writes != writes {
		return nil
	}
	u.marked = false
	return os.Remove(u.path)
}
