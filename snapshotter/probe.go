package snapshotter

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/snapshotter/erofs"
)

// Probe tells whether this host can mount images: it mounts an empty one below the folder dir, and unmounts it. The error names what is
// missing.
func Probe(dir string) error {
	dir, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // in a folder that is swept anyway
	raw, err := bootstrap.Encode(&bootstrap.Image{ChunkSize: 1 << 20, Root: &bootstrap.Inode{Mode: bootstrap.TypeDir | 0o755}})
	if err != nil {
		return err
	}
	boot, target := filepath.Join(dir, "image.boot"), filepath.Join(dir, "fs")
	if err := errors.Join(os.WriteFile(boot, raw, 0o600), os.Mkdir(target, 0o700)); err != nil {
		return err
	}
	if err := erofs.Mount(boot, nil, target); err != nil {
		return err
	}
	return erofs.Unmount(target)
}
