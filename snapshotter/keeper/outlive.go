package keeper

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
)

const cgroupRoot = "/sys/fs/cgroup"

// outlive takes a keeper out of the way of what ends its starter: the control group that a service manager kills as a whole, and the kernel's
// choice when memory is short. cgroup is the name of its group below the root; without one it stays where it is.
func outlive(pid int, cgroup string) error {
	id := strconv.Itoa(pid)
	err := os.WriteFile(filepath.Join("/proc", id, "oom_score_adj"), []byte("-1000"), 0o644)
	if cgroup == "" {
		return err
	}
	dir := filepath.Join(cgroupRoot, cgroup)
	if made := os.MkdirAll(dir, 0o755); made != nil {
		return errors.Join(err, made)
	}
	return errors.Join(err, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(id), 0o644))
}
