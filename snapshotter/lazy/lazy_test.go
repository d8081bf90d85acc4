package lazy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/snapshotter/erofs"
)

// logbook takes what is logged.
type logbook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// eventually waits until a state is reached.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// drivers runs a test with each driver.
func drivers(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	needKernel(t)
	for _, fuse := range []bool{false, true} {
		name := "erofs"
		if fuse {
			name = "fuse"
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 6<<20+123)
			w.fuse = fuse
			test(t, w)
		})
	}
}

func TestRootFilesAreReadInEveryWay(t *testing.T) {
	drivers(t, func(t *testing.T, w *world) { testEveryWay(t, w, Prefetch{None: true}) })
	drivers(t, func(t *testing.T, w *world) { testEveryWay(t, w, Prefetch{}) })
}

func testEveryWay(t *testing.T, w *world, ahead Prefetch) {
	t.Helper()
	var log, library logbook
	stdlog.SetOutput(&library) // FUSE's
	defer stdlog.SetOutput(os.Stderr)
	n := w.node(t, &log)
	check(t, n.Mount(t.Context(), w.image(n, ahead), w.target))
	if !w.fuse {
		kb, err := os.ReadFile(filepath.Join("/sys/class/bdi", string(n.driver.mounts[w.target].supers[0]), "read_ahead_kb"))
		if err != nil || string(kb) != "4096\n" {
			t.Errorf("readahead %q, %v", kb, err)
		}
	}
	w.wantSums(t, "mmap", "fw3/lib0.so", "fw1/lib0.so", "models/model.bin")
	w.wantSums(t, "sendfile", "fw3/lib1.so", "fw0/lib1.so")
	w.wantDirect(t, "fw3/lib2.so", "fw0/lib2.so", "models/model.bin")
	w.wantSums(t, "read", w.names("")...)
	// Not from here: a process that serves a file cannot run it, since starting another one may keep all its threads.
	check(t, exec.CommandContext(t.Context(), "sh", "-c", filepath.Join(w.target, "fw3/true")).Run())
	buf := make([]byte, 100)
	size, err := unix.Getxattr(filepath.Join(w.target, "fw3/small/f010"), "user.note", buf)
	check(t, err)
	if got := string(buf[:size]); got != "of fw3/small/f010" {
		t.Errorf("xattr %q", got)
	}
	if strings.Contains(log.String(), "fails") || strings.Contains(library.String(), "splice") {
		t.Errorf("log: %s%s", log.String(), library.String())
	}
	check(t, n.Unmount(t.Context(), w.target))
	check(t, n.Unmount(t.Context(), w.target))
	if w.fuse {
		return
	}
	released(t, n.driver)
	if left, _ := os.ReadDir(n.driver.expandedDir()); len(left) > 0 {
		t.Errorf("%d expanded blobs are left", len(left))
	}
}

// released waits until a driver has let go of all that was unmounted: the kernel takes it down behind the call.
func released(t *testing.T, d *Driver) {
	t.Helper()
	eventually(t, "what was unmounted is released", func() bool {
		d.mounting.Lock()
		defer d.mounting.Unlock()
		d.releaseDead()
		return len(d.lingering) == 0
	})
}

func TestRootMissingBlobFailsItsReadsOnly(t *testing.T) { drivers(t, testMissingBlob) }

func testMissingBlob(t *testing.T, w *world) {
	var log logbook
	n := w.node(t, &log)
	away := filepath.Join(w.dir, "away")
	check(t, os.Rename(w.origin.path(w.model()), away))
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
	cmd := exec.CommandContext(t.Context(), "dd", "if="+filepath.Join(w.target, "models/model.bin"), "bs=4096", "skip=512", "count=1", "status=none")
	out, err := cmd.Output()
	if err == nil || len(out) > 0 {
		t.Errorf("read %d bytes that nobody has, %v", len(out), err)
	}
	w.wantSums(t, "read", w.names("fw")...)
	for _, want := range []string{"lazy read fails", "image=example.com/image:tag", "file=models/model.bin", "offset=20", "sha256:"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %q in the log: %s", want, log.String())
		}
	}
	check(t, os.Rename(away, w.origin.path(w.model())))
	w.wantSums(t, "read", "models/model.bin")
}

// The whole image comes without a reader, and then nothing is asked any more; a second mount needs nothing of the origin, and is not asked at all.
func TestRootWholeImageIsFetchedAhead(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 4<<20)
	n := w.node(t, os.Stderr)
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{}), w.target))
	eventually(t, "all is there", n.allWhole)
	check(t, os.RemoveAll(w.origin.dir))
	w.wantSums(t, "read", w.names("")...)
	second := t.TempDir()
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{}), second))
	defer func() { check(t, n.Unmount(t.Context(), second)) }()
	first := w.target
	w.target = second
	w.wantSums(t, "read", w.names("")...)
	w.target = first
}

// Of an image with a list nothing else is fetched, and the log tells how much that was, and once what of the list the image does not have.
func TestRootListedFilesAloneAreFetchedAhead(t *testing.T) { drivers(t, testListedFiles) }

