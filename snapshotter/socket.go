package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// A Socket is where containerd asks. It is safe for concurrent use.
type Socket struct {
	path string

	mu       sync.Mutex        // guards the fields below
	listener *net.UnixListener // nil before there was one
	info     fs.FileInfo       // of the path, while the listener is there
	lost     error
	closed   bool
}

// ErrTaken means that another process serves at a socket's path.
var ErrTaken = errors.New("another process serves there; stop it or choose another address")

// ListenLater returns a socket at which nobody listens yet, for that reason. Serve takes it as soon as it can be had.
func ListenLater(path string, reason error) *Socket {
	return &Socket{path: path, lost: lostError(reason)}
}

func lostError(err error) error {
	return fmt.Errorf("containerd does not find this node's snapshotter: %w", err)
}

// Listen takes the socket that containerd asks at, of which only its owner may make use. A socket that another process has left is replaced;
// one at which a process listens is ErrTaken, and a file that is no socket is an error too.
func Listen(ctx context.Context, path string) (*Socket, error) {
	s := &Socket{path: path}
	var err error
	s.listener, s.info, err = take(ctx, path)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func take(ctx context.Context, path string) (*net.UnixListener, fs.FileInfo, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = conn.Close() // only a question
		return nil, nil, fmt.Errorf("%s: %w", path, ErrTaken)
	case errors.Is(err, unix.EAGAIN): // its queue is full
		return nil, nil, fmt.Errorf("%s: %w", path, ErrTaken)
	case !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist):
		return nil, nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, nil, err
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return nil, nil, fmt.Errorf("%s: it is no socket; remove it or choose another address", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, nil, err
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // the path may be another's by then
	info, err := os.Lstat(path)
	if err := errors.Join(err, os.Chmod(path, 0o600)); err != nil {
		return nil, nil, errors.Join(err, l.Close())
	}
	return u, info, nil
}

// Lost returns why containerd finds no snapshotter, or another one, at the path just now; nil when it finds this one.
func (s *Socket) Lost() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// Close removes the socket if it is there still. Connections stay.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var err error
	if s.oursLocked() {
		err = os.Remove(s.path)
	}
	if s.listener == nil {
		return nil
	}
	if closeErr := s.listener.Close(); !errors.Is(closeErr, net.ErrClosed) {
		err = errors.Join(err, closeErr)
	}
	return err
}

// oursLocked reports whether the path leads to the listener. The listener keeps its inode, so that no other socket has the same number.
func (s *Socket) oursLocked() bool {
	if s.info == nil {
		return false
	}
	now, err := os.Lstat(s.path)
	return err == nil && os.SameFile(now, s.info)
}

// recover takes the path again when it was removed or somebody else took it and left. It returns a new listener, or nil where nothing has changed, and what
// was not so when it was called last.
func (s *Socket) recover(ctx context.Context) (l *net.UnixListener, news error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil
	}
	if s.oursLocked() {
		s.lost = nil
		return nil, nil
	}
	was := s.lost
	fresh, info, err := take(ctx, s.path)
	if err != nil {
		s.lost = lostError(err)
		if was == nil || was.Error() != s.lost.Error() {
			news = s.lost
		}
		return nil, news
	}
	if s.listener != nil {
		_ = s.listener.Close() // nobody reaches it any more
	}
	s.listener, s.info, s.lost = fresh, info, nil
	return fresh, nil
}

// usedElsewhere returns an error when the folder of snapshots is no more the one that this process opened.
func (s *Snapshotter) usedElsewhere() error {
	ours, err := s.lock.Stat()
	if err != nil {
		return nil // it is closed
	}
	now, err := os.Stat(s.lock.Name())
	if err == nil && os.SameFile(ours, now) {
		return nil
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return fmt.Errorf("snapshots in %s were removed or moved while in use: put them back, or restart the node, have containerd remove its images, and pull them again", s.cfg.Root)
}
