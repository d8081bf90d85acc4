package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// firstWord is how long a keeper that listens may take to say its first word, before it counts as one that hangs.
	firstWord = 5 * time.Second
	// matePatience is how long a mate may take: less than who asks the leader has.
	matePatience = 4 * time.Second
)

// ErrHung means that a keeper listens and does not answer: Replace.
var ErrHung = errors.New("it hangs")

// Replace starts a keeper in the place of one that hangs, stopped for instance, and ends that one and its mate. The new one has under the name what
// the old one has as descriptors of these links, which /proc shows, in this order. The old one need not answer for that, and no moment
// passes in which nobody holds the files. When it cannot be done the old one stays as it is, and the error names its process.
func Replace(ctx context.Context, cfg Config, name string, links []string) (*Client, error) {
	old, err := hungAt(ctx, cfg.Socket, links)
	if err != nil {
		return nil, fmt.Errorf("keeper at %s: %w: %w; find it by its socket and let it go on (kill -CONT)", cfg.Socket, ErrHung, err)
	}
	defer old.close()
	c, mates, err := old.replace(ctx, cfg, name, links)
	if err != nil {
		return nil, fmt.Errorf("keeper %d at %s: %w, and no other one gets what it has: %w; let it go on (kill -CONT %d)",
			old.pid, cfg.Socket, ErrHung, err, old.pid)
	}
	if cfg.Log != nil {
		cfg.Log.Warn("keeper hung and was replaced", "process", old.pid, "socket", cfg.Socket)
	}
	if err := old.end(mates); err != nil && cfg.Log != nil {
		cfg.Log.Warn("a keeper that hung is not ended", "process", old.pid, "error", err)
	}
	return c, nil
}

// end kills the process, which is stopped, and its mates first: the last one would start another.
func (p process) end(mates []process) error {
	var errs []error
	for _, mate := range mates {
		errs = append(errs, mate.signal(unix.SIGKILL))
		mate.close()
	}
	return errors.Join(append(errs, p.signal(unix.SIGKILL))...)
}

// hungAt returns the process that listens at a socket. When that one has died it is its mate, which has descriptors of these links and does not take the lead.
func hungAt(ctx context.Context, socket string, links []string) (process, error) {
	ctx, cancel := context.WithTimeout(ctx, firstWord)
	defer cancel()
	conn, err := dial(ctx, socket)
	if err != nil {
		return process{}, err
	}
	defer conn.Close()
	p, err := listenerOf(conn)
	if err == nil {
		if err = p.signal(0); err == nil {
			return p, nil
		}
		p.close()
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // of old kernels
		return holderOf(socket, links)
	}
	return process{}, err
}

// replace has a new keeper hold the files of an old one, which stops meanwhile, and returns its mates.
func (p process) replace(ctx context.Context, cfg Config, name string, links []string) (*Client, []process, error) {
	if err := p.signal(unix.SIGSTOP); err != nil {
		return nil, nil, err
	}
	files, err := p.take(links)
	if err != nil {
		return nil, nil, errors.Join(err, p.signal(unix.SIGCONT))
	}
	defer func() {
		for _, f := range files {
			_ = f.Close() // a copy
		}
	}()
	c, err := start(ctx, cfg)
	if err == nil {
		if err = c.Put(name, files); err != nil {
			err = errors.Join(err, c.Close())
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, p.signal(unix.SIGCONT))
	}
	return c, p.mates(links), nil
}

// A process is one that another cannot take the number of.
type process struct{ pid, fd int }

// listenerOf returns the process that listens at the other end of a connection, as the kernel tells. Each keeper that takes the lead calls
// listen(2), which is what the kernel goes by.
func listenerOf(conn *net.UnixConn) (process, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return process{}, err
	}
	var cred *unix.Ucred
	p := process{fd: -1}
	ctl := raw.Control(func(fd uintptr) {
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			p.fd, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		}
	})
	if err := errors.Join(err, ctl); err != nil {
		return process{}, fmt.Errorf("its process is not known: %w", err)
	}
	p.pid = int(cred.Pid)
	if p.pid == os.Getpid() || p.pid == 0 { // it was started by us, and has not yet run
		p.close()
		return process{}, errors.New("its process is not known")
	}
	return p, nil
}