func testListedFiles(t *testing.T, w *world) {
	var log logbook
	n := w.node(t, &log)
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{Files: []string{"/fw3/small", "/fw1/lib0.so", "/not/there"}}), w.target))
	listed := append(w.names("fw3/small"), "fw1/lib0.so")
	total := 0
	for _, name := range listed {
		total += len(w.files[name])
	}
	want := fmt.Sprintf(`msg="image fetched as far as it was asked for" image=example.com/image:tag bytes=%d `, total)
	eventually(t, "the log tells that it is there", func() bool { return strings.Contains(log.String(), want) })
	if got := log.String(); strings.Count(got, "[/not/there]") != 1 || strings.Count(got, "level=WARN") != 1 {
		t.Errorf("not one warning of what the image does not have: %s", got)
	}
	check(t, os.RemoveAll(w.origin.dir))
	w.wantSums(t, "read", listed...)
	if b, err := n.store.Get(w.model()); err == nil {
		if b.Have().Count() > 0 {
			t.Error("more was fetched than was listed")
		}
		b.Close()
	}
}

func TestRootUnmountedImagesAreServedWhereTheyAreStillInUse(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 4<<20)
	n := w.node(t, os.Stderr)
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
	other := t.TempDir()
	check(t, unix.Mount(w.target, other, "", unix.MS_BIND, ""))
	check(t, n.Unmount(t.Context(), w.target))
	if len(n.driver.lingering) != 1 || isMounted(w.target) {
		t.Errorf("%d mounts are in use elsewhere", len(n.driver.lingering))
	}
	w.target = other
	w.wantSums(t, "read", w.names("")...)
	check(t, erofs.Unmount(other))
	released(t, n.driver)
	if len(n.driver.devices) != 0 {
		t.Errorf("%d devices are left", len(n.driver.devices))
	}
}

// Many processes wait at once for bytes that come slowly; none waits for more than it asked for.
func TestRootManyReadersWaitAtOnce(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 16<<20)
	w.pace = 2 * time.Millisecond
	n := w.node(t, os.Stderr)
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
	name := filepath.Join(w.target, "models/model.bin")
	script := `for i in $(seq 0 127); do dd if="$0" bs=131072 skip=$i count=1 status=none of="$1/$i" & done; wait`
	out := t.TempDir()
	check(t, exec.CommandContext(t.Context(), "sh", "-c", script, name, out).Run())
	for i := range 128 {
		got, err := os.ReadFile(filepath.Join(out, strconv.Itoa(i)))
		check(t, err)
		if !bytes.Equal(got, w.files["models/model.bin"][i<<17:][:1<<17]) {
			t.Errorf("reader %d has other bytes", i)
		}
	}
}

// The order of first reads is remembered, whatever is read again.
func TestRootReadsAreRememberedInTheirOrder(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 4<<20)
	n := w.node(t, os.Stderr)
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
	want := []string{"fw3/lib0.so", "models/model.bin", "fw1/lib0.so", "fw0/lib0.so"}
	w.wantSums(t, "read", append(want, want[0])...)
	got, err := n.driver.Accessed(w.target)
	check(t, err)
	for i := range want {
		want[i] = "/" + want[i]
	}
	if !slices.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
	if _, err := n.driver.Accessed(w.target + "x"); !errors.Is(err, errNotMounted) {
		t.Errorf("where nothing is mounted: %v", err)
	}
}

// What was read before a restart is not known after it, and an order that begins then is none.
func TestRootReadsBeforeARestartAreNotGuessed(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 4<<20)
	for _, read := range []string{"fw3/lib0.so", "fw1/lib0.so"} {
		n, err := w.start(t.Context(), w.keeper(), os.Stderr)
		check(t, err)
		check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
		n.Settled()
		w.wantSums(t, "read", read)
		got, err := n.driver.Accessed(w.target)
		check(t, n.stop())
		if read == "fw3/lib0.so" {
			check(t, err)
			continue
		}
		if !errors.Is(err, errEarlierReads) || !strings.Contains(err.Error(), "example.com/image:tag") {
			t.Errorf("after a restart: %q, %v; want that it is refused", got, err)
		}
	}
}

// mountsAt returns the options of the mounts at a target, the topmost last.
func mountsAt(t testing.TB, target string) (options []string) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	check(t, err)
	for _, m := range mounts {
		options = append(options, m.VFSOptions)
	}
	return options
}

// When nothing is missing any more the image is read past the page cache by whoever comes then. Who came before reads on.
func TestRootCompleteImagesAreReadPastThePageCache(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 4<<20)
	n := w.node(t, os.Stderr)
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{}), w.target))
	before, err := os.Open(filepath.Join(w.target, "models/model.bin"))
	check(t, err)
	defer before.Close()
	eventually(t, "it is mounted anew", func() bool {
		options := mountsAt(t, w.target)
		return len(options) == 1 && strings.Contains(options[0], "directio")
	})
	w.wantSums(t, "read", w.names("")...)
	w.wantSums(t, "mmap", "fw3/lib0.so", "models/model.bin")
	w.wantDirect(t, "fw3/lib0.so", "models/model.bin")
	got, err := io.ReadAll(before)
	check(t, err)
	if !bytes.Equal(got, w.files["models/model.bin"]) {
		t.Error("who had it open reads other bytes")
	}
	check(t, before.Close())
	check(t, n.Unmount(t.Context(), w.target))
	if left := mountsAt(t, w.target); len(left) > 0 {
		t.Errorf("still mounted: %q", left)
	}
	released(t, n.driver)
	if len(n.driver.devices) > 0 {
		t.Errorf("%d devices are kept", len(n.driver.devices))
	}
}
