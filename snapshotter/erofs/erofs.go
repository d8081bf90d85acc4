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
	return mountAt(bootstrap, devices, target, options, 0)
}

// Replace is Mount at a target where something is mounted, which it takes away when the new file system is there: who opens a file by the target
// finds the one or the other. Who has a file of the old one open keeps it. It takes Linux 6.5.
func Replace(bootstrap string, devices []string, target string, options ...Option) error {
	if err := mountAt(bootstrap, devices, target, options, moveMountBeneath); err != nil {
		return err
	}
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount what was at %s: %w", target, err)
	}
	return nil
}

// moveMountBeneath is MOVE_MOUNT_BENEATH of linux/mount.h.
const moveMountBeneath = 0x200

// mountAt mounts at a target, or with the flag moveMountBeneath below what is there.
func mountAt(bootstrap string, devices []string, target string, options []Option, flag int) error {
	for _, path := range append([]string{bootstrap}, devices...) {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("mount %s: %w", bootstrap, err)
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("mount %s: %s is no regular file", bootstrap, path)
		}
	}
	tree, err := newTree(bootstrap, devices, options)
	if err == nil {
		err = unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|flag)
		_ = unix.Close(tree) // the mount holds it
	}
	if err != nil {
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

// newTree returns the descriptor of a file system that is mounted nowhere yet. It goes through fsconfig(2), one option a call: the one string of mount(2) ends at a page, which is some thirty
// devices, and at a comma.
func newTree(source string, devices []string, options []Option) (tree int, err error) {
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for i, path := range append([]string{source}, devices...) {
		key := "device"
		if i == 0 {
			key = "source"
		}
		if path, err = filepath.Abs(path); err != nil {
			return -1, err
		}
		value := path
		if len(path) > maxOption {
			file, err := os.Open(path)
			if err != nil {
				return -1, err
			}
			defer file.Close() // behind FsconfigCreate, which opens it by this name
			value = fmt.Sprintf("/proc/self/fd/%d", file.Fd())
		}
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return -1, fmt.Errorf("%s %s: %w", key, path, err)
		}
	}
	for _, flag := range append([]Option{"ro"}, options...) {
		if err := unix.FsconfigSetFlag(fs, string(flag)); err != nil {
			return -1, fmt.Errorf("option %s: %w", flag, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
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

// maxStacked bounds the mounts that lie one upon another at a target.
const maxStacked = 16

// Unmount removes the mount at target, which must not be in use, and what lies below it. A target where nothing is mounted is no error.
func Unmount(target string) error {
	for range maxStacked {
		err := unix.Unmount(target, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	return fmt.Errorf("unmount %s: more than %d mounts, one upon another", target, maxStacked)
}
