package fanotify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUnsupported means that the kernel or the file system has no pre-content events.
var ErrUnsupported = errors.New("no pre-content events here; they take Linux 6.14 or later with fanotify, and files on ext4, xfs or btrfs")

// errCrowd is the answer to a reader for whom there is no slot.
var errCrowd = errors.New("too many reads wait")

// A File is the identity of a file on this machine.
type File struct{ Dev, Ino uint64 }

// FileOf returns the identity of an open file.
func FileOf(f *os.File) (File, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return File{}, err
	}
	var out File
	ctl := conn.Control(func(fd uintptr) { out, err = fileOf(int(fd)) })
	return out, errors.Join(err, ctl)
}

func fileOf(fd int) (File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return File{}, os.NewSyscallError("fstat", err)
	}
	return File{Dev: uint64(st.Dev), Ino: st.Ino}, nil
}

// An Event is a reader that waits for bytes [Off, Off+Len) of a marked file. They may reach behind its end. A File that is zero is not
// known: whoever read the event died at once.
type Event struct {
	File     File
	Off, Len int64
}

// A Handler returns nil when the bytes are there. With an error the reader gets EIO, unless ctx has ended: then it waits for a
// successor.
type Handler func(ctx context.Context, e Event) error

// A Group is a fanotify group with its log. Mark and Unmark may be called concurrently, also while Run runs.
type Group struct {
	file  *os.File
	log   *eventLog
	drain sync.WaitGroup // what answers events of this process behind Run
}

// New returns a group without marks. It needs CAP_SYS_ADMIN.
func New() (*Group, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_PRE_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_QUEUE|unix.FAN_UNLIMITED_MARKS,
		unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC)
	if err != nil {
		return nil, unsupported(os.NewSyscallError("fanotify_init", err))
	}
	log, err := newLog()
	if err != nil {
		_ = unix.Close(fd) // it has no marks
		return nil, err
	}
	return &Group{file: os.NewFile(uintptr(fd), "fanotify"), log: log}, nil
}

// Adopt returns the group of a predecessor from what its Files returned there. It closes the files on an error.
func Adopt(files []*os.File) (*Group, error) {
	if len(files) != 2 {
		for _, f := range files {
			_ = f.Close() // whatever it was
		}
		return nil, fmt.Errorf("%d files, want a group and its log", len(files))
	}
	log, err := openLog(files[1])
	if err != nil {
		_ = files[0].Close() // it was not used
		return nil, err
	}
	return &Group{file: files[0], log: log}, nil
}

// ID tells the group from others on this machine, also to a successor.
func (g *Group) ID() (File, error) { return FileOf(g.log.file) }

// Files returns what Adopt takes. They belong to the group.
func (g *Group) Files() []*os.File { return []*os.File{g.file, g.log.file} }

// Links are what /proc shows of the descriptors of a group's Files.
func Links() []string { return []string{"anon_inode:[fanotify]", "/memfd:" + logName + " (deleted)"} }

// Close gives the group up. If nobody else holds it, readers of marked files go on, whatever is there. Run must have returned.
func (g *Group) Close() error {
	err := g.file.Close()
	g.drain.Wait()
	return errors.Join(err, g.log.close())
}

// Mark has readers of the file wait that open it from now on. Descriptors from before, f among them, raise no events.
func (g *Group) Mark(f *os.File) error { return g.mark(f, unix.FAN_MARK_ADD) }

// Unmark lets all readers of the file go on. A file that is not marked is no error.
func (g *Group) Unmark(f *os.File) error {
	if err := g.mark(f, unix.FAN_MARK_REMOVE); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func (g *Group) mark(f *os.File, flag uint) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	ctl := conn.Control(func(fd uintptr) {
		err = g.control(func(group int) error {
			return os.NewSyscallError("fanotify_mark", unix.FanotifyMark(group, flag, unix.FAN_PRE_ACCESS, int(fd), ""))
		})
	})
	if err := errors.Join(unsupported(err), ctl); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}

// control calls f with the group's descriptor, which stays as it is: os.File.Fd would make it one that blocks.
func (g *Group) control(f func(fd int) error) error {
	conn, err := g.file.SyscallConn()
	if err != nil {
		return err
	}
	if ctl := conn.Control(func(fd uintptr) { err = f(int(fd)) }); ctl != nil {
		return ctl
	}
	return err
}

