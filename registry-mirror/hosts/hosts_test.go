package hosts_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/shoal-project/shoal/registry-mirror/hosts"
)

const (
	begin = "# >>> shoal mirror: written by \"shoal mirror configure\", taken out by \"shoal mirror remove\"\n"
	end   = "# <<< shoal mirror\n"
	host  = "[host.\"http://127.0.0.1:7701\"]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"200ms\"\n"
)

// tree returns every file below dir, by its path.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		out[name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func configure(t *testing.T, c hosts.Config) []hosts.Change {
	t.Helper()
	changes, err := hosts.PlanConfigure(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := hosts.Apply(changes); err != nil {
		t.Fatal(err)
	}
	return changes
}

func remove(t *testing.T, c hosts.Config) []hosts.Change {
	t.Helper()
	changes, err := hosts.PlanRemove(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := hosts.Apply(changes); err != nil {
		t.Fatal(err)
	}
	return changes
}

// TestConfigureThenRemove says what each file becomes; afterwards a second configure must change nothing, and remove
// must bring back what was there.
func TestConfigureThenRemove(t *testing.T) {
	const registry = "registry.example.com"
	server := "server = \"https://registry.example.com\"\n"
	for _, c := range []struct{ name, before, want string }{
		{"no file", "", begin + server + host + end},
		{"server only", "server = \"https://other\"\n", "server = \"https://other\"\n" + begin + host + end},
		{"no newline at the end", "server = 'x'", "server = 'x'\n" + begin + host + end},
		{"comments only", "# ours\n", "# ours\n" + begin + server + host + end},
		{
			"other hosts with comments",
			"# top\nserver = \"https://other\" # the origin\n\n# our cache\n[host.\"https://cache\"]\n  capabilities = [\"pull\"]\n",
			"# top\nserver = \"https://other\" # the origin\n\n" + begin + host + end + "# our cache\n[host.\"https://cache\"]\n  capabilities = [\"pull\"]\n",
		},
		{
			"no keys before the first table", "[host.'https://cache']\n[host.'https://cache'.header]\nx = 'y'\n",
			begin + server + host + end + "[host.'https://cache']\n[host.'https://cache'.header]\nx = 'y'\n",
		},
		{
			"brackets that are no table", "ca = [\n  'a.crt',\n  'b.crt',\n]\nclient = [\n['c', 'k']\n]\nserver = '''\nx\n[host]\n'''\n[host.a]\n",
			"ca = [\n  'a.crt',\n  'b.crt',\n]\nclient = [\n['c', 'k']\n]\nserver = '''\nx\n[host]\n'''\n" + begin + host + end + "[host.a]\n",
		},
		{"windows lines", "server = 'x'\r\n\r\n[host.a]\r\n", "server = 'x'\r\n\r\n" + begin + host + end + "[host.a]\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			file := registry + "/hosts.toml"
			before := map[string]string{"unrelated/hosts.toml": "# not touched\n"}
			if c.before != "" {
				before[file] = c.before
			}
			put(t, dir, before)
			cfg := hosts.Config{CertsDir: dir, Registries: []hosts.Registry{{Host: registry}}}

			configure(t, cfg)
			if diff := cmp.Diff(c.want, tree(t, dir)[file]); diff != "" {
				t.Errorf("configured (-want +got):\n%s", diff)
			}
			if err := toml.Unmarshal([]byte(tree(t, dir)[file]), &map[string]any{}); err != nil {
				t.Errorf("not TOML any more: %v", err)
			}
			if changes := configure(t, cfg); changes[0].Changed() || changes[0].Note == "" {
				t.Errorf("the second time: %s", changes[0].Diff())
			}
			remove(t, hosts.Config{CertsDir: dir})
			if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
				t.Errorf("after remove (-before +after):\n%s", diff)
			}
			if changes := remove(t, cfg); changes[0].Changed() || changes[0].Note == "" {
				t.Errorf("removed twice: %s", changes[0].Diff())
			}
			if _, err := os.Stat(filepath.Join(dir, registry)); c.before == "" && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the folder we made is left behind: %v", err)
			}
		})
	}
}

