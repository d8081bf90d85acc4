package lazy

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

// soak starts processes that read files at random places in several ways.
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
	exe := exec.CommandContext(t.Context(), filepath.Join(w.target, "fw3/true"))
	check(t, startSoon(exe))
	return append(readers, exe)
}

// startSoon starts a program that the kernel can only read when the daemon answers; the call waits as long.
func startSoon(cmd *exec.Cmd) error { return cmd.Start() }

// The daemon is killed at moments as they come, with readers in read, mmap and exec; whoever comes next answers.
func TestRootReadersOutliveTheDaemon(t *testing.T) {
	needKernel(t)
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	w := newWorld(t, 3<<20)
	w.pace = 4 * time.Millisecond
	d := w.daemon(t, Prefetch{None: true})
	done := make(chan error, 1)
	go func() { // ends with its readers, which are bounded
		var err error
		for _, r := range w.soak(t) {
			if e := r.Wait(); e != nil {
				err = errors.Join(err, fmt.Errorf("%v: %w", r.Args[1:], e))
			}
		}
		done <- err
	}()
	for i := range rounds {
		wait := time.NewTimer(time.Duration(20+37*i%150) * time.Millisecond) // a moment, not a state
		select {
		case <-wait.C:
		case err := <-done:
			check(t, err)
			t.Logf("all was read after %d deaths", i)
			return
		}
		d.kill()
		d = w.daemon(t, Prefetch{None: true})
	}
	check(t, <-done)
	w.wantSums(t, "read", w.names("")...)
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

// With the keeper gone the daemon starts another one, which keeps the same readers waiting when the daemon dies.
func TestRootKeeperIsReplaced(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	d := w.daemon(t, Prefetch{None: true})
	first := listener(w.keeper().Socket)
	check(t, syscall.Kill(first, syscall.SIGKILL))
	eventually(t, "another keeper has the group", func() bool {
		pid := listener(w.keeper().Socket)
		return pid != 0 && pid != first && holdsGroup(pid)
	})
	d.kill()
	readers := w.soak
	done := make(chan error, 1)
	go func() { // ends with its readers, which are bounded
		var err error
		for _, r := range readers(t) {
			err = errors.Join(err, r.Wait())
		}
		done <- err
	}()
	w.daemon(t, Prefetch{})
	check(t, <-done)
}

// holdsGroup reports whether a process has a fanotify group.
func holdsGroup(pid int) bool {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, l := range links {
		if to, _ := os.Readlink(l); strings.Contains(to, "fanotify]") {
			return true
		}
	}
	return false
}

// With daemon and keeper gone nobody holds readers. The next start mounts anew, and forgets what was read.
func TestRootMountsWithoutMarksAreMadeAnew(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	d := w.daemon(t, Prefetch{None: true})
	d.kill()
	w.endKeeper(t)
	name := filepath.Join(w.target, "models/model.bin")
	data, err := exec.CommandContext(t.Context(), "cat", name).Output()
	t.Logf("without daemon and keeper: %d bytes, %v", len(data), err)
	held, err := os.Open(name)
	check(t, err)
	defer held.Close()
	var before, after unix.Stat_t
	check(t, unix.Stat(w.target, &before))
	w.daemon(t, Prefetch{None: true})
	check(t, unix.Stat(w.target, &after))
	if before.Dev == after.Dev {
		t.Error("the old mount is there still")
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

// What was expanded is found again and verified, without the origin.
func TestRootExpandedChunksAreFoundAgain(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 3<<20)
	d := w.daemon(t, Prefetch{None: true})
	w.wantSums(t, "read", w.names("fw")...)
	d.kill()
	check(t, unix.Unmount(w.target, 0))
	check(t, os.RemoveAll(filepath.Join(w.dir, "store")))
	var log logbook
	w.maps = nil
	check(t, os.Rename(w.origin.dir, w.origin.dir+"-away"))
	w.daemon(t, Prefetch{None: true})
	w.wantSums(t, "read", w.names("fw")...)
	if log.String() != "" {
		t.Error(log.String())
	}
}
