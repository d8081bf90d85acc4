package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// matePause is how long after a mate could not be started it is tried again.
const matePause = time.Second

// takeLead notes the listener, and starts a mate if there is anything to keep.
func (s *server) takeLead(l *net.UnixListener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listener = l
	s.ensureMateLocked()
}

// ensureMateLocked starts a mate if there is none, something is kept, and this keeper leads. When that fails keepMate tries again.
func (s *server) ensureMateLocked() {
	if s.other != nil || len(s.mate) == 0 || len(s.files) == 0 || s.listener == nil {
		return
	}
	c, err := s.startMateLocked()
	if err != nil {
		fmt.Fprintf(os.Stderr, "keeper: no mate: %v\n", err)
	}
	s.other = c
	select { // what keepMate was not told yet is out of date
	case <-s.started:
	default:
	}
	s.started <- c
}

// keepMate starts another mate when one has gone.
func (s *server) keepMate(ctx context.Context) {
	for {
		var c *Client
		select {
		case <-ctx.Done():
			return
		case c = <-s.started:
		}
		var gone <-chan struct{}
		if c != nil {
			gone = c.Gone()
		}
		timer := time.NewTimer(matePause)
		if c != nil {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
		case <-gone:
		case <-timer.C: // none could be started
		}
		if c != nil {
			_ = c.Close() // it has gone, or leads from now on
		}
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		s.other = nil
		s.ensureMateLocked()
		s.mu.Unlock()
	}
}

// startMateLocked starts a mate and gives it all that is kept.
func (s *server) startMateLocked() (*Client, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "mate"), os.NewFile(uintptr(pair[1]), "mate")
	defer ours.Close()
	defer theirs.Close()
	listener, err := s.listener.File()
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	conn, err := fileConn(ours)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(s.mate[0], s.mate[1:]...) //nolint:noctx // it has to outlive every context
	cmd.ExtraFiles, cmd.Stderr, cmd.Dir = []*os.File{listener, theirs}, os.Stderr, "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go func() { _ = cmd.Wait() }() // so that no zombie stays; ends with the mate, or with this process
	s.otherPID = cmd.Process.Pid
	c := newClient(conn)
	for name, fds := range s.files {
		if _, _, err := c.askWithin(matePatience, 'P', name, fds); err != nil {
			return nil, errors.Join(err, c.Close(), cmd.Process.Kill())
		}
	}
	s.endMate = cmd.Process.Kill
	return c, nil
}

// tellMateLocked passes a request on. When that fails the mate is gone, or hangs and is ended, and keepMate starts another one.
func (s *server) tellMateLocked(op byte, name string, fds []int) {
	if s.other == nil {
		s.ensureMateLocked()
		return
	}
	if _, _, err := s.other.askWithin(matePatience, op, name, fds); err != nil {
		_ = s.other.conn.Close()
		_ = s.endMate() // or it would lead too when it goes on; it may have gone
	}
}

// inheritedConn returns a connection that this process was started with.
func inheritedConn(fd uintptr) (*net.UnixConn, error) {
	file := os.NewFile(fd, "leader")
	defer file.Close()
	return fileConn(file)
}

func fileConn(file *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("keeper: no connection was inherited: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("keeper: the inherited connection is of another kind"), c.Close())
	}
	return u, nil
}
