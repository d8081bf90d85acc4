package hosts_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/registry-mirror/hosts"
)

func apply(t *testing.T, change hosts.Change, err error) {
	t.Helper()
	if err == nil {
		err = hosts.Apply([]hosts.Change{change})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestDockerConfigThereAndBack says what each daemon.json becomes. A second configure must change nothing, and remove must bring back what was there.
func TestDockerConfigThereAndBack(t *testing.T) {
	const mirror = `"http://127.0.0.1:7701"`
	for name, c := range map[string]struct{ before, after string }{
		"no file":         {"", "{\n  \"registry-mirrors\": [" + mirror + "]\n}\n"},
		"empty object":    {"{}\n", "{\n  \"registry-mirrors\": [" + mirror + "]\n}\n"},
		"other keys":      {"{\n\t\"debug\": true, \"x\": {\"registry-mirrors\": []}\n}", "{\n  \"registry-mirrors\": [" + mirror + "],\n\t\"debug\": true, \"x\": {\"registry-mirrors\": []}\n}"},
		"byte-order mark": {"\ufeff{\"debug\": true}", "\ufeff{\n  \"registry-mirrors\": [" + mirror + "],\"debug\": true}"},
		"other mirrors":   {"{\"a\":1,\"registry-mirrors\" : [\"https://cache.example/\"] ,\"b\":2}", "{\"a\":1,\"registry-mirrors\" : [" + mirror + ",\"https://cache.example/\"] ,\"b\":2}"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "daemon.json")
			if c.before != "" {
				put(t, dir, map[string]string{"daemon.json": c.before})
			}
			before := tree(t, dir)
			change, err := hosts.PlanDocker(hosts.Config{}, file)
			apply(t, change, err)
			if diff := cmp.Diff(c.after, tree(t, dir)["daemon.json"]); diff != "" || !json.Valid([]byte(strings.TrimPrefix(c.after, "\ufeff"))) {
				t.Errorf("configured (-want +got):\n%s", diff)
			}
			if change, err := hosts.PlanDocker(hosts.Config{}, file); err != nil || change.Changed() || change.Note == "" {
				t.Errorf("a second time: %v\n%s", err, change.Diff())
			}
			change, err = hosts.PlanDockerRemove(hosts.Config{}, file)
			apply(t, change, err)
			if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
				t.Errorf("removed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDockerListThatWasOnlyOursGoesAsAWhole(t *testing.T) {
	for before, after := range map[string]string{
		`{"registry-mirrors":["http://127.0.0.1:7701/"],"a":1}`:      `{"a":1}`,
		`{"a":1, "registry-mirrors":["http://127.0.0.1:7701"]}`:      `{"a":1}`,
		`{"a":1,"registry-mirrors":["http://127.0.0.1:7701"],"b":2}`: `{"a":1,"b":2}`,
	} {
		dir := t.TempDir()
		put(t, dir, map[string]string{"daemon.json": before})
		change, err := hosts.PlanDockerRemove(hosts.Config{}, filepath.Join(dir, "daemon.json"))
		apply(t, change, err)
		if got := tree(t, dir)["daemon.json"]; got != after {
			t.Errorf("%s became %s, want %s", before, got, after)
		}
	}
}

func TestDockerConfigThatIsNoneIsLeftAlone(t *testing.T) {
	for _, text := range []string{"{", "[]", `{"registry-mirrors": "x"}`, "\"x\"", "{} {}"} {
		dir := t.TempDir()
		put(t, dir, map[string]string{"daemon.json": text})
		if _, err := hosts.PlanDocker(hosts.Config{}, filepath.Join(dir, "daemon.json")); err == nil || !strings.Contains(err.Error(), "daemon.json") {
			t.Errorf("%s: error %v", text, err)
		}
	}
}

func TestContainersConfigThereAndBack(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"registries.conf": "unqualified-search-registries = []\n", "registries.conf.d/shortnames.conf": "[aliases]\n"})
	before := tree(t, dir)
	parts := filepath.Join(dir, "registries.conf.d")
	cfg := hosts.Config{Registries: []hosts.Registry{{Host: "docker.io"}, {Host: "10.0.0.9:5000", PlainHTTP: true}}}
	change, err := hosts.PlanContainers(cfg, parts)
	apply(t, change, err)
	want := `# Written by "shoal mirror configure --for podman", taken out by "shoal mirror remove --for podman".

[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "127.0.0.1:7701/docker.io"
insecure = true

[[registry]]
prefix = "10.0.0.9:5000"
location = "10.0.0.9:5000"
insecure = true
[[registry.mirror]]
location = "127.0.0.1:7701/10.0.0.9:5000"
insecure = true
`
	if diff := cmp.Diff(want, tree(t, dir)["registries.conf.d/50-shoal-mirror.conf"]); diff != "" {
		t.Errorf("configured (-want +got):\n%s", diff)
	}
	if change, err := hosts.PlanContainers(cfg, parts); err != nil || change.Changed() {
		t.Errorf("a second time: %v\n%s", err, change.Diff())
	}
	change, err = hosts.PlanContainersRemove(parts)
	apply(t, change, err)
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	if change, err := hosts.PlanContainersRemove(parts); err != nil || change.Changed() || change.Note == "" {
		t.Errorf("removed a second time: %v\n%s", err, change.Diff())
	}
}

func TestContainersConfigOfOthersIsNotOverridden(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"registries.conf":      {"registries.conf": "[[registry]]\nlocation = \"docker.io\"\n"},
		"10-site.conf":         {"registries.conf.d/10-site.conf": "[[registry]]\nprefix = \"docker.io\"\nlocation = \"x.example\"\n"},
		"50-shoal-mirror.conf": {"registries.conf.d/50-shoal-mirror.conf": "# by hand\n"},
		"broken.conf":          {"registries.conf.d/broken.conf": "[[registry\n"},
	} {
		dir := t.TempDir()
		put(t, dir, files)
		_, err := hosts.PlanContainers(hosts.Config{Registries: []hosts.Registry{{Host: "docker.io"}}}, filepath.Join(dir, "registries.conf.d"))
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if _, err := hosts.PlanContainers(hosts.Config{}, t.TempDir()); !errors.Is(err, hosts.ErrNeedsRegistries) {
		t.Errorf("without registries: %v", err)
	}
}

// TestBackupIsAsSecretAsTheFileAndALinkStaysOne has daemon.json be a link to a file with a secret.
// TestContainersPatternsOfOthersAreNotHidden has a pattern that keeps registries out, which an entry of ours for one of them would undo.
func TestContainersPatternsOfOthersAreNotHidden(t *testing.T) {
	for host, hidden := range map[string]bool{"a.example.com": true, "a.b.example.com:5000": true, "example.com": false, "aexample.com": false, "a.example.com.org": false} {
		dir := t.TempDir()
		put(t, dir, map[string]string{"registries.conf": "[[registry]]\nprefix = \"*.example.com\"\nblocked = true\n"})
		_, err := hosts.PlanContainers(hosts.Config{Registries: []hosts.Registry{{Host: "docker.io"}, {Host: host}}}, filepath.Join(dir, "registries.conf.d"))
		if (err != nil) != hidden || hidden && !strings.Contains(err.Error(), "for "+host) {
			t.Errorf("%s: %v", host, err)
		}
	}
}

func TestBackupIsAsSecretAsTheFileAndALinkStaysOne(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"real/d.json": `{"http-proxy":"http://u:secret@p"}`})
	file, link := filepath.Join(dir, "real", "d.json"), filepath.Join(dir, "daemon.json")
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	change, err := hosts.PlanDocker(hosts.Config{}, link)
	apply(t, change, err)
	for path, want := range map[string]os.FileMode{link: os.ModeSymlink, file: 0o600, file + ".before-shoal": 0o600} {
		info, err := os.Lstat(path)
		if err != nil || info.Mode().Type() != want.Type() || want.IsRegular() && info.Mode() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if got := tree(t, dir)["real/d.json"]; !strings.Contains(got, "registry-mirrors") {
		t.Errorf("the link's file has %s", got)
	}
}

func TestDockerBackupDoesNotBringBackWhatWasDeleted(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "daemon.json")
	put(t, dir, map[string]string{"daemon.json": `{"log-driver":"syslog"}`})
	change, err := hosts.PlanDocker(hosts.Config{}, file)
	apply(t, change, err)
	put(t, dir, map[string]string{"daemon.json": `{"registry-mirrors":["http://127.0.0.1:7701"]}`})
	change, err = hosts.PlanDockerRemove(hosts.Config{}, file)
	apply(t, change, err)
	if got, there := tree(t, dir)["daemon.json"]; there {
		t.Errorf("daemon.json is %s", got)
	}
}
