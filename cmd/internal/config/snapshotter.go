package config

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/shoal-project/shoal/snapshotter/lazy"
)

// The values of Snapshotter.Enabled.
const (
	SnapshotterAuto = "auto"  // where it can run; else a line in the log says why not
	SnapshotterOn   = "true"  // or the node does not start
	SnapshotterOff  = "false" // not at all
)

// Snapshotter is what containerd asks for the file systems of images.
type Snapshotter struct {
	Enabled string `yaml:"enabled"`
	Root    string `yaml:"root"`    // of snapshots; snapshots in data_dir by default
	Address string `yaml:"address"` // path of its socket; snapshotter.sock in data_dir by default
	Driver  string `yaml:"driver"`  // auto, erofs or fuse
	// Mount are the repositories whose images are mounted, as REGISTRY/REPOSITORY with * and **; others are unpacked. Empty is none: who can push an
	// image that is mounted decides what all images show that share its layers.
	Mount []string `yaml:"mount"`
	// Prefetch overrules what images say of what is fetched before it is read: whole, none, or paths apart by commas. Empty does not.
	Prefetch string `yaml:"prefetch"`
}

// Mounts reports whether images of the repository may be mounted.
func (s Snapshotter) Mounts(registry, repository string) bool {
	return slices.ContainsFunc(s.Mount, func(pattern string) bool {
		return doublestar.MatchUnvalidated(pattern, registry+"/"+repository)
	})
}

func (s Snapshotter) validate() error {
	for _, pattern := range s.Mount {
		if !doublestar.ValidatePattern(pattern) {
			return fmt.Errorf("snapshotter.mount: %q is no pattern like registry.example/models/**", pattern)
		}
	}
	if _, err := lazy.ParsePrefetch(s.Prefetch); err != nil {
		return fmt.Errorf("snapshotter.%w", err)
	}
	if !slices.Contains([]string{SnapshotterAuto, SnapshotterOn, SnapshotterOff}, s.Enabled) {
		return fmt.Errorf("snapshotter.enabled: %q is not auto, true or false", s.Enabled)
	}
	if !slices.Contains([]string{"auto", "erofs", "fuse"}, s.Driver) {
		return fmt.Errorf("snapshotter.driver: %q is not auto, erofs or fuse", s.Driver)
	}
	for _, p := range [][2]string{{"root", s.Root}, {"address", s.Address}} {
		if p[1] != "" && !filepath.IsAbs(p[1]) {
			return fmt.Errorf("snapshotter.%s: %q is relative, and containerd runs in another folder; begin it with /", p[0], p[1])
		}
	}
	return nil
}

// SnapshotterPaths returns the folder and the socket of the snapshotter.
func (n Node) SnapshotterPaths() (root, address string) {
	root, address = n.Snapshotter.Root, n.Snapshotter.Address
	if root == "" {
		root = filepath.Join(n.DataDir, "snapshots")
	}
	if address == "" {
		address = filepath.Join(n.DataDir, "snapshotter.sock")
	}
	return root, address
}
