package lazy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/snapshotter/keeper"
)

// truth writes the files as they should be read, and returns their names there.
func (w *world) truth(t testing.TB, names []string) (out []string) {
	t.Helper()
	for i, name := range names {
		path := filepath.Join(w.dir, fmt.Sprint("truth-", i))
		check(t, os.WriteFile(path, w.files[name], 0o600))
		out = append(out, path)
	}
	return out
}

// soak starts processes that read files at random places in several ways, and one that runs a program.
func (w *world) soak(t testing.TB) (readers []*exec.Cmd) {
	t.Helper()
	names := []string{"models/model.bin", "fw3/lib0.so", "fw1/lib1.so"}
	var paths []string
	for _, name := range names {
		paths = append(paths, filepath.Join(w.target, name))
	}
	truth := strings.Join(w.truth(t, names), ",")
	for _, how := range []string{"read", "mmap", "read", "mmap"} {
		cmd := self(t, "soak", how, strings.Join(paths, ","), truth)
		check(t, cmd.Start())
		readers = append(readers, cmd)
	}
	exe := self(t, "")
	exe.Path, exe.Args = "/bin/sh", []string{"sh", "-c", filepath.Join(w.target, "fw3/true")} // the kernel reads it in a process of its own
	check(t, exe.Start())
	return append(readers, exe)
}

// readAll reads as soak does, and tells of the first fault.
func (w *world) readAll(t testing.TB) <-chan error {
	t.Helper()
	started := w.soak(t)
	done := make(chan error, 1)
	go func() { // ends with its readers, which are bounded
		var err error
		for _, r := range started {
			if e := r.Wait(); e != nil {
				err = errors.Join(err, fmt.Errorf("%v: %w", r.Args[1:], e))
			}
		}
		done <- err
	}()
	return done
}

// The daemon is killed at moments as they come, with readers in read, mmap and exec; whoever comes next answers. Each has a little more of the
// image than the one before, and the last one all of it: so there are readers all the time.
func TestRootReadersOutliveTheDaemon(t *testing.T) {
	needKernel(t)
	const size, deaths = 4 << 20, 50
	w := newWorld(t, size)
	w.pace, w.upto = 10*time.Millisecond, 1
	d := w.daemon(t, Prefetch{None: true})
	done := w.readAll(t)
	for n := range int64(deaths) {
		select {
		case <-time.After(rand.N(100 * time.Millisecond)): // a moment, not a state
		case err := <-done:
			t.Fatalf("after %d deaths there is no reader any more: %v", n, err)
		}
		d.kill()
		if w.upto = size * (n + 1) / deaths; n == deaths-1 {
			w.upto = 0
		}
		d = w.daemon(t, Prefetch{None: true})
	}
	check(t, <-done)
	w.wantSums(t, "read", w.names("")...)
}

// The next daemon has other files under the numbers that its predecessor's readers wait under.
func TestRootReadersOutliveTheirNumbers(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 4<<20)
	w.pace = time.Second
	d := w.daemon(t, Prefetch{None: true})
	done := w.readAll(t)
	eventually(t, "the daemon owes an answer", func() bool { return w.owes(t) })
	d.kill()
	if !w.owes(t) {
		t.Error("nobody waits any more")
	}
	w.pace, w.opened = 0, 100
	w.daemon(t, Prefetch{None: true})
	check(t, <-done)
	w.wantSums(t, "read", w.names("")...)
}

// owes reports whether there is anything in the log of the group that the keepers have.
func (w *world) owes(t testing.TB) bool {
	t.Helper()
	c, err := keeper.Connect(t.Context(), keeper.Config{Socket: w.keeper().Socket})
	check(t, err)
	defer c.Close()
	files, err := c.Get(keptAs)
	check(t, err)
	var owed bool
	for _, f := range files {
		if f == files[len(files)-1] {
			data, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
			check(t, err)
			owed = len(bytes.Trim(data, "\x00")) > 0
		}
		_ = f.Close() // a copy
	}
	return owed
}