// unsupported adds ErrUnsupported to the errors of kernels and file systems that cannot do it.
func unsupported(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// Run has events handled until ctx ends: first those of a predecessor, then new ones, each in a goroutine of its own. Events of this process
// itself are answered at once: what it writes and reads of marked files is its own matter, and it must not read them by way of a
// mount. What was not answered in the end stays in the log. Run returns when all handlers have. Until Close, events of this process are
// answered all the same, so that what it still writes comes to an end.
func (g *Group) Run(ctx context.Context, handle Handler) error {
	r := &run{Group: g, handle: handle, pid: os.Getpid(), spare: reserve(), debts: &debts{loose: map[int]*debt{}}}
	defer func() {
		g.drain.Go(func() { r.answerOwn(ctx) }) // ends with Close; before the wait, for handlers may be writing
		r.handlers.Wait()
	}()
	if err := g.file.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = g.file.SetReadDeadline(time.Unix(1, 0)) // it worked above
	})
	defer stop()
	if err := r.inherit(ctx); err != nil {
		return err
	}
	for {
		err := r.next(ctx)
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
	}
}

// answerOwn answers events of this process and leaves others to a successor.
func (r *run) answerOwn(ctx context.Context) {
	over, cancel := context.WithCancel(ctx)
	cancel()
	leave := func(ctx context.Context, _ Event) error { return ctx.Err() }
	own := &run{Group: r.Group, handle: leave, pid: r.pid, spare: r.spare, debts: r.debts}
	if err := r.file.SetReadDeadline(time.Time{}); err != nil {
		return
	}
	for own.next(over) == nil {
	}
	own.handlers.Wait()
}

// reserve returns how many slots stay free, so that waiting readers take no more than half of the descriptors the process may
// have, but one slot at the least.
func reserve() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur/2 >= slots {
		return 1
	}
	return slots - int(limit.Cur/2)
}

// run is what Run keeps.
type run struct {
	*Group
	handle   Handler
	pid      int
	spare    int
	debts    *debts
	handlers sync.WaitGroup
}

// next reads one event and has it handled.
func (r *run) next(ctx context.Context) error {
	i, left, ok := r.log.take()
	if !ok { // not before as many events as there are slots wait for one goroutine to run
		time.Sleep(time.Millisecond)
		return nil
	}
	s := r.log.slot(i)
	n, joined, err := r.read(ctx, i)
	if err != nil || n < metadataSize || s.fd() < 0 { // of an event without a descriptor the kernel has told the reader
		r.log.clear(i)
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.EROFS) {
			return nil // likewise
		}
		return err
	}
	if joined {
		return nil
	}
	fd := s.fd()
	if s.pid() == r.pid {
		r.answer(i, fd, nil)
		return nil
	}
	s.identify()
	if left < r.spare {
		r.answer(i, fd, errCrowd)
		return nil
	}
	r.handlers.Go(func() { r.settle(ctx, i, fd) })
	return nil
}

// read waits for an event and reads it into slot i; see readSafely.
func (r *run) read(ctx context.Context, i int) (n int, joined bool, err error) {
	conn, err := r.file.SyscallConn()
	if err != nil {
		return 0, false, err
	}
	wait := conn.Read(func(group uintptr) bool {
		n, joined, err = r.readSafely(ctx, int(group), i)
		return !errors.Is(err, unix.EAGAIN)
	})
	if wait != nil {
		return 0, false, wait
	}
	return n, joined, os.NewSyscallError("read", err)
}

// readEvent reads what is there.
func readEvent(group int, s slot) (int, error) {
	for {
		n, err := unix.Read(group, s[:identity])
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// settle handles the event in slot i, and answers it unless it fails and ctx has ended. fd is its descriptor.
func (r *run) settle(ctx context.Context, i, fd int) {
	err := r.handle(ctx, r.log.slot(i).event())
	if err != nil && ctx.Err() != nil {
		return // fd stays open, or another event would get its number
	}
	r.answer(i, fd, err)
}

// answer lets the reader go on or fail, and frees slot and descriptor, in this order.
func (r *run) answer(i, fd int, cause error) {
	_ = r.reply(r.log.slot(i), cause) // ENOENT: answered before, by a predecessor that died here
	r.log.clear(i)
	_ = unix.Close(fd) // an event's
}

// reply answers an event.
func (g *Group) reply(s slot, cause error) error {
	response := unix.FanotifyResponse{Fd: int32(s.fd()), Response: unix.FAN_ALLOW}
	if cause != nil {
		response.Response = unix.FAN_DENY | uint32(unix.EIO)<<24
	}
	err := g.respond(response)
	if errors.Is(err, unix.EINVAL) && cause != nil { // it takes no error number
		response.Response = unix.FAN_DENY
		err = g.respond(response)
	}
	return err
}

func (g *Group) respond(r unix.FanotifyResponse) error {
	buf := encodeResponse(r)
	_, err := g.file.Write(buf[:])
	return err
}
