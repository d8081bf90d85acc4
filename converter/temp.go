package converter

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// tempPrefix begins the names of the folders that conversions hold files in.
const tempPrefix = "shoal-convert-"

// tempFolder is a conversion's own folder for temporary files, locked for as long as it is used.
type tempFolder struct {
	path string
	lock *os.File // the folder itself
}

// newTempFolder makes one below parent, the system's if that is "", after it has removed those that killed processes left there.
func newTempFolder(parent string) (*tempFolder, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	sweepTemp(parent)
	for {
		path, err := os.MkdirTemp(parent, tempPrefix)
		if err != nil {
			return nil, err
		}
		lock, err := lockFolder(path)
		switch {
		case err == nil:
			return &tempFolder{path, lock}, nil
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EWOULDBLOCK): // another process swept it before it was locked
		default: // a file system without locks, on which nobody sweeps
			return &tempFolder{path: path}, nil
		}
	}
}

// remove ends the folder with all that is in it.
func (t *tempFolder) remove() error {
	err := os.RemoveAll(t.path)
	if t.lock != nil {
		_ = t.lock.Close() // which unlocks
	}
	return err
}

// sweepTemp removes the folders of this user that nobody has locked.
func sweepTemp(parent string) {
	entries, _ := os.ReadDir(parent) // what can be listed
	for _, e := range entries {
		path := filepath.Join(parent, e.Name())
		if !strings.HasPrefix(e.Name(), tempPrefix) || !e.IsDir() {
			continue
		}
		if lock, err := lockFolder(path); err == nil {
			_ = os.RemoveAll(path) // the next one tries again
			_ = lock.Close()
		}
	}
}

// lockFolder locks a folder of this user that is still there, unless another process has.
func lockFolder(path string) (*os.File, error) {
	lock, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	err = func() error {
		info, err := lock.Stat()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			return fmt.Errorf("%s: %w", path, fs.ErrPermission)
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return err
		}
		now, err := os.Lstat(path)
		if err == nil && !os.SameFile(info, now) {
			err = fs.ErrNotExist
		}
		return err
	}()
	if err != nil {
		_ = lock.Close() // nothing was written
		return nil, err
	}
	return lock, nil
}
