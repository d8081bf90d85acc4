package hosts

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

func TestSnapshotterConfigIsWhereContainerdLooks(t *testing.T) {
	for version, section := range map[int][]string{
		2: {"plugins", "io.containerd.grpc.v1.cri", "containerd"},
		3: {"plugins", "io.containerd.cri.v1.images"},
		4: {"plugins", "io.containerd.cri.v1.images"},
	} {
		var tree map[string]any
		if err := toml.Unmarshal([]byte(SnapshotterConfig(version, "/run/a \"b\".sock", "/data/snapshots")), &tree); err != nil {
			t.Fatal(err)
		}
		at := func(keys ...string) any {
			var v any = tree
			for _, k := range keys {
				m, _ := v.(map[string]any)
				v = m[k]
			}
			return v
		}
		if got := at("proxy_plugins", "shoal", "address"); got != `/run/a "b".sock` {
			t.Errorf("version %d: address %v", version, got)
		}
		if got := at("proxy_plugins", "shoal", "exports", "enable_remote_snapshot_annotations"); got != "true" {
			t.Errorf("version %d: annotations %v", version, got)
		}
		if got := at("proxy_plugins", "shoal", "exports", "root"); got != "/data/snapshots" {
			t.Errorf("version %d: root %v", version, got)
		}
		if at(append(section, "snapshotter")...) != "shoal" || at(append(section, "disable_snapshot_annotations")...) != false {
			t.Errorf("version %d: section %v is %v", version, section, at(section...))
		}
		unpack, _ := at("plugins", "io.containerd.transfer.v1.local", "unpack_config").([]any)
		if want := map[bool]int{false: 0, true: 2}[version >= 3]; len(unpack) != want {
			t.Errorf("version %d: %d unpack configurations, want %d", version, len(unpack), want)
		}
	}
}

func TestConfigVersionIsReadOrGuessed(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]int{"version = 3\n": 3, "version = 2\n": 2, "root = \"/x\"\n": 1} {
		file := filepath.Join(dir, "config.toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ConfigVersion(file); got != want || err != nil {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	if got, err := ConfigVersion(filepath.Join(dir, "none")); got != 0 || err != nil {
		t.Errorf("no file: %d, %v", got, err)
	}
}
