package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// MountEROFS mounts an EROFS image with its devices, all of them files, on a folder. Kernels older than 6.12 mount
// block devices only: for them the files become loop devices. Cluster.Close undoes it when the files are the cluster's.
func MountEROFS(ctx context.Context, image string, devices []string, folder string) error {
	err := mountEROFS(image, devices, folder)
	if errors.Is(err, unix.ENOTBLK) {
		return mountLoops(ctx, image, devices, folder)
	}
	return err
}

func mountLoops(ctx context.Context, image string, devices []string, folder string) error {
	image, err := loop(ctx, image)
	if err != nil {
		return err
	}
	loops := make([]string, len(devices))
	for i, file := range devices {
		if loops[i], err = loop(ctx, file); err != nil {
			return err
		}
	}
	return mountEROFS(image, loops, folder)
}

func mountEROFS(image string, devices []string, folder string) error {
	var options []string
	for _, d := range devices {
		options = append(options, "device="+d)
	}
	if err := unix.Mount(image, folder, "erofs", unix.MS_RDONLY, strings.Join(options, ",")); err != nil {
		return fmt.Errorf("mount %s as erofs on %s: %w", image, folder, err)
	}
	return nil
}

// AttachLoop makes a writable block device of a file, with direct I/O where it can be, so that the file's faults are the device's.
// Cluster.Close frees it when the file is the cluster's.
func AttachLoop(ctx context.Context, file string) (string, error) {
	out, err := command(ctx, "losetup", "--find", "--show", "--direct-io=on", file)
	return strings.TrimSpace(out), err
}

func loop(ctx context.Context, file string) (string, error) {
	out, err := command(ctx, "losetup", "--find", "--show", "--read-only", file)
	return strings.TrimSpace(out), err
}

// detachLoops frees the loop devices of files below dir.
func detachLoops(ctx context.Context, dir string) error {
	out, err := command(ctx, "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")
	if err != nil {
		return nil // no loop devices on this kernel, so none of ours
	}
	var errs []error
	for line := range strings.Lines(out) {
		if name, file, ok := strings.Cut(line, " "); ok && strings.HasPrefix(strings.TrimSpace(file), dir+"/") {
			_, err := command(ctx, "losetup", "--detach", name)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// WaitMounted waits until something is mounted on the folder while the process lives.
func (p *Process) WaitMounted(ctx context.Context, folder string) error {
	return p.waitFor(ctx, "a mount on "+folder, func() bool {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		return err == nil && strings.Contains(string(mounts), " "+folder+" ")
	})
}
