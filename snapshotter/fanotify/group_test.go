package fanotify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s and REQUIRE_TOOLS=1", what)
	}
	t.Skipf("SKIPPED: %s", what)
}

// newGroup returns a group and a sparse file of 1 MiB that it marks. What writes to the file was opened before.
func newGroup(t testing.TB) (*Group, *os.File) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "needs root")
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	check(t, err)
	t.Cleanup(func() { _ = f.Close() })
	check(t, f.Truncate(1<<20))
	g, err := New()
	if err == nil {
		err = g.Mark(f)
	}
	if errors.Is(err, ErrUnsupported) {
		missing(t, err.Error())
	}
	check(t, err)
	t.Cleanup(func() { _ = g.Close() }) // it may be closed already
	return g, f
}

// start runs the group until the returned function is called.
func start(t testing.TB, g *Group, handle Handler) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx, handle) }() // ends with cancel, waited for in stop
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// read reads 4 KiB of the file at block n in a process of its own. It is killed when the test hangs.
func read(t testing.TB, f *os.File, n int) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "dd", "if="+f.Name(), "bs=4096", fmt.Sprint("skip=", n), "count=1", "status=none")
	var out bytes.Buffer
	cmd.Stdout = &out
	check(t, cmd.Start())
	return cmd, &out
}

func TestRootReaderWaitsForItsRange(t *testing.T) {
	g, f := newGroup(t)
	id, err := FileOf(f)
	check(t, err)
	want := bytes.Repeat([]byte{7}, 4096)
	events := make(chan Event, 10)
	start(t, g, func(_ context.Context, e Event) error {
		events <- e
		_, err := f.WriteAt(want, e.Off)
		return err
	})
	cmd, out := read(t, f, 5)
	check(t, cmd.Wait())
	if !bytes.Equal(out.Bytes(), want) {
		t.Error("other bytes were read than the handler wrote")
	}
	if e := <-events; e.File != id || e.Off != 5*4096 || e.Len != 4096 {
		t.Errorf("event %+v of file %+v", e, id)
	}
	check(t, g.Unmark(f))
	check(t, g.Unmark(f))
	cmd, _ = read(t, f, 6)
	check(t, cmd.Wait())
	if len(events) > 0 {
		t.Errorf("without a mark there was event %+v", <-events)
	}
}

func TestRootFailedRangeIsAnErrorOfThatRead(t *testing.T) {
	g, f := newGroup(t)
	start(t, g, func(_ context.Context, e Event) error {
		if e.Off == 0 {
			return errors.New("nobody has it")
		}
		return nil
	})
	cmd, out := read(t, f, 0)
	if err := cmd.Wait(); err == nil || out.Len() > 0 {
		t.Errorf("read %d bytes, %v", out.Len(), err)
	}
	cmd, out = read(t, f, 1)
	if err := cmd.Wait(); err != nil || out.Len() != 4096 {
		t.Errorf("read %d bytes, %v", out.Len(), err)
	}
}

func TestRootOwnProcessIsNotHeld(t *testing.T) {
	g, f := newGroup(t)
	start(t, g, func(context.Context, Event) error { return errors.New("asked") })
	own, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
	check(t, err)
	defer own.Close()
	_, err = own.WriteAt([]byte("x"), 0)
	check(t, err)
	_, err = own.ReadAt(make([]byte, 1), 0)
	check(t, err)
}

