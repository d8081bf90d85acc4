package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	mirror "github.com/shoal-project/shoal/registry-mirror"
	"github.com/shoal-project/shoal/snapshotter/lazy"
)

// byFuse is a Mounter by lazy's driver for FUSE.
type byFuse struct {
	*lazy.Fuse

	reg *registry
}

// Mount implements Mounter.
func (f byFuse) Mount(ctx context.Context, image MountedImage, target string) error {
	return f.Fuse.Mount(ctx, lazy.Image{Name: image.Name, Bootstrap: image.Bootstrap, Blobs: ofRegistry{f.reg, image.Blobs}}, target)
}

// ofRegistry is the blobs of an image.
type ofRegistry struct {
	reg  *registry
	refs []mirror.BlobRef
}

type whole struct{ mirror.Blob }

func (whole) Verified() bool { return true }
func (whole) Prefetch()      {}

// Open implements lazy.Blobs.
func (o ofRegistry) Open(ctx context.Context, b lazy.Blob) (lazy.Reader, error) {
	for _, ref := range o.refs {
		if ref.Digest == b.Digest {
			blob, err := o.reg.Open(ctx, ref)
			return whole{blob}, err
		}
	}
	return nil, os.ErrNotExist
}

// Somebody aborts the connection of a mount by FUSE, to get rid of what hangs. The next container has its image again.
func TestRootAnAbortedMountIsMadeAnew(t *testing.T) {
	h := newHost(t)
	fuse, err := lazy.NewFuse(lazy.Config{})
	need(t, err)
	h.cfg.Mounter = byFuse{fuse, h.reg}
	top, _ := h.pull("a")
	for i := range 2 {
		mounts, err := h.Prepare(t.Context(), fmt.Sprint("container ", i), top)
		check(t, err)
		root := t.TempDir()
		check(t, mount.All(mounts, root))
		got, err := exec.CommandContext(t.Context(), "cat", filepath.Join(root, "weights")).CombinedOutput()
		if string(got) != "of the model" || err != nil {
			t.Errorf("container %d: %q, %v", i, got, err)
		}
		check(t, mount.Unmount(root, 0))
		target := h.mounted()[0]
		held, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
		check(t, err)
		if err := unix.Unmount(target, unix.MNT_FORCE); !errors.Is(err, unix.EBUSY) { // it aborts, and then finds the mount in use
			t.Fatalf("unmount by force: %v", err)
		}
		check(t, unix.Close(held))
	}
}
