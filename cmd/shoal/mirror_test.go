package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// shoal runs the command line and returns what it printed.
func shoal(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, talk bytes.Buffer
	code = run(t.Context(), append([]string{"shoal"}, args...), &out, &talk)
	return code, out.String(), talk.String()
}

func TestMirrorConfigureShowsThenWritesThenRemoves(t *testing.T) {
	dir := t.TempDir()
	certs, config := filepath.Join(dir, "certs"), filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = %q\n", certs), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(certs, "10.0.0.1:5000", "hosts.toml")
	args := []string{"mirror", "configure", "--certs-dir", certs, "--containerd-config", config, "--plain-http", "10.0.0.1:5000", "--mirror", "http://127.0.0.1:7799"}

	code, out, talk := shoal(t, append(args, "--dry-run")...)
	if code != exitOK || !strings.Contains(out, "+server = \"http://10.0.0.1:5000\"\n+[host.\"http://127.0.0.1:7799\"]") || talk != "" {
		t.Errorf("dry run: exit %d\n%s%s", code, out, talk)
	}
	if _, err := os.Stat(certs); err == nil {
		t.Error("the dry run wrote")
	}
	if code, out, talk := shoal(t, args...); code != exitOK || out != "" || talk != file+": written\n" {
		t.Errorf("configure: exit %d\n%s%s", code, out, talk)
	}
	if code, _, talk := shoal(t, args...); code != exitOK || talk != file+": nothing to do: already configured\n" {
		t.Errorf("configure again: exit %d\n%s", code, talk)
	}
	if code, _, talk := shoal(t, "mirror", "remove", "--certs-dir", certs); code != exitOK || talk != file+": removed\n" {
		t.Errorf("remove: exit %d\n%s", code, talk)
	}
	if code, _, talk := shoal(t, "mirror", "remove", "--certs-dir", certs); code != exitOK || !strings.Contains(talk, "no file below") {
		t.Errorf("remove again: exit %d\n%s", code, talk)
	}
}

func TestMirrorForDockerNamesTheReloadBothWays(t *testing.T) {
	file := filepath.Join(t.TempDir(), "daemon.json")
	for _, verb := range []string{"configure", "remove"} {
		if code, _, talk := shoal(t, "mirror", verb, "--for", "docker", "--docker-config", file); code != exitOK || !strings.Contains(talk, "systemctl reload docker") {
			t.Errorf("%s: exit %d\n%s", verb, code, talk)
		}
	}
}

func TestMirrorConfigureTellsWhenContainerdDoesNotRead(t *testing.T) {
	dir := t.TempDir()
	code, _, talk := shoal(t, "mirror", "configure", "--certs-dir", dir, "--containerd-config", filepath.Join(dir, "none.toml"))
	if code != exitOK || !strings.Contains(talk, "config_path = \""+dir) || !strings.Contains(talk, "restart containerd once") {
		t.Errorf("exit %d\n%s", code, talk)
	}
}

func TestMirrorConfigureNamesAFolderThatContainerdCanFind(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	_, _, talk := shoal(t, "mirror", "configure", "--certs-dir", "certs", "--containerd-config", "none.toml")
	if want := "config_path = \"" + filepath.Join(dir, "certs"); !strings.Contains(talk, want) {
		t.Errorf("no %s in\n%s", want, talk)
	}
}

func TestMirrorRefusesInOneLine(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "_default"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "_default", "hosts.toml"), []byte("server = \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"mirror", "start"}, exitUsage, `"start"`},
		{[]string{"mirror", "configure", "docker.io"}, exitUsage, `"docker.io"`},
		{[]string{"mirror", "configure", "--registry", "a/b"}, exitUsage, `"a/b"`},
		{[]string{"mirror", "configure", "--mirror", "127.0.0.1:7701"}, exitUsage, "want http://HOST:PORT"},
		{[]string{"mirror", "configure", "--certs-dir", dir, "--snapshotter-root", "/s"}, exitUsage, "with --snapshotter"},
		{[]string{"mirror", "configure", "--certs-dir", dir, "--snapshotter", "/" + strings.Repeat("s", 107)}, exitUsage, "has 108 bytes"},
		{[]string{"mirror", "configure", "--certs", "x"}, exitUsage, "certs"},
		{[]string{"mirror", "configure", "--certs-dir", dir}, exitFailure, filepath.Join(dir, "_default/hosts.toml")},
		{[]string{"mirror", "configure", "--certs-dir", file}, exitFailure, file},
		{[]string{"mirror", "remove", "--certs-dir", file}, exitFailure, file},
	} {
		code, _, talk := shoal(t, c.args...)
		if code != c.code || !strings.Contains(talk, c.want) || strings.Count(strings.TrimSpace(talk), "\n") > 0 {
			t.Errorf("%v: exit %d, want %d with %q in one line:\n%s", c.args, code, c.code, c.want, talk)
		}
	}
}

