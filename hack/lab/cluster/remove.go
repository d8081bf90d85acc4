package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// remove takes away all of a run, in an order in which each step makes the next possible: processes (shims and
// containers too, which are nobody's children), mounts, namespaces, files.
func remove(ctx context.Context, run string) error {
	spaces, err := filepath.Glob(filepath.Join(netnsDir, prefix+run+"-*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range spaces {
		errs = append(errs, killAll(ctx, namespace(filepath.Base(path))))
	}
	dir := filepath.Join(stateDir, dirName+run)
	errs = append(errs, unmountBelow(dir), detachLoops(ctx, dir), removeCgroups(run))
	for _, path := range spaces {
		_, err := command(ctx, "ip", "netns", "delete", filepath.Base(path))
		errs = append(errs, err)
	}
	errs = append(errs, os.RemoveAll(dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove run %s: %w", run, err)
	}
	return nil
}

// killAll kills what runs in the namespace until nothing does.
func killAll(ctx context.Context, ns namespace) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		pids, err := ns.pids(ctx)
		// A thread of ours may be on its way out of there.
		pids = slices.DeleteFunc(pids, func(pid int) bool { return pid == os.Getpid() })
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is fine
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %v of %s do not end: %w", pids, ns, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// unmountBelow detaches all mounts below dir, the newest first.
func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// mountsBelow lists the mount points below dir, the oldest first.
func mountsBelow(dir string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			point := unescape.Replace(fields[4])
			if point == dir || strings.HasPrefix(point, dir+"/") {
				points = append(points, point)
			}
		}
	}
	return points, nil
}

// unescape undoes the escapes of mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// Traces lists what there is of a run: namespaces, control groups, mounts, files, processes.
func Traces(run string) ([]string, error) {
	dir := filepath.Join(stateDir, dirName+run)
	traces, err := filepath.Glob(filepath.Join(netnsDir, prefix+run+"-*"))
	if err != nil {
		return nil, err
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/*" + run + "*")
	if err != nil {
		return nil, err
	}
	traces = append(traces, groups...)
	if _, err := os.Lstat(dir); err == nil {
		traces = append(traces, dir)
	}
	points, err := mountsBelow(dir)
	if err != nil {
		return nil, err
	}
	for _, point := range points {
		traces = append(traces, "mount "+point)
	}
	if loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file"); err == nil {
		for _, path := range loops {
			if data, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(data), dir+"/") {
				traces = append(traces, "loop device of "+strings.TrimSpace(string(data)))
			}
		}
	}
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, path := range cmdlines {
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), dir) {
			traces = append(traces, "process "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return traces, nil
}
