package snapshotter

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
)

// A host that mounts images no more has one mounted from before, which a container uses.
func TestRootMountedImagesAreUnpackedWithoutAMounter(t *testing.T) {
	h := newHost(t)
	top, _ := h.pull("a")
	mounts, err := h.Prepare(t.Context(), "running", top)
	check(t, err)
	running := t.TempDir()
	check(t, mount.All(mounts, running))
	defer func() { check(t, mount.Unmount(running, 0)) }()
	h.cfg.Mounter = nil
	mounts, err = h.Prepare(t.Context(), "container", top)
	check(t, err)
	if left := h.mounted(); len(left) > 0 {
		t.Errorf("mounted still: %v", left)
	}
	for name, want := range map[string]string{"base": "of the base", "weights": "of the model"} {
		if got, err := h.read(mounts, name); got != want || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, err := os.ReadFile(filepath.Join(running, "weights")); string(got) != "of the model" || err != nil {
		t.Errorf("the running container reads %q, %v", got, err)
	}
}

// The mount is in use by more than containers: nothing is lost, however often it is tried.
func TestRootMountedImagesInUseAreNotUnpacked(t *testing.T) {
	h := newHost(t)
	top, _ := h.pull("a")
	folder := h.mounted()[0]
	used, err := os.Open(filepath.Join(folder, "weights"))
	check(t, err)
	h.cfg.Mounter = nil
	for range 2 {
		if _, err := h.Prepare(t.Context(), "container", top); err == nil || !strings.Contains(err.Error(), folder) {
			t.Fatalf("error %v does not name %s", err, folder)
		}
	}
	check(t, used.Close())
	mounts, err := h.Prepare(t.Context(), "container", top)
	check(t, err)
	if got, err := h.read(mounts, "weights"); got != "of the model" || err != nil {
		t.Errorf("weights: %q, %v", got, err)
	}
}
