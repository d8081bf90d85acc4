package snapshotter

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// What containerd was told outlives a power failure: its metadata and ours are synced. So what our answers rely on has to be on the disk
// before them.

// syncFolders has on the disk which names are in the folders.
func syncFolders(paths ...string) error {
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// syncAllAt has everything on the disk that was written to the file system of a path.
func syncAllAt(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd()))), f.Close())
}