func TestAllRegistriesByDefault(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "made", "yet")
	configure(t, hosts.Config{CertsDir: dir})
	if diff := cmp.Diff(map[string]string{"_default/hosts.toml": begin + host + end}, tree(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestServerIsWhatContainerdWouldUse(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"10.0.0.9_5000_/hosts.toml": "# containerd looks here first\n"})
	configure(t, hosts.Config{CertsDir: dir, Registries: []hosts.Registry{
		{Host: "docker.io"}, {Host: "10.0.0.1:5000", PlainHTTP: true}, {Host: "127.0.0.1:5000"}, {Host: "localhost:5000"}, {Host: "10.0.0.9:5000"},
	}})
	got := map[string]string{}
	for name, text := range tree(t, dir) {
		var file struct{ Server string }
		if err := toml.Unmarshal([]byte(text), &file); err != nil {
			t.Fatal(err)
		}
		got[name] = file.Server
	}
	want := map[string]string{
		"docker.io/hosts.toml":                   "https://registry-1.docker.io",
		"10.0.0.1:5000/hosts.toml":               "http://10.0.0.1:5000",
		"127.0.0.1:5000/hosts.toml":              "http://127.0.0.1:5000",
		"localhost:5000/hosts.toml":              "http://localhost:5000",
		"10.0.0.9_5000_/hosts.toml":              "https://10.0.0.9:5000",
		"10.0.0.9_5000_/hosts.toml.before-shoal": "",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
}

func TestOtherMirrorReplacesTheBlock(t *testing.T) {
	dir := t.TempDir()
	configure(t, hosts.Config{CertsDir: dir})
	configure(t, hosts.Config{CertsDir: dir, Mirror: "http://127.0.0.1:9999/"})
	want := begin + strings.Replace(host, "7701", "9999", 1) + end
	if diff := cmp.Diff(map[string]string{"_default/hosts.toml": want}, tree(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestUsersLaterEditsSurviveAndTheFirstBackupStays(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"_default/hosts.toml": "# first\n"})
	cfg := hosts.Config{CertsDir: dir}
	configure(t, cfg)
	put(t, dir, map[string]string{"_default/hosts.toml": "# second\n" + begin + host + end + "[host.a]\n"})
	configure(t, cfg)
	remove(t, cfg)
	want := map[string]string{"_default/hosts.toml": "# second\n[host.a]\n", "_default/hosts.toml.before-shoal": "# first\n"}
	if diff := cmp.Diff(want, tree(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestBlockIsFoundAfterAnEditorHasChangedLineEnds(t *testing.T) {
	for name, edit := range map[string]func(string) string{
		"CRLF":              func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") },
		"no newline at end": func(s string) string { return strings.TrimSuffix(s, "\n") },
	} {
		dir := t.TempDir()
		cfg := hosts.Config{CertsDir: dir}
		put(t, dir, map[string]string{"_default/hosts.toml": edit("# mine\n" + begin + host + end)})
		configure(t, cfg)
		if got := tree(t, dir)["_default/hosts.toml"]; !strings.HasSuffix(got, begin+host+end) {
			t.Errorf("%s: configured %q", name, got)
		}
		put(t, dir, map[string]string{"_default/hosts.toml": edit("# mine\n" + begin + host + end)})
		remove(t, cfg)
		if got := tree(t, dir)["_default/hosts.toml"]; strings.TrimSpace(got) != "# mine" {
			t.Errorf("%s: %q is left", name, got)
		}
	}
}

func TestWhatCannotBeDoneSafelyIsRefusedAndNothingWritten(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"not TOML", map[string]string{"_default/hosts.toml": "server = \n"}, "not a valid hosts.toml"},
		{"host of another type", map[string]string{"_default/hosts.toml": "host = 3\n"}, "not a valid hosts.toml"},
		{"inline hosts", map[string]string{"_default/hosts.toml": "host = {a = {}}\n"}, "instead of inline or dotted keys"},
		{"dotted hosts", map[string]string{"_default/hosts.toml": "host.a.capabilities = ['pull']\n"}, "instead of inline or dotted keys"},
		{"half a block", map[string]string{"_default/hosts.toml": begin + host}, "marks around"},
		{"two blocks", map[string]string{"_default/hosts.toml": begin + host + end + begin + end}, "marks around"},
		{"end before begin", map[string]string{"_default/hosts.toml": end + begin}, "marks around"},
		{"certificates in Docker's style", map[string]string{"_default/ca.crt": "x"}, "would ignore ca.crt"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, c.files)
			_, err := hosts.PlanConfigure(hosts.Config{CertsDir: dir})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "_default/hosts.toml") {
				t.Errorf("error %v, want one about %q that names the file", err, c.want)
			}
			if diff := cmp.Diff(c.files, tree(t, dir)); diff != "" {
				t.Errorf("files (-before +after):\n%s", diff)
			}
		})
	}
}

func TestMirrorConfiguredByHandIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{"_default/hosts.toml": "[host.\"http://127.0.0.1:7701\"]\n"}
	put(t, dir, files)
	if changes := configure(t, hosts.Config{CertsDir: dir}); changes[0].Changed() || !strings.Contains(changes[0].Note, "already a host") {
		t.Errorf("change %+v", changes[0])
	}
	if changes := remove(t, hosts.Config{CertsDir: dir}); len(changes) != 0 {
		t.Errorf("remove would change %+v", changes)
	}
	if diff := cmp.Diff(files, tree(t, dir)); diff != "" {
		t.Errorf("files (-before +after):\n%s", diff)
	}
}

func TestLinkedFileStaysALink(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"real/hosts.toml": "server = 'x'\n", "certs/_default/keep": ""})
	link := filepath.Join(dir, "certs/_default/hosts.toml")
	if err := os.Symlink("../../real/hosts.toml", link); err != nil {
		t.Fatal(err)
	}
	cfg := hosts.Config{CertsDir: filepath.Join(dir, "certs")}
	configure(t, cfg)
	if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("link became %v, %v", info.Mode(), err)
	}
	if got := tree(t, dir)["real/hosts.toml"]; !strings.Contains(got, host) {
		t.Errorf("the file behind the link is %q", got)
	}
	remove(t, cfg)
	if diff := cmp.Diff(map[string]string{"hosts.toml": "server = 'x'\n"}, tree(t, filepath.Join(dir, "real"))); diff != "" {
		t.Errorf("after remove (-before +after):\n%s", diff)
	}
}

func TestPermissionsAreKept(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"_default/hosts.toml": "server = 'x'\n"})
	file := filepath.Join(dir, "_default/hosts.toml")
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	configure(t, hosts.Config{CertsDir: dir, Registries: []hosts.Registry{{Host: "_default"}, {Host: "new"}}})
	for name, want := range map[string]fs.FileMode{file: 0o600, filepath.Join(dir, "new/hosts.toml"): 0o644} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
}

func TestDiffShowsTheChange(t *testing.T) {
	c := hosts.Change{Path: "f", Before: []byte("a\nb\nc\n"), After: []byte("a\nx\ny\nc\n")}
	if diff := cmp.Diff("--- f\n+++ f\n@@ -2,1 +2,2 @@\n-b\n+x\n+y\n", c.Diff()); diff != "" {
		t.Errorf("diff (-want +got):\n%s", diff)
	}
	c = hosts.Change{Path: "f", After: []byte("a\n")}
	if diff := cmp.Diff("--- /dev/null\n+++ f\n@@ -0,0 +1,1 @@\n+a\n", c.Diff()); diff != "" {
		t.Errorf("diff (-want +got):\n%s", diff)
	}
}

