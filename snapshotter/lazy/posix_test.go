package lazy

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// overlay mounts the lower folders, the topmost first, and above them an upper folder if there is one. It is removed with the test.
func overlay(t testing.TB, w *world, upper string, lower ...string) (merged string) {
	t.Helper()
	merged = t.TempDir()
	options := "lowerdir=" + strings.Join(lower, ":")
	if upper != "" {
		options += ",upperdir=" + upper + ",workdir=" + filepath.Join(w.dir, "work")
		check(t, os.MkdirAll(upper, 0o755))
		check(t, os.MkdirAll(filepath.Join(w.dir, "work"), 0o755))
	}
	check(t, unix.Mount("overlay", merged, "overlay", 0, options))
	t.Cleanup(func() { check(t, unix.Unmount(merged, 0)) })
	return merged
}

// change changes a file by a process of its own, whose reads are held, and returns what it said was wrong.
func change(t testing.TB, how, name string) (fault string) {
	t.Helper()
	cmd := self(t, "change", how, name)
	cmd.Stderr = nil
	out, err := cmd.CombinedOutput()
	if err != nil {
		return err.Error() + ": " + string(out)
	}
	return ""
}

// An overlay copies a file up with all its bytes, cold ones too, whatever is changed of it.
func TestRootOverlayCopiesUpWhatItReads(t *testing.T) { drivers(t, testOverlay) }

func testOverlay(t *testing.T, w *world) {
	n := w.node(t, os.Stderr)
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
	upper := filepath.Join(w.dir, "upper")
	merged := overlay(t, w, upper, w.target)
	for _, c := range []struct {
		how, name, copied, more string
	}{
		{"append", "models/model.bin", "models/model.bin", "x"}, {"chmod", "fw3/lib0.so", "fw3/lib0.so", ""},
		{"xattr", "fw1/lib0.so", "fw1/lib0.so", ""}, {"rename", "fw0/lib0.so", "fw0/lib0.so.new", ""},
	} {
		if fault := change(t, c.how, filepath.Join(merged, c.name)); fault != "" {
			t.Errorf("%s: %s", c.how, fault)
			continue
		}
		got, err := os.ReadFile(filepath.Join(upper, c.copied))
		check(t, err)
		if !bytes.Equal(got, append(bytes.Clone(w.files[c.name]), c.more...)) {
			t.Errorf("%s: copied up with other bytes", c.how)
		}
	}
	info, err := os.Stat(filepath.Join(merged, "fw3/lib0.so"))
	check(t, err)
	if info.Mode() != 0o640 {
		t.Errorf("mode %v, want what was changed", info.Mode())
	}
	if got := xattrs(t, filepath.Join(merged, "fw1/lib0.so")); !slices.Contains(got, "user.changed=yes") {
		t.Errorf("xattrs %q, want what was set", got)
	}
	if _, err := os.Stat(filepath.Join(merged, "fw0/lib0.so")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was renamed: %v", err)
	}
	w.wantSums(t, "read", w.names("")...) // below nothing has changed
	above := *w
	above.target = merged
	above.wantDirect(t, "fw3/lib3.so")
}

// Nothing can be changed in a mount.
func TestRootMountsTakeNoWrites(t *testing.T) { drivers(t, testNoWrites) }

func testNoWrites(t *testing.T, w *world) {
	n := w.node(t, os.Stderr)
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
	for _, how := range []string{"append", "chmod", "xattr", "rename", "remove", "truncate", "link", "create"} {
		if fault := change(t, how, filepath.Join(w.target, "fw3/lib0.so")); !strings.Contains(fault, unix.EROFS.Error()) {
			t.Errorf("%s: %q, want that the file system is read-only", how, fault)
		}
	}
	w.wantSums(t, "read", "fw3/lib0.so")
}

// A mount tells how long names may be, which overlays of nothing else depend upon, and how large it is.
func TestRootMountsTellTheirSize(t *testing.T) { drivers(t, testSize) }

func testSize(t *testing.T, w *world) {
	n := w.node(t, os.Stderr)
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
	var st unix.Statfs_t
	check(t, unix.Statfs(w.target, &st))
	var least uint64
	for i := range w.img.Blobs {
		least += uint64(w.img.Blobs[i].DeviceSize) / 4096
	}
	if st.Namelen != 255 || st.Bsize != 4096 || st.Frsize != 4096 || st.Bfree != 0 || st.Bavail != 0 {
		t.Errorf("%+v, want names of 255 bytes, blocks of 4096, and none of them free", st)
	}
	if st.Blocks < least || st.Blocks > least+1000 { // and the bootstrap, where the driver counts it
		t.Errorf("%d blocks, want the %d of the image's devices", st.Blocks, least)
	}
	merged := overlay(t, w, "", filepath.Join(w.target, "models"), filepath.Join(w.target, "odd"))
	out, err := exec.CommandContext(t.Context(), "ls", "-d", filepath.Join(merged, "model.bin"), filepath.Join(merged, "dir")).CombinedOutput()
	if err != nil {
		t.Errorf("an overlay of the mount alone: %v: %s", err, out)
	}
}
