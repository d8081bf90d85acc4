// Package snapshotter makes images readable as file systems. So far it holds what that stands on: mounting a bootstrap with
// its blobs by the kernel's EROFS, straight from plain files.
package snapshotter

import "github.com/shoal-project/shoal/snapshotter/erofs"

// MountEROFS mounts an image whose blobs are all there; see erofs.Mount.
func MountEROFS(bootstrap string, devices []string, target string) error {
	return erofs.Mount(bootstrap, devices, target)
}

// Unmount removes the mount at target, which must not be in use. A target where nothing is mounted is no error.
func Unmount(target string) error { return erofs.Unmount(target) }