func TestMirrorAloneShowsItsCommands(t *testing.T) {
	code, out, _ := shoal(t, "mirror")
	if code != exitOK || !strings.Contains(out, "configure") || !strings.Contains(out, "remove") {
		t.Errorf("exit %d\n%s", code, out)
	}
}

func TestPermissionErrorSaysWhatToDo(t *testing.T) {
	err := needRoot(&fs.PathError{Op: "open", Path: "/etc/containerd", Err: fs.ErrPermission})
	if !strings.Contains(err.Error(), "/etc/containerd") || !strings.Contains(err.Error(), "as root") {
		t.Errorf("error %v", err)
	}
}

// Where containerd has no configuration yet, one version is printed: the installed containerd's, or the one that is asked for.
func TestMirrorConfigurePrintsOneVersion(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name, installed string
		flags           []string
		version, reason string
	}{
		{"containerd 2", "containerd github.com/containerd/containerd/v2 v2.1.9 abc", nil, "version = 3", "v2.1.9"},
		{"containerd 1", "containerd github.com/containerd/containerd 1.7.34~ds1 1.7.34~ds1-1", nil, "version = 2", "1.7.34"},
		{"none", "", nil, "version = 2", "--config-version 3"},
		{"asked for", "containerd github.com/containerd/containerd/v2 v2.1.9 abc", []string{"--config-version", "2"}, "version = 2", "--config-version"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bin := t.TempDir()
			if c.installed != "" {
				script := "#!/bin/sh\necho '" + c.installed + "'\n"
				if err := os.WriteFile(filepath.Join(bin, "containerd"), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", bin)
			args := []string{"mirror", "configure", "--certs-dir", dir, "--containerd-config", filepath.Join(dir, "none.toml")}
			code, out, talk := shoal(t, append(append(args, "--snapshotter", "/run/s.sock"), c.flags...)...)
			if code != exitOK || !strings.HasPrefix(out, c.version+"\n") || strings.Count(out+talk, "version =") != 1 || !strings.Contains(talk, c.reason) {
				t.Errorf("exit %d, want %q once and %q in\n%s\n%s", code, c.version, c.reason, out, talk)
			}
			_, _, talk = shoal(t, append(args, c.flags...)...)
			if !strings.Contains(talk, "  "+c.version+"\n") {
				t.Errorf("without a snapshotter there is no %q in\n%s", c.version, talk)
			}
		})
	}
}

func TestMirrorConfigureRefusesAnotherVersionThanTheFileHas(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, []byte("version = 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for version, want := range map[string]string{"3": "is of version 2", "4": "of version 2 or 3"} {
		code, _, talk := shoal(t, "mirror", "configure", "--certs-dir", dir, "--containerd-config", config, "--config-version", version)
		if code != exitUsage || !strings.Contains(talk, want) {
			t.Errorf("version %s: exit %d, want %q in %s", version, code, want, talk)
		}
	}
}

// Where containerd's file has no place for a snapshotter, nothing is configured by halves.
func TestMirrorConfigureWritesNothingForASnapshotterThatVersion1CannotHave(t *testing.T) {
	dir := t.TempDir()
	config, certs := filepath.Join(dir, "config.toml"), filepath.Join(dir, "certs")
	if err := os.WriteFile(config, []byte("root = \"/x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, talk := shoal(t, "mirror", "configure", "--certs-dir", certs, "--containerd-config", config, "--snapshotter", "/run/s.sock")
	if code != exitFailure || out != "" || !strings.Contains(talk, "is of version 1") || strings.Count(talk, "\n") > 1 {
		t.Errorf("exit %d, want one line that names the version\n%s%s", code, out, talk)
	}
	if _, err := os.Stat(certs); err == nil {
		t.Error("hosts.toml was written all the same")
	}
}
