package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/converter/bootstrap"
	mirror "github.com/shoal-project/shoal/registry-mirror"
	"github.com/shoal-project/shoal/snapshotter/erofs"
)

// eager is a Mounter that fetches all of an image before it mounts it. Blobs whose chunks lie as the file system wants them are mounted from
// the store's own files, which have to be pinned; others are expanded into files of its own, next to the bootstrap. Unlike the drivers', its mounts may be read by this process.
type eager struct{ images Images }

// Mount implements Mounter.
func (e eager) Mount(ctx context.Context, image MountedImage, target string) error {
	if err := erofs.Unmount(target); err != nil { // one of a process before this one
		return err
	}
	boot, err := decodeFile(image.Bootstrap)
	if err != nil {
		return err
	}
	x, err := bootstrap.NewExpander()
	if err != nil {
		return err
	}
	defer x.Close()
	refs := map[digest.Digest]mirror.BlobRef{}
	for _, b := range image.Blobs {
		refs[b.Digest] = b
	}
	files := make([]string, len(boot.Blobs))
	for i := range boot.Blobs {
		ref, ok := refs[boot.Blobs[i].Digest]
		if !ok {
			return fmt.Errorf("blob %s: nobody told where it is", boot.Blobs[i].Digest)
		}
		dev := device{boot: boot, index: uint32(i), path: fmt.Sprintf("%s.%d", image.Bootstrap, i)}
		if files[i], err = e.device(ctx, ref, dev, x); err != nil {
			return fmt.Errorf("blob %s: %w", ref.Digest, err)
		}
	}
	return erofs.Mount(image.Bootstrap, files, target)
}

// Unmount implements Mounter.
func (e eager) Unmount(_ context.Context, target string) error { return erofs.Unmount(target) }

// device is a blob as the file system reads it.
type device struct {
	boot  *bootstrap.Image
	index uint32
	path  string // where it is expanded, if it has to be
}

// aligned reports whether the blob is its own device.
func (d device) aligned() bool {
	for _, c := range d.boot.Chunks {
		if c.Blob == d.index && (c.Compressed() || c.Offset != c.DeviceOffset) {
			return false
		}
	}
	return true
}

func (e eager) device(ctx context.Context, ref mirror.BlobRef, d device, x *bootstrap.Expander) (string, error) {
	blob, err := e.images.Open(ctx, ref)
	if err != nil {
		return "", err
	}
	defer blob.Close()
	if err := (&stream{ctx: ctx, blob: blob, size: ref.Size}).awaitAll(); err != nil {
		return "", err
	}
	f, err := blob.File()
	if err != nil {
		return "", err
	}
	if d.aligned() {
		return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	}
	return d.path, d.expand(ctx, f, x)
}

// expand writes the device's file anew.
func (d device) expand(ctx context.Context, stored *os.File, x *bootstrap.Expander) error {
	out, err := os.Create(filepath.Clean(d.path))
	if err != nil {
		return err
	}
	defer out.Close()
	b := &d.boot.Blobs[d.index]
	if err := out.Truncate(b.DeviceSize); err != nil {
		return err
	}
	for i := range d.boot.Chunks {
		c := &d.boot.Chunks[i]
		if c.Blob != d.index {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		data, err := x.Chunk(nil, stored, b, c)
		if err != nil {
			return err
		}
		if _, err := out.WriteAt(data, c.DeviceOffset); err != nil {
			return err
		}
	}
	return out.Close()
}