func (p process) close() { closeFD(p.fd) }

func (p process) signal(s unix.Signal) error {
	return os.NewSyscallError("pidfd_send_signal", unix.PidfdSendSignal(p.fd, s, nil, 0))
}

// take returns copies of the process's descriptors of these links, each of which it must have once.
func (p process) take(links []string) (files []*os.File, err error) {
	at, err := p.find(links)
	if err != nil {
		return nil, err
	}
	for i, theirs := range at {
		fd, err := unix.PidfdGetfd(p.fd, theirs, 0)
		if err != nil {
			for _, f := range files {
				_ = f.Close() // a copy
			}
			return nil, os.NewSyscallError("pidfd_getfd", err)
		}
		files = append(files, os.NewFile(uintptr(fd), links[i]))
	}
	return files, nil
}

// find returns the numbers of the process's descriptors of these links.
func (p process) find(links []string) ([]int, error) {
	found, err := p.descriptors()
	if err != nil {
		return nil, err
	}
	out := make([]int, len(links))
	for i, link := range links {
		if len(found[link]) != 1 {
			return nil, fmt.Errorf("it has %d descriptors of %s", len(found[link]), link)
		}
		out[i] = found[link][0]
	}
	return out, nil
}

// descriptors returns the numbers of the process's descriptors by their links.
func (p process) descriptors() (map[string][]int, error) {
	dir := filepath.Join("/proc", strconv.Itoa(p.pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	found := map[string][]int{}
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		fd, numErr := strconv.Atoi(e.Name())
		if err == nil && numErr == nil {
			found[link] = append(found[link], fd)
		}
	}
	return found, nil
}

// holderOf finds the process that has descriptors of these links and listens at a socket, whoever the kernel says does.
func holderOf(socket string, links []string) (process, error) {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has gone
		}
		p := process{pid, fd}
		if _, err := p.find(links); err == nil && p.listensAt(socket) {
			return p, nil
		}
		p.close()
	}
	return process{}, errors.New("its leader has died, and its mate is not found")
}

// listensAt reports whether the process has a descriptor that listens at a socket.
func (p process) listensAt(socket string) bool {
	var want unix.Stat_t
	if err := unix.Stat(socket, &want); err != nil {
		return false
	}
	found, err := p.descriptors()
	if err != nil {
		return false
	}
	for link, fds := range found {
		if !strings.HasPrefix(link, "socket:") {
			continue
		}
		for _, theirs := range fds {
			fd, err := unix.PidfdGetfd(p.fd, theirs, 0)
			if err != nil {
				continue // it was closed
			}
			at, ok := boundTo(fd)
			closeFD(fd)
			if ok && at.Dev == want.Dev && at.Ino == want.Ino {
				return true
			}
		}
	}
	return false
}

// siocUnixFile is SIOCUNIXFILE of linux/un.h: it opens the file that a socket is bound to.
const siocUnixFile = 0x89e0

// boundTo returns the file that a listening socket is bound to.
func boundTo(fd int) (st unix.Stat_t, ok bool) {
	if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens == 0 {
		return st, false
	}
	file, err := unix.IoctlRetInt(fd, siocUnixFile)
	if err != nil {
		return st, false
	}
	defer closeFD(file)
	return st, unix.Fstat(file, &st) == nil
}

// mates returns the processes that it has started and that have these links too.
func (p process) mates(links []string) (out []process) {
	lists, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(p.pid), "task", "*", "children")) // the pattern is right
	for _, name := range lists {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // it has gone
		}
		for word := range strings.FieldsSeq(string(data)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				continue
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue // likewise
			}
			mate := process{pid, fd}
			if _, err := mate.find(links); err != nil {
				mate.close()
				continue
			}
			out = append(out, mate)
		}
	}
	return out
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd) // only held
	}
}
