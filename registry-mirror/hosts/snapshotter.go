package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
)

// ConfigVersion returns the version of containerd's configuration file: 3 and later are of containerd 2, 0 is no file.
func ConfigVersion(config string) (int, error) {
	parsed, err := readContainerd(config)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return parsed.Version, err
}

// SnapshotterConfig returns what containerd's configuration of that version, 2 or later, has to have so that images are unpacked by the
// snapshotter whose socket is at address and whose folder is root: the kubelet wants to know how full that one's disk is.
//
// A file of version 2 may be read by containerd 1 and 2: each has sections that the other one leaves alone. What containerd 2 takes over of
// the former by itself it does only where runtimes are set.
func SnapshotterConfig(version int, address, root string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `[proxy_plugins.shoal]
  type = "snapshot"
  address = %q
  [proxy_plugins.shoal.exports]
    enable_remote_snapshot_annotations = "true"
    root = %q
`, address, root)
	b.WriteString("\n# Kubernetes' pulls and containers:\n")
	if version < 3 {
		fmt.Fprintf(&b, snapshotterSection, criPlugin+`".containerd`)
		b.WriteString("# the same for containerd 2, which does not take it over from there:\n")
	}
	fmt.Fprintf(&b, snapshotterSection, imagesPlugin+`"`)
	b.WriteString("\n# ctr and nerdctl with --snapshotter shoal:\n")
	for _, name := range []string{"overlayfs", "shoal"} {
		fmt.Fprintf(&b, `[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/%s"
  snapshotter = %q
  differ = "walking"
`, runtime.GOARCH, name)
	}
	return b.String()
}

// snapshotterSection is a section of the CRI plugin, whose name and closing quote are to be filled in.
const snapshotterSection = `[plugins."%s]
  snapshotter = "shoal"
  disable_snapshot_annotations = false
`
