package config

import (
	"strings"
	"testing"
)

func TestSnapshotterMountsOnlyWhatIsListed(t *testing.T) {
	for _, tc := range []struct {
		only []string
		want bool
	}{
		{nil, false},
		{[]string{"**"}, true},
		{[]string{"registry.example/models/**"}, true},
		{[]string{"other.example/**", "registry.example/*/tiny"}, true},
		{[]string{"registry.example/models"}, false},
		{[]string{"models/**"}, false},
	} {
		if got := (Snapshotter{Mount: tc.only}).Mounts("registry.example", "models/tiny"); got != tc.want {
			t.Errorf("%v: %v, want %v", tc.only, got, tc.want)
		}
	}
}

func TestSnapshotterFaultsNameTheKey(t *testing.T) {
	for want, s := range map[string]Snapshotter{
		"snapshotter.enabled": {Enabled: "yes"},
		"snapshotter.driver":  {Enabled: SnapshotterOn, Driver: "nydusd"},
		"snapshotter.mount":   {Enabled: SnapshotterOn, Mount: []string{"a["}},
		"snapshotter.root":    {Enabled: SnapshotterOn, Driver: "auto", Root: "relative"},
		"snapshotter.address": {Enabled: SnapshotterOn, Driver: "auto", Address: "rel.sock"},
	} {
		if err := s.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want an error that names %s", s, err, want)
		}
	}
}

func TestSnapshotterPathsFollowTheDataFolder(t *testing.T) {
	n := Node{DataDir: "/data"}
	if root, address := n.SnapshotterPaths(); root != "/data/snapshots" || address != "/data/snapshotter.sock" {
		t.Errorf("%s, %s", root, address)
	}
	n.Snapshotter = Snapshotter{Root: "/fast", Address: "/run/s.sock"}
	if root, address := n.SnapshotterPaths(); root != "/fast" || address != "/run/s.sock" {
		t.Errorf("%s, %s", root, address)
	}
}
