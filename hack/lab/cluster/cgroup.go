package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Bounds are what the processes of a host may use together; zero is no bound.
type Bounds struct {
	Memory int64   // bytes, the page cache of its files included
	CPUs   float64 // processors
}

const (
	cgroupDir    = "/sys/fs/cgroup"
	cgroupPeriod = 100_000 // microseconds; the kernel's default
)

// cgroups returns the folders of a host's control groups: one in each hierarchy of version 1, or the one of version 2.
func cgroups(name string) []string {
	if _, err := os.Stat(filepath.Join(cgroupDir, "cgroup.controllers")); err == nil {
		return []string{filepath.Join(cgroupDir, name)}
	}
	return []string{filepath.Join(cgroupDir, "memory", name), filepath.Join(cgroupDir, "cpu", name)}
}

// bound makes the host's control groups and returns argv as it is to be run within them.
func (h *Host) bound(b Bounds, argv []string) ([]string, error) {
	if b == (Bounds{}) {
		return argv, nil
	}
	var script strings.Builder
	dirs := cgroups(prefix + h.c.run + "-" + h.Name)
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("control group of %s: %w", h.Name, err)
		}
		script.WriteString("echo $$ >" + dir + "/cgroup.procs && ")
	}
	for name, value := range b.settings(len(dirs) == 1) {
		dir := dirs[0]
		if strings.HasPrefix(name, "cpu.") {
			dir = dirs[len(dirs)-1]
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o644); err != nil {
			return nil, fmt.Errorf("control group of %s: %w", h.Name, err)
		}
	}
	return append([]string{"sh", "-c", script.String() + `exec "$@"`, "sh"}, argv...), nil
}

// settings returns the files to write, in the words of one version or the other.
func (b Bounds) settings(v2 bool) map[string]string {
	out := map[string]string{}
	quota, period := strconv.Itoa(int(b.CPUs*cgroupPeriod)), strconv.Itoa(cgroupPeriod)
	switch {
	case b.Memory == 0:
	case v2:
		out["memory.max"] = strconv.FormatInt(b.Memory, 10)
	default:
		out["memory.limit_in_bytes"] = strconv.FormatInt(b.Memory, 10)
	}
	switch {
	case b.CPUs == 0:
	case v2:
		out["cpu.max"] = quota + " " + period
	default:
		out["cpu.cfs_quota_us"] = quota // the period is the default
	}
	return out
}

// removeCgroups removes the control groups of a run, whose processes have ended.
func removeCgroups(run string) error {
	var errs []error
	for _, pattern := range cgroups(prefix + run + "-*") {
		dirs, err := filepath.Glob(pattern)
		errs = append(errs, err)
		for _, dir := range dirs {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