// What the first did not answer is answered by the second, who knows it by the log only.
func TestRootSuccessorAnswers(t *testing.T) {
	g, f := newGroup(t)
	files := copies(t, g)
	asked := make(chan Event, 10)
	stop := start(t, g, func(ctx context.Context, e Event) error {
		asked <- e
		<-ctx.Done()
		return ctx.Err()
	})
	first, out1 := read(t, f, 1)
	second, out2 := read(t, f, 2)
	want := map[int64]bool{(<-asked).Off: true, (<-asked).Off: true}
	stop()
	check(t, g.Close())

	g, err := Adopt(files)
	check(t, err)
	t.Cleanup(func() { check(t, g.Close()) })
	id, err := FileOf(f)
	check(t, err)
	orphan := g.log.taken()[0]
	clear(g.log.slot(orphan)[identity:]) // as if the first had died before it noted the file
	got := make(chan Event, 10)
	stop = start(t, g, func(_ context.Context, e Event) error {
		got <- e
		_, err := f.WriteAt(bytes.Repeat([]byte{9}, 4096), e.Off)
		return err
	})
	third, out3 := read(t, f, 3)
	for _, cmd := range []*exec.Cmd{first, second, third} {
		check(t, cmd.Wait())
	}
	for i, out := range []*bytes.Buffer{out1, out2, out3} {
		if !bytes.Equal(out.Bytes(), bytes.Repeat([]byte{9}, 4096)) {
			t.Errorf("reader %d got other bytes", i)
		}
	}
	stop() // an event is cleared behind its answer
	unknown := 0
	for range 3 {
		e := <-got
		delete(want, e.Off)
		if e.File == (File{}) {
			unknown++
		} else if e.File != id {
			t.Errorf("event %+v of file %+v", e, id)
		}
	}
	if len(want) > 0 || unknown != 1 || len(g.log.taken()) > 0 {
		t.Errorf("not handled: %v; %d of an unknown file; %d not cleared", want, unknown, len(g.log.taken()))
	}
}

// copies returns what a second process would hold of a group.
func copies(t testing.TB, g *Group) (out []*os.File) {
	t.Helper()
	for _, f := range g.Files() {
		conn, err := f.SyscallConn()
		check(t, err)
		check(t, conn.Control(func(fd uintptr) {
			var got int
			got, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 100)
			out = append(out, os.NewFile(uintptr(got), f.Name()))
		}))
		check(t, err)
	}
	return out
}

func TestSlotsOfOtherLengthsAreTheWholeFile(t *testing.T) {
	s := slot(make([]byte, slotSize))
	if e := s.event(); e != (Event{Len: math.MaxInt64}) {
		t.Errorf("got %+v", e)
	}
	for i := range s {
		s[i] = 0xff
	}
	if e := s.event(); e.Len < 0 || e.Off < 0 {
		t.Errorf("got %+v", e)
	}
}

func TestLogsOfAnotherSizeAreRefused(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	check(t, err)
	if _, err := openLog(f); err == nil {
		t.Error("took an empty log")
	}
	if _, err := Adopt(nil); err == nil {
		t.Error("took nothing for a group")
	}
}

// What this process writes while it stops comes to an end, and others go on waiting.
func TestRootOwnWritesEndAfterRun(t *testing.T) {
	g, f := newGroup(t)
	files := copies(t, g)
	stop := start(t, g, func(ctx context.Context, _ Event) error {
		<-ctx.Done()
		return ctx.Err()
	})
	own, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
	check(t, err)
	defer own.Close()
	stop()
	cmd, out := read(t, f, 1)
	_, err = own.WriteAt(bytes.Repeat([]byte{3}, 4096), 4096)
	check(t, err)
	check(t, g.Close())
	g, err = Adopt(files)
	check(t, err)
	t.Cleanup(func() { check(t, g.Close()) })
	start(t, g, func(context.Context, Event) error { return nil })
	check(t, cmd.Wait())
	if !bytes.Equal(out.Bytes(), bytes.Repeat([]byte{3}, 4096)) {
		t.Error("other bytes were read than were written")
	}
}

// Handlers that write when Run is told to end come to an end.
func TestRootRunEndsWithHandlersThatWrite(t *testing.T) {
	g, f := newGroup(t)
	write := writer(t, f, 4)
	asked := make(chan bool)
	stop := start(t, g, func(ctx context.Context, e Event) error {
		close(asked)
		<-ctx.Done()
		for range 100 { // the first ones may be answered before Run sees it
			if err := write(ctx, e); err != nil {
				return err
			}
		}
		return nil
	})
	cmd, out := read(t, f, 1)
	<-asked
	stop()
	check(t, cmd.Wait())
	if !bytes.Equal(out.Bytes(), bytes.Repeat([]byte{4}, 4096)) {
		t.Error("other bytes were read than were written")
	}
}
