package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

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
		if reason := neverMatches(pattern); reason != "" {
			return fmt.Errorf("snapshotter.mount: %q %s; write a pattern like registry.example/models/**", pattern, reason)
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

// neverMatches returns why a pattern stands for no repository at all; empty when it may stand for some.
func neverMatches(pattern string) string {
	registry, repository, found := strings.Cut(pattern, "/")
	switch {
	case !doublestar.ValidatePattern(pattern):
		return "is no pattern"
	case strings.Contains(pattern, "://"):
		return "begins with a scheme, which names of images do not have"
	case pattern == "**":
		return ""
	case !found:
		return "is no registry with a repository, such as docker.io/library/nginx for nginx"
	case strings.HasPrefix(pattern, "/") || strings.HasSuffix(pattern, "/") || strings.Contains(pattern, "//"):
		return "has a slash with nothing before or behind it"
	case strings.ContainsAny(pattern, "{["): // may hold any of what follows
		return ""
	case registry != "**" && strings.ContainsAny(repository, ":@"):
		return "has a tag or digest, and all images of a repository are mounted or none"
	case registry == "docker.io" && !strings.Contains(repository, "/") && repository != "**":
		return "is no repository there; its full name is docker.io/library/" + repository
	}
	return ""
}

// maxSocket is the longest path of a socket in bytes: the kernel's 108 with a zero at the end.
const maxSocket = 107

// CheckSocket refuses a path that is too long for a socket.
func CheckSocket(path string) error {
	if len(path) > maxSocket {
		return fmt.Errorf("the path of the snapshotter's socket has %d bytes, and the kernel takes %d: set snapshotter.address to a shorter one than %s", len(path), maxSocket, path)
	}
	return nil
}

// validateSocket refuses a socket that cannot be made where the snapshotter is asked for. Where it runs if it can, a long data_dir is no fault.
func (n Node) validateSocket() error {
	if s := n.Snapshotter; s.Enabled == SnapshotterOff || s.Enabled == SnapshotterAuto && s.Address == "" {
		return nil
	}
	_, address := n.SnapshotterPaths()
	return CheckSocket(address)
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
