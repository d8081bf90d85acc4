package lazy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Sweeping, and a mount that goes, leave alone the file of a mount that has just begun.
func TestRootExpandedFilesStayWhileAMountBegins(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 1<<20)
	n := w.node(t, os.Stderr)
	d := n.driver
	begun, err := d.openDevices(t.Context(), w.image(n, Prefetch{None: true}), layoutOf(w.img, Prefetch{None: true}))
	check(t, err)
	d.Settled()
	w.wantFiles(t, d, begun)

	check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
	check(t, n.Unmount(t.Context(), w.target))
	released(t, d)
	w.wantFiles(t, d, begun)

	d.giveUp(begun)
	if left, err := os.ReadDir(d.expandedDir()); err != nil || len(left) > 0 {
		t.Errorf("%d expanded files are left when nobody has them, %v", len(left), err)
	}
}

// wantFiles checks that the devices of expanded blobs have their names.
func (w *world) wantFiles(t *testing.T, d *Driver, devices []*device) {
	t.Helper()
	for _, dev := range devices {
		if _, ok := dev.filler.(*expanded); !ok {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(d.expandedDir(), filepath.Base(dev.file.Name())), &st); err != nil || st.Ino != dev.key.Ino {
			t.Errorf("the file of a mount that begins is gone: %v", err)
		}
	}
}

// Expanded bytes count in the store as long as a mount has them, also those of an earlier process.
func TestRootExpandedFilesCountAgainstTheQuota(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 1<<20)
	n := w.node(t, os.Stderr)
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
	w.wantSums(t, "read", "fw3/lib0.so", "fw3/lib1.so", "fw1/lib0.so", "fw0/lib0.so")
	booked := n.store.Usage().Beside
	onDisk := w.onDisk(t, n.driver)
	if booked < onDisk || booked > onDisk+4*bookStep {
		t.Errorf("%d bytes are counted, %d are on the disk", booked, onDisk)
	}
	second := t.TempDir()
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), second))
	check(t, n.Unmount(t.Context(), second))
	if now := n.store.Usage().Beside; now != booked {
		t.Errorf("a second mount of the same changed %d bytes to %d", booked, now)
	}
	check(t, n.stop()) // which leaves the files to the next one
	again := w.node(t, os.Stderr)
	check(t, again.Mount(t.Context(), w.image(again, Prefetch{None: true}), w.target))
	if now := again.store.Usage().Beside; now != onDisk {
		t.Errorf("%d bytes are counted of %d on the disk", now, onDisk)
	}
	check(t, again.Unmount(t.Context(), w.target))
	released(t, again.driver)
	if now := again.store.Usage().Beside; now != 0 {
		t.Errorf("%d bytes are counted when nothing is left", now)
	}
}

// Where there is no room reads of what has to be expanded fail, and say so; what is mounted stays, and is read again when there is.
func TestRootExpandedFilesWithoutRoomFailTheirReads(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 1<<20)
	var log logbook
	w.quota = 13 << 20 // the blobs take less, with what is expanded more
	n := w.node(t, &log)
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
	w.wantSums(t, "read", "fw3/small/f000", "fw1/small/f000", "fw0/small/f000", "models/model.bin")
	failed := false
	for _, name := range w.names("fw") {
		if failed = exec.CommandContext(t.Context(), "cat", filepath.Join(w.target, name)).Run() != nil; failed {
			break
		}
	}
	if !failed || !strings.Contains(log.String(), "no room to expand") {
		t.Errorf("a read has failed: %v, log: %s", failed, log.String())
	}
	if usage := n.store.Usage(); usage.Beside+usage.Reserved > w.quota {
		t.Errorf("%d bytes are kept, want at most %d", usage.Beside+usage.Reserved, w.quota)
	}
	w.wantSums(t, "read", "models/model.bin")
}

// onDisk returns how many bytes the expanded files take.
func (w *world) onDisk(t *testing.T, d *Driver) (sum int64) {
	t.Helper()
	entries, err := os.ReadDir(d.expandedDir())
	check(t, err)
	for _, e := range entries {
		var st unix.Stat_t
		check(t, unix.Stat(filepath.Join(d.expandedDir(), e.Name()), &st))
		sum += st.Blocks * 512
	}
	return sum
}
