package fanotify

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// pending has a reader of block 1 wait in a group that then is given up, and returns what a successor gets.
func pending(t *testing.T) (files []*os.File, f *os.File, cmd *exec.Cmd, out *bytes.Buffer) {
	t.Helper()
	g, f := newGroup(t)
	files = copies(t, g)
	asked := make(chan Event, 1)
	stop := start(t, g, func(ctx context.Context, e Event) error {
		asked <- e
		<-ctx.Done()
		return ctx.Err()
	})
	cmd, out = read(t, f, 1)
	<-asked
	stop()
	check(t, g.Close())
	return files, f, cmd, out
}

// writer returns what writes a block of the file as a handler, by a descriptor that raises events of this process.
func writer(t *testing.T, f *os.File, b byte) Handler {
	t.Helper()
	own, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
	check(t, err)
	t.Cleanup(func() { _ = own.Close() })
	return func(_ context.Context, e Event) error {
		_, err := own.WriteAt(bytes.Repeat([]byte{b}, 4096), e.Off)
		return err
	}
}

// The number of an inherited event is something else's in this process, and its handler writes to the marked file.
func TestRootSuccessorAnswersNumbersInUse(t *testing.T) {
	files, f, cmd, out := pending(t)
	g, err := Adopt(files)
	check(t, err)
	t.Cleanup(func() { check(t, g.Close()) })
	number := g.log.slot(g.log.taken()[0]).fd()
	if _, err := fileOf(number); err != nil { // the first Run has left it open
		t.Fatalf("descriptor %d is not in use", number)
	}
	write := writer(t, f, 9)
	begun, others := make(chan bool), make(chan bool)
	stop := start(t, g, func(ctx context.Context, e Event) error {
		if e.Off == 4096 {
			close(begun)
			<-others
		}
		return write(ctx, e)
	})
	<-begun
	second, out2 := read(t, f, 2)
	check(t, second.Wait()) // it does not wait for the first
	close(others)
	check(t, cmd.Wait())
	for _, o := range []*bytes.Buffer{out, out2} {
		if !bytes.Equal(o.Bytes(), bytes.Repeat([]byte{9}, 4096)) {
			t.Error("other bytes were read than the handler wrote")
		}
	}
	stop() // an event is cleared behind its answer
	if len(g.log.taken()) > 0 {
		t.Errorf("%d events are not cleared", len(g.log.taken()))
	}
}

// collide has the event that act raises be given the number of the one that was inherited, as when what had it is closed just before the read. The
// inherited one is handled when release is closed. It reports whether the two were joined.
func collide(t *testing.T, files []*os.File, f *os.File, act func()) (joined bool, release chan bool) {
	t.Helper()
	g, err := Adopt(files)
	check(t, err)
	release = make(chan bool)
	r := &run{Group: g, pid: os.Getpid(), debts: &debts{loose: map[int]*debt{}}, handle: func(_ context.Context, e Event) error {
		if e.Off == 4096 {
			<-release
		}
		_, err := f.WriteAt(bytes.Repeat([]byte{9}, 4096), e.Off) // it raises no events: f is from before the mark
		return err
	}}
	t.Cleanup(func() {
		r.handlers.Wait()
		check(t, g.Close())
	})
	number := g.log.slot(g.log.taken()[0]).fd()
	check(t, r.inherit(t.Context()))
	if r.debts.loose[number] == nil {
		t.Fatalf("number %d is not in use", number)
	}
	act()
	for fd := -1; fd < number; { // so that the event gets no lower one
		fd, err = unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		check(t, err)
		t.Cleanup(func() { _ = unix.Close(fd) })
	}
	check(t, unix.Close(number))
	i, _, _ := g.log.take()
	conn, err := g.file.SyscallConn()
	check(t, err)
	check(t, conn.Read(func(group uintptr) bool {
		_, err = readEvent(int(group), g.log.slot(i))
		return !errors.Is(err, unix.EAGAIN)
	}))
	check(t, err)
	if got := g.log.slot(i).fd(); got != number {
		t.Fatalf("the event has number %d, want %d", got, number)
	}
	r.debts.mu.Lock()
	joined = r.joinLocked(t.Context(), i)
	r.debts.mu.Unlock()
	if !joined {
		r.answer(i, number, nil)
	}
	return joined, release
}

func TestRootEventsOfOneNumberAreAnsweredTogether(t *testing.T) {
	files, f, first, out1 := pending(t)
	var second *exec.Cmd
	var out2 *bytes.Buffer
	joined, release := collide(t, files, f, func() { second, out2 = read(t, f, 2) })
	if !joined {
		t.Error("the new event is not joined to the old one")
	}
	close(release)
	check(t, errors.Join(first.Wait(), second.Wait()))
	for _, o := range []*bytes.Buffer{out1, out2} {
		if !bytes.Equal(o.Bytes(), bytes.Repeat([]byte{9}, 4096)) {
			t.Error("other bytes were read than the handler wrote")
		}
	}
}

// The handler of the old one may be waiting for it.
func TestRootOwnEventWithAnOldNumberEndsTheOldOne(t *testing.T) {
	files, f, first, out := pending(t)
	own, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
	check(t, err)
	defer own.Close()
	wrote := make(chan error, 1)
	joined, release := collide(t, files, f, func() {
		go func() { // ends when its event is answered
			_, err := own.WriteAt([]byte("x"), 3*4096)
			wrote <- err
		}()
	})
	check(t, <-wrote)
	if err := first.Wait(); err == nil || joined || out.Len() > 0 {
		t.Errorf("the old reader got %d bytes, %v; joined: %v", out.Len(), err, joined)
	}
	close(release)
}