// A daemon that stops in order leaves its readers waiting too, and the next one takes over.
func TestRootUpgradeKeepsReadersWaiting(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	d := w.daemon(t, Prefetch{None: true})
	check(t, d.stdin.Close())
	check(t, d.cmd.Wait())
	cmd := self(t, "read", filepath.Join(w.target, "models/model.bin"))
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	eventually(t, "the reader waits", func() bool { return waits(cmd.Process.Pid) })
	w.daemon(t, Prefetch{None: true})
	sum := make([]byte, 64)
	_, err = out.Read(sum)
	check(t, err)
	check(t, cmd.Wait())
	w.wantSums(t, "read", w.names("")...)
}

// waits reports whether a thread of the process waits for a fanotify answer.
func waits(pid int) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", pid))
	for _, name := range tasks {
		if data, _ := os.ReadFile(name); strings.Contains(string(data), "fanotify") {
			return true
		}
	}
	return false
}

// With both keepers gone at once the daemon starts others, which keep the same readers waiting when the daemon dies.
func TestRootKeepersAreReplaced(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	d := w.daemon(t, Prefetch{None: true})
	before := w.pair(t)
	for _, pid := range before {
		check(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	eventually(t, "others have the group", func() bool {
		now := w.pair(t)
		return !slices.Contains(now, before[0]) && !slices.Contains(now, before[1])
	})
	d.kill()
	done := w.readAll(t)
	w.daemon(t, Prefetch{})
	check(t, <-done)
}

// pair waits until there are two keepers with the group, and returns them.
func (w *world) pair(t testing.TB) (out []int) {
	t.Helper()
	eventually(t, "there are two keepers", func() bool {
		c, err := keeper.Connect(t.Context(), keeper.Config{Socket: w.keeper().Socket})
		if err != nil {
			return false
		}
		defer c.Close()
		files, err := c.Get(keptAs)
		for _, f := range files {
			_ = f.Close() // a copy
		}
		leader, mate, askErr := c.Processes()
		out = []int{leader, mate}
		return err == nil && askErr == nil && len(files) > 0 && mate != 0
	})
	return out
}

// With the daemon gone and then its keeper, the keeper's mate lets readers wait, and starts another one, which does so when it goes in turn.
func TestRootReadersOutliveDaemonAndKeepers(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	d := w.daemon(t, Prefetch{None: true})
	d.kill()
	done := w.readAll(t)
	for range 3 {
		victim := w.pair(t)[rand.N(2)]
		check(t, syscall.Kill(victim, syscall.SIGKILL))
		eventually(t, "it has gone", func() bool { return !slices.Contains(w.keepers(), victim) })
	}
	w.pair(t)
	w.daemon(t, Prefetch{})
	check(t, <-done)
	w.wantSums(t, "read", w.names("")...)
}

// With daemon and keepers gone nobody holds readers: when the last copy of the group's descriptor goes, the kernel lets all go on that wait, unanswered, and
// asks about no read any more. They have what is in the files: right bytes, or the zeros of a hole where nothing has come, and never other ones. The
// next start says so, mounts anew, and forgets what was read.
func TestRootMountsWithoutMarksAreMadeAnew(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	d := w.daemon(t, Prefetch{None: true})
	w.wantSums(t, "read", "fw3/lib0.so")
	d.kill()
	name := filepath.Join(w.target, "models/model.bin")
	var waited bytes.Buffer
	waiting := exec.CommandContext(t.Context(), "cat", name)
	waiting.Stdout = &waited
	check(t, waiting.Start())
	eventually(t, "a reader waits", func() bool { return waits(waiting.Process.Pid) })
	w.endKeepers(t)
	_ = waiting.Wait() // an error of the read would be as good
	w.wantBytesOrHoles(t, "models/model.bin", waited.Bytes())
	for _, name := range []string{"fw3/lib0.so", "fw3/lib1.so", "models/model.bin"} {
		got, _ := exec.CommandContext(t.Context(), "cat", filepath.Join(w.target, name)).Output() // the same
		w.wantBytesOrHoles(t, name, got)
	}
	held, err := os.Open(name)
	check(t, err)
	defer held.Close()
	var before, after unix.Stat_t
	check(t, unix.Stat(w.target, &before))
	logged := filepath.Join(w.dir, "log")
	w.log, err = os.Create(logged)
	check(t, err)
	defer w.log.Close()
	w.daemon(t, Prefetch{None: true})
	check(t, unix.Stat(w.target, &after))
	if before.Dev == after.Dev {
		t.Error("the old mount is there still")
	}
	if log, err := os.ReadFile(logged); err != nil || !strings.Contains(string(log), "may be zeros: restart its containers") {
		t.Errorf("nothing tells what was read meanwhile: %s, %v", log, err)
	}
	w.wantSums(t, "read", w.names("")...)
	// Who has a file of the old mount open reads right bytes too, from now on.
	cmd := exec.CommandContext(t.Context(), "sha256sum", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{held}
	old, err := cmd.Output()
	check(t, err)
	now, err := exec.CommandContext(t.Context(), "sha256sum", name).Output()
	check(t, err)
	if strings.Fields(string(old))[0] != strings.Fields(string(now))[0] {
		t.Error("the old mount shows other bytes")
	}
}

// wantBytesOrHoles compares what was read of a file with the image's, where it is not zeros; each page is the one or the other.
func (w *world) wantBytesOrHoles(t testing.TB, name string, got []byte) {
	t.Helper()
	const page = 4096
	want := w.files[name]
	if len(got) > len(want) {
		t.Fatalf("%s: %d bytes, it has %d", name, len(got), len(want))
	}
	for off := 0; off < len(got); off += page {
		end := min(off+page, len(got))
		if !bytes.Equal(got[off:end], want[off:end]) && !bytes.Equal(got[off:end], make([]byte, end-off)) {
			t.Errorf("%s: bytes at %d that the image does not have", name, off)
		}
	}
}

// What was expanded is found again and verified, without the origin.
func TestRootExpandedChunksAreFoundAgain(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	d := w.daemon(t, Prefetch{None: true})
	w.wantSums(t, "read", w.names("fw")...)
	d.kill()
	check(t, unix.Unmount(w.target, 0))
	check(t, os.RemoveAll(filepath.Join(w.dir, "store")))
	check(t, os.Rename(w.origin.dir, w.origin.dir+"-away"))
	w.daemon(t, Prefetch{None: true})
	w.wantSums(t, "read", w.names("fw")...)
}

// A FUSE mount dies with its daemon; the next one mounts anew.
func TestRootFuseIsMountedAnew(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	w.fuse = true
	d := w.daemon(t, Prefetch{None: true})
	w.wantSums(t, "read", "fw3/lib0.so")
	d.kill()
	if data, err := exec.CommandContext(t.Context(), "cat", filepath.Join(w.target, "models/model.bin")).Output(); err == nil {
		t.Errorf("%d bytes are read without the daemon", len(data))
	}
	w.daemon(t, Prefetch{})
	w.wantSums(t, "mmap", w.names("fw3")...)
}

// Who mounts by FUSE where an earlier daemon did not leaves nobody waiting, and no keepers.
func TestRootFuseTakesTheTargetOver(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	d := w.daemon(t, Prefetch{None: true})
	d.kill()
	w.fuse = true
	w.daemon(t, Prefetch{})
	w.wantSums(t, "read", w.names("")...)
	eventually(t, "keepers have gone", func() bool { return len(w.keepers()) == 0 })
}

// Keepers that hang do not keep it from that.
func TestRootFuseEndsHungKeepers(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	d := w.daemon(t, Prefetch{None: true})
	hung := w.pair(t)
	d.kill()
	for _, pid := range hung {
		check(t, syscall.Kill(pid, syscall.SIGSTOP))
	}
	w.fuse = true
	w.daemon(t, Prefetch{})
	eventually(t, "keepers have gone", func() bool { return len(w.keepers()) == 0 })
	w.wantSums(t, "read", "fw3/lib0.so", "models/model.bin")
}

// A daemon that ends before it has claimed what an earlier one mounted leaves it to the next.
func TestRootUnclaimedMountsKeepTheirMarks(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	w.daemon(t, Prefetch{None: true}).kill()
	n, err := w.start(t.Context(), w.keeper(), os.Stderr)
	check(t, err)
	check(t, n.stop())
	w.pair(t)
	d := w.daemon(t, Prefetch{})
	w.wantSums(t, "read", w.names("")...)
	check(t, d.stdin.Close())
	check(t, d.cmd.Wait())
}

// Keepers that hang when a daemon starts are replaced by others, and nobody reads a zero meanwhile.
func TestRootHungKeepersAreReplaced(t *testing.T) {
	needKernel(t)
	for _, hung := range []string{"leader", "both", "mate of a dead leader"} {
		t.Run(hung, func(t *testing.T) {
			w := newWorld(t, 3<<20)
			d := w.daemon(t, Prefetch{None: true})
			before := w.pair(t)
			d.kill()
			if hung != "leader" {
				check(t, syscall.Kill(before[1], syscall.SIGSTOP))
			}
			signal := syscall.SIGSTOP
			if hung == "mate of a dead leader" {
				signal = syscall.SIGKILL
			}
			check(t, syscall.Kill(before[0], signal))
			done := w.readAll(t)
			w.daemon(t, Prefetch{})
			check(t, <-done)
			w.wantSums(t, "read", w.names("")...)
			eventually(t, "others have the group", func() bool {
				now := w.keepers()
				return !slices.Contains(now, before[0]) && !slices.Contains(now, before[1])
			})
			w.pair(t)
		})
	}
}

// Keepers that begin to hang under a daemon are replaced too, before they are needed.
func TestRootKeepersThatBeginToHangAreReplaced(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	d := w.daemon(t, Prefetch{None: true})
	hung := w.pair(t)
	for _, pid := range hung {
		check(t, syscall.Kill(pid, syscall.SIGSTOP))
	}
	eventually(t, "others have the group", func() bool {
		now := w.keepers()
		return len(now) > 0 && !slices.Contains(now, hung[0]) && !slices.Contains(now, hung[1])
	})
	w.pair(t)
	d.kill()
	done := w.readAll(t)
	w.daemon(t, Prefetch{})
	check(t, <-done)
	w.wantSums(t, "read", w.names("")...)
}

// container stands on the target as a container does: on an overlay, which holds the mount when it is gone from the target.
func (w *world) container(t testing.TB) (merged string) {
	t.Helper()
	merged = filepath.Join(w.dir, "merged")
	upper, work := merged+"-upper", merged+"-work"
	for _, dir := range []string{merged, upper, work} {
		check(t, os.Mkdir(dir, 0o755))
	}
	check(t, unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+w.target+",upperdir="+upper+",workdir="+work))
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	return merged
}

// at is the same image, read elsewhere.
func (w *world) at(target string) *world {
	other := *w
	other.target = target
	return &other
}

// left has a daemon mount the image, a container stand on it, and the daemon die.
func (w *world) left(t testing.TB) (merged string) {
	t.Helper()
	d := w.daemon(t, Prefetch{None: true})
	merged = w.container(t)
	d.kill()
	return merged
}

// A start that cannot write records, as on a full disk, takes over what is mounted, or mounts anew, and nobody reads a zero.
func TestRootRecordsThatCannotBeWritten(t *testing.T) {
	needKernel(t)
	for _, what := range []string{"taken over", "mounted anew"} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, 3<<20)
			merged := w.left(t)
			n, err := w.start(t.Context(), w.keeper(), os.Stderr)
			check(t, err)
			t.Cleanup(func() { _ = n.stop() })
			dir := n.driver.recordDir()
			check(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			check(t, unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			image := w.image(n, Prefetch{None: true})
			if what == "taken over" {
				check(t, n.Mount(t.Context(), image, w.target))
				w.wantSums(t, "read", "models/model.bin")
			} else {
				image.Bootstrap += "-other"
				check(t, os.Link(w.boot, image.Bootstrap))
				for range 3 {
					if err := n.Mount(t.Context(), image, w.target); !errors.Is(err, unix.EROFS) {
						t.Errorf("got %v, want %v", err, unix.EROFS)
					}
				}
				n.driver.mu.Lock()
				got := len(n.driver.lingering)
				n.driver.mu.Unlock()
				if got != 1 {
					t.Errorf("%d mounts are looked after for the container, want 1", got)
				}
			}
			w.at(merged).wantSums(t, "read", "models/model.bin", "fw3/lib0.so")
			check(t, unix.Unmount(dir, unix.MNT_DETACH))
			check(t, n.Mount(t.Context(), image, w.target))
			check(t, n.Unmount(t.Context(), w.target))
			w.at(merged).wantSums(t, "read", w.names("")...)
		})
	}
}