func TestConfigReportsAllFaults(t *testing.T) {
	err := hosts.Config{Mirror: "ftp://x", Registries: []hosts.Registry{{Host: "a/b"}, {Host: ".."}, {Host: ""}, {Host: "ok:5000"}}}.Validate()
	for _, text := range []string{"ftp://x", "a/b", `".."`, `""`} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("error %v does not tell of %s", err, text)
		}
	}
	if err != nil && strings.Contains(err.Error(), "ok:5000") {
		t.Errorf("error %v", err)
	}
}

func TestContainerdsConfigurationIsRead(t *testing.T) {
	const certs = "/etc/containerd/certs.d"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []string // parts of the error; none: no error
	}{
		{"no file", nil, []string{"does not read " + certs, "version = 2", `[plugins."io.containerd.grpc.v1.cri".registry]`, `config_path = "` + certs + `"`}},
		{"version 2 without", map[string]string{"config.toml": "version = 2\n"}, []string{`"io.containerd.grpc.v1.cri".registry`, "restart containerd once"}},
		{"version 3 without", map[string]string{"config.toml": "version = 3\n"}, []string{`"io.containerd.cri.v1.images".registry`}},
		{"empty, so version 1", map[string]string{"config.toml": ""}, []string{`"cri".registry`}},
		{"version 2", map[string]string{"config.toml": "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '" + certs + "'\n"}, nil},
		{"version 3", map[string]string{"config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '" + certs + "/'\n"}, nil},
		{"one of several", map[string]string{"config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/x:" + certs + "'\n"}, nil},
		{"another folder", map[string]string{"config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/x'\n"}, []string{"reads /x, not " + certs, "--certs-dir"}},
		{"imported", map[string]string{
			"config.toml":   "version = 2\nimports = ['conf.d/*.toml', 'config.toml']\n",
			"conf.d/a.toml": "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '" + certs + "'\n",
		}, nil},
		{"old mirrors", map[string]string{"config.toml": "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry.mirrors.'docker.io']\nendpoint = ['http://x']\n"}, []string{"take out", "registry.mirrors"}},
		{"other plugins of any shape", map[string]string{"config.toml": "version = 2\n[plugins.a]\nregistry = 3\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '" + certs + "'\n"}, nil},
		{"not TOML", map[string]string{"config.toml": "version = = 2"}, []string{"config.toml"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, c.files)
			err := hosts.CheckContainerd(filepath.Join(dir, "config.toml"), certs)
			if (err == nil) != (len(c.want) == 0) {
				t.Fatalf("error %v", err)
			}
			for _, text := range c.want {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("error %q does not say %q", err, text)
				}
			}
		})
	}
}

// FuzzRemoveBringsBackWhatWasThere runs any text through configure and remove.
func FuzzRemoveBringsBackWhatWasThere(f *testing.F) {
	for _, text := range []string{"", "server = 'x'", "# c\n[host.a]\n", "[[x]]\n", "ca = [\n['a']\n]\n", begin + end, "a = '''\n[b]\n'''\r\n[host]\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		put(t, dir, map[string]string{"_default/hosts.toml": string(text)})
		cfg := hosts.Config{CertsDir: dir}
		changes, err := hosts.PlanConfigure(cfg)
		if err != nil || !changes[0].Changed() || strings.Contains(string(text), "shoal mirror") {
			return
		}
		if err := hosts.Apply(changes); err != nil {
			t.Fatal(err)
		}
		var parsed struct {
			Host map[string]struct{ Capabilities []string } `toml:"host"`
		}
		if err := toml.Unmarshal(changes[0].After, &parsed); err == nil && len(parsed.Host["http://127.0.0.1:7701"].Capabilities) != 2 {
			t.Fatalf("configured %q into %q", text, changes[0].After)
		}
		remove(t, cfg)
		if diff := cmp.Diff(map[string]string{"_default/hosts.toml": string(text)}, tree(t, dir)); diff != "" {
			t.Fatalf("after remove (-before +after):\n%s", diff)
		}
	})
}
