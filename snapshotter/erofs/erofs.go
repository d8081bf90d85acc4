// Package erofs mounts a bootstrap with its blobs by the kernel's EROFS, straight from plain files, and tunes such mounts.
package erofs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Mount mounts the EROFS image in the file bootstrap, read-only, at the folder target. devices are its blobs in the
// order of the image's device table: aligned layer tars as they are, blobs with compressed chunks expanded. No loop device is
// involved: the kernel reads the files (Linux 6.12 and later). It needs root.
//
// The error names what is missing. Who mounts must call Unmount.
func Mount(bootstrap string, devices []string, target string, options ...Option) error {
	for _, path := range append([]string{bootstrap}, devices...) {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("mount %s: %w", bootstrap, err)
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("mount %s: %s is no regular file", bootstrap, path)
		}
	}
	if err := mountErofs(bootstrap, devices, target, options); err != nil {
		return fmt.Errorf("mount %s with %d devices at %s: %w%s", bootstrap, len(devices), target, err, hint(err))
	}
	return nil
}

// An Option is a flag of the file system.
type Option string

// Direct has the kernel read the devices past the page cache: their bytes are kept in memory once, not twice. It slows down
// devices that are being written.
const Direct Option = "directio"

// maxOption is the length in bytes of a value that fsconfig(2) takes.
const maxOption = 255

// mountErofs goes through fsconfig(2), one option a call: the one string of mount(2) ends at a page, which is some thirty
// devices, and at a comma.
func mountErofs(source string, devices []string, target string, options []Option) error {
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	for i, path := range append([]string{source}, devices...) {
		key := "device"
		if i == 0 {
			key = "source"
		}
		if path, err = filepath.Abs(path); err != nil {
			return err
		}
		value := path
		if len(path) > maxOption {
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			defer file.Close() // behind FsconfigCreate, which opens it by this name
			value = fmt.Sprintf("/proc/self/fd/%d", file.Fd())
		}
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return fmt.Errorf("%s %s: %w", key, path, err)
		}
	}
	for _, flag := range append([]Option{"ro"}, options...) {
		if err := unix.FsconfigSetFlag(fs, string(flag)); err != nil {
			return fmt.Errorf("option %s: %w", flag, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// hint says what helps against the usual causes.
func hint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return " (mounting needs root)"
	case errors.Is(err, unix.ENODEV):
		return " (this kernel has no EROFS; try modprobe erofs)"
	case errors.Is(err, unix.ENOTBLK):
		return " (this kernel mounts EROFS from block devices only; 6.12 and later take files)"
	}
	return ""
}

// Unmount removes the mount at target, which must not be in use. A target where nothing is mounted is no error.
func Unmount(target string) error {
	if err := unix.Unmount(target, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}
