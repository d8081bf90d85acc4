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

func TestPatternsThatMatchNothingAreRefusedWithTheReason(t *testing.T) {
	for pattern, want := range map[string]string{
		"":                              "no registry",
		"nginx":                         "docker.io/library/nginx",
		"*":                             "no registry",
		"https://127.0.0.1:25000/**":    "scheme",
		"docker.io/library/":            "slash",
		"/models/**":                    "slash",
		"registry.example//models":      "slash",
		"registry.example/models:v1":    "tag",
		"r.example/m@sha256:00":         "digest",
		"docker.io/nginx":               "docker.io/library/nginx",
		"docker.io/*":                   "docker.io/library/*",
		"registry.example/models[":      "no pattern",
		"**":                            "",
		"docker.io/**":                  "",
		"docker.io/library/nginx":       "",
		"127.0.0.1:25000/**":            "",
		"registry.example/models/**":    "",
		"registry.example/{a,b}/llama":  "",
		"{a.example:1/x,b.example:2}/y": "",
		"**/llama":                      "",
	} {
		err := Snapshotter{Enabled: SnapshotterAuto, Driver: "auto", Mount: []string{pattern}}.validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), "snapshotter.mount") || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", pattern, err, want)
		}
	}
}

func TestSocketsThatTheKernelDoesNotTakeAreRefused(t *testing.T) {
	long := "/" + strings.Repeat("d", 107)
	for _, c := range []struct {
		enabled, dataDir, address string
		refused                   bool
	}{
		{SnapshotterAuto, "/data", long, true},
		{SnapshotterAuto, "/data", long[:107], false},
		{SnapshotterOn, long, "", true},
		{SnapshotterOn, long, "/run/s.sock", false},
		{SnapshotterAuto, long, "", false}, // the node runs without
		{SnapshotterOff, long, long, false},
	} {
		n := Node{DataDir: c.dataDir, Snapshotter: Snapshotter{Enabled: c.enabled, Address: c.address}}
		if err := n.validateSocket(); (err != nil) != c.refused || err != nil && !strings.Contains(err.Error(), "snapshotter.address") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
