package snapshotter

import (
	"errors"
	"os"
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
