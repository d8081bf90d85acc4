package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	maxName  = 64
	maxFiles = 16 // under one name
)

// A server is what a keeper has.
type server struct {
	mate    []string // the command that starts one
	started chan *Client

	mu       sync.Mutex // guards all below
	files    map[string][]int
	conns    map[*net.UnixConn]bool
	listener *net.UnixListener // nil until it leads
	other    *Client           // the mate that runs and has the files, or nil
	otherPID int
	endMate  func() error // kills it
}

func newServer(mate []string) *server {
	return &server{mate: mate, started: make(chan *Client, 1), files: map[string][]int{}, conns: map[*net.UnixConn]bool{}}
}

// Serve keeps files for those who connect, until ctx ends or the last of them leaves and nothing is kept. It closes the listener.
//
// mate, if not empty, is the command of a process that runs Follow and keeps the same files: when one of the two is killed, the other one
// goes on and starts another.
func Serve(ctx context.Context, l *net.UnixListener, mate []string) error {
	return newServer(mate).lead(ctx, l)
}

// Follow keeps the files of the keeper that started this process, and takes its place when it has gone, unless it left in order.
func Follow(ctx context.Context, mate []string) error {
	l, err := Inherited()
	if err != nil {
		return err
	}
	leader, err := inheritedConn(4)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	s := newServer(mate)
	s.join(leader)
	stop := context.AfterFunc(ctx, func() { _ = leader.Close() }) // which ends talk
	s.talk(leader)
	stop()
	if s.leave(leader) || ctx.Err() != nil {
		s.forget()
		return l.Close()
	}
	return s.lead(ctx, l)
}

// lead serves who connects.
func (s *server) lead(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	var talks sync.WaitGroup
	defer s.forget()
	defer talks.Wait()
	defer cancel()
	end := func() {
		_ = l.Close() // more than once
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			_ = c.Close() // its talk ends by this
		}
	}
	defer context.AfterFunc(ctx, end)()
	defer end()
	talks.Go(func() { s.keepMate(ctx) })
	if err := claim(l); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	s.takeLead(l) // before anybody can ask who leads
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("keeper: %w", err)
		}
		s.join(c)
		talks.Go(func() {
			s.talk(c)
			if s.leave(c) {
				_ = l.Close() // which ends lead
			}
		})
	}
}

// claim makes this process the one that the kernel tells who connects: see listenerOf.
func claim(l *net.UnixListener) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	ctl := raw.Control(func(fd uintptr) { err = os.NewSyscallError("listen", unix.Listen(int(fd), unix.SOMAXCONN)) })
	return errors.Join(err, ctl)
}

// forget closes all files.
func (s *server) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fds := range s.files {
		closeAll(fds)
	}
	s.files = nil
}

func (s *server) join(c *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = true
}

// leave reports whether nobody is connected any more and nothing is kept.
func (s *server) leave(c *net.UnixConn) bool {
	_ = c.Close() // nothing is written any more
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	return len(s.conns) == 0 && len(s.files) == 0
}

// talk answers one client until it leaves.
func (s *server) talk(c *net.UnixConn) {
	if err := trusted(c); err != nil {
		_ = send(c, "E"+err.Error(), nil) // whoever it is
		return
	}
	for {
		text, fds, err := receive(c)
		if err != nil {
			return
		}
		if err := s.answer(c, text, fds); err != nil {
			return
		}
	}
}

// answer answers a request. The lock keeps files open until they were sent; an answer is short and does not wait for its reader.
func (s *server) answer(c *net.UnixConn, text string, fds []int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	reply, out := s.handleLocked(text, fds)
	return send(c, reply, out)
}

// handleLocked answers a request; it takes the files over.
func (s *server) handleLocked(text string, fds []int) (reply string, out []int) {
	if len(text) < 2 {
		closeAll(fds)
		return "Eempty request", nil
	}
	op, name := text[0], text[1:]
	kept := s.files[name]
	switch op {
	case 'I':
		closeAll(fds)
		mate := 0
		if s.other != nil {
			mate = s.otherPID
		}
		return fmt.Sprintf("K%d %d", os.Getpid(), mate), nil
	case 'P':
		closeAll(kept)
		s.files[name] = fds
		s.tellMateLocked(op, name, fds)
		return "K", nil
	case 'G':
		closeAll(fds)
		if len(kept) == 0 {
			return "N", nil
		}
		return "K", kept
	case 'D':
		closeAll(append(kept, fds...))
		delete(s.files, name)
		s.tellMateLocked(op, name, nil)
		return "K", nil
	}
	closeAll(fds)
	return fmt.Sprintf("Eunknown request %q", op), nil
}

// OtherEnd returns the process and the user at the other end of a connection, as the kernel tells. The process is 0 when it cannot be seen from here.
func OtherEnd(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	ctl := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(err, ctl)
}

// trusted refuses connections of other users.
func trusted(c *net.UnixConn) error {
	cred, err := OtherEnd(c)
	if err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d is not the keeper's", cred.Uid)
	}
	return nil
}

// send writes one message.
func send(c *net.UnixConn, text string, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err := c.WriteMsgUnix([]byte(text), rights, nil)
	return err
}

// receive reads one message. The files are the caller's.
func receive(c *net.UnixConn) (text string, fds []int, err error) {
	buf, rights := make([]byte, 1+max(maxName, 1024)), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, rn, flags, _, err := c.ReadMsgUnix(buf, rights)
	if err != nil {
		return "", nil, err
	}
	if n == 0 {
		return "", nil, net.ErrClosed
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil {
		return "", nil, err
	}
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(fds)
			return "", nil, err
		}
		fds = append(fds, got...)
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		closeAll(fds)
		return "", nil, errors.New("message too long")
	}
	return string(buf[:n]), fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // only held
	}
}
