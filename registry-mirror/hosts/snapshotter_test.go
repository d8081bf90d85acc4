package hosts

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

func TestSnapshotterConfigIsWhereContainerdLooks(t *testing.T) {
	old, images := []string{"plugins", "io.containerd.grpc.v1.cri", "containerd"}, []string{"plugins", "io.containerd.cri.v1.images"}
	for version, sections := range map[int][][]string{2: {old, images}, 3: {images}, 4: {images}} { // containerd 2 reads version 2 too
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
		for _, section := range sections {
			if at(append(section, "snapshotter")...) != "shoal" || at(append(section, "disable_snapshot_annotations")...) != false {
				t.Errorf("version %d: section %v is %v", version, section, at(section...))
			}
		}
		if version >= 3 && at(old...) != nil {
			t.Errorf("version %d: it has the section of containerd 1", version)
		}
		unpack, _ := at("plugins", "io.containerd.transfer.v1.local", "unpack_config").([]any)
		if len(unpack) != 2 {
			t.Errorf("version %d: %d unpack configurations, want 2", version, len(unpack))
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