// abandon gives up what was left, and runs what sees to it until the test ends; done is closed when it has returned.
func (w *world) abandon(t testing.TB) (stop func(), done <-chan struct{}) {
	t.Helper()
	l, err := Abandon(Config{Dir: filepath.Join(w.dir, "lazy"), Keeper: w.keeper(), Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	check(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() { // ends with stop
		defer close(ended)
		if err := errors.Join(l.Run(ctx), l.Close()); err != nil {
			t.Error(err)
		}
	}()
	stop = func() { cancel(); <-ended }
	t.Cleanup(stop)
	return stop, ended
}

// Where nothing mounts any more, containers get errors for what has not come, and no zeros, until the last has gone.
func TestRootAbandonedMountsShowNoZeros(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	merged := w.left(t)
	waiting := self(t, "read", filepath.Join(merged, "models/model.bin"))
	check(t, waiting.Start())
	eventually(t, "the reader waits", func() bool { return waits(waiting.Process.Pid) })
	_, done := w.abandon(t)
	if err := waiting.Wait(); err == nil {
		t.Error("who waited has read what nobody has fetched")
	}
	if isMounted(w.target) {
		t.Error("it is at the target still")
	}
	for _, name := range []string{"models/model.bin", "fw3/lib0.so"} {
		if out, err := self(t, "read", filepath.Join(merged, name)).Output(); err == nil {
			t.Errorf("%s is read: %s", name, out)
		}
	}
	// This process goes on with the file.
	own, err := os.OpenFile(filepath.Join(w.dir, "store", "sha256-"+w.model().Encoded(), "data"), os.O_RDWR, 0)
	check(t, err)
	_, err = own.ReadAt(make([]byte, 4096), 0)
	check(t, errors.Join(err, own.Close()))
	check(t, unix.Unmount(merged, 0))
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it goes on without containers")
	}
	eventually(t, "keepers have gone", func() bool { return len(w.keepers()) == 0 })
}

// Who mounts again after a start that did not, answers the containers of before.
func TestRootAbandonedMountsAreServedAgain(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	merged := w.left(t)
	stop, _ := w.abandon(t)
	stop()
	n, err := w.start(t.Context(), w.keeper(), os.Stderr)
	check(t, err)
	t.Cleanup(func() { _ = n.stop() })
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
	n.Settled()
	w.at(merged).wantSums(t, "read", "models/model.bin")
	check(t, n.Unmount(t.Context(), w.target))
	w.at(merged).wantSums(t, "read", w.names("")...)
}
