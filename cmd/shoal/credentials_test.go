package main_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/shoal-project/shoal/hack/loopback"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string, perm os.FileMode) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o700))
	check(t, os.WriteFile(path, []byte(text), perm))
}

// auths is what docker login writes.
func auths(registry, password string) string {
	token := base64.StdEncoding.EncodeToString([]byte(loopback.User + ":" + password))
	return fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, registry, token)
}

// helper is a credential helper that knows one registry. It notes what it was asked.
const helper = `#!/bin/sh
read -r registry
echo "$1 $registry" >>"$(dirname "$0")/asked"
if [ "$registry" != "$REGISTRY" ]; then echo 'credentials not found in native keychain'; exit 1; fi
printf '{"ServerURL": "%s", "Username": "%s", "Secret": %s}\n' "$registry" "$LOGIN" "$SECRET"
`

// session is a user's home on a machine where the registry wants a password, and a conversion that this user tries.
type session struct {
	dir      string
	registry string
	base     string
	env      []string
}

func newSession(t *testing.T, registry, base string) *session {
	s := &session{dir: t.TempDir(), registry: registry, base: base}
	write(t, s.dir+"/model/weights.bin", strings.Repeat("weights ", 1<<17), 0o600)
	secret, err := json.Marshal(loopback.Password)
	check(t, err)
	write(t, s.dir+"/bin/docker-credential-test", helper, 0o700)
	s.env = []string{
		"HOME=" + s.dir + "/home", "PATH=" + s.dir + "/bin:" + os.Getenv("PATH"),
		"REGISTRY=" + registry, "LOGIN=" + loopback.User, "SECRET=" + string(secret),
	}
	return s
}

func (s *session) convert(t *testing.T, flags ...string) (code int, stderr string) {
	t.Helper()
	flags = append([]string{"convert", "--quiet", "--model", s.dir + "/model", "--base", s.base, "--target", s.registry + "/ml/model:v1"}, flags...)
	cmd := exec.CommandContext(t.Context(), "shoal", flags...)
	cmd.Env = s.env
	var said strings.Builder
	cmd.Stderr = &said
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), said.String()
}

// privateBase puts a base image into a registry with a password.
func privateBase(t *testing.T, registry string) string {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64"})
	check(t, err)
	ref, err := name.ParseReference(registry + "/private/base:v1")
	check(t, err)
	check(t, remote.Write(ref, img, remote.WithContext(t.Context()), remote.WithAuth(&authn.Basic{Username: loopback.User, Password: loopback.Password})))
	return ref.String()
}

func TestCredentialsAreFoundWhereOtherToolsKeepThem(t *testing.T) {
	registry := loopback.PrivateRegistry(t)
	base := privateBase(t, registry)
	good := auths(registry, loopback.Password)
	helpers := fmt.Sprintf(`{"credHelpers": {%q: "test"}}`, registry)
	for name, login := range map[string]func(*testing.T, *session){
		"docker login in the home folder": func(t *testing.T, s *session) {
			write(t, s.dir+"/home/.docker/config.json", good, 0o600)
		},
		"docker login with DOCKER_CONFIG": func(t *testing.T, s *session) {
			write(t, s.dir+"/docker/config.json", good, 0o600)
			s.env = append(s.env, "DOCKER_CONFIG="+s.dir+"/docker")
		},
		"DOCKER_CONFIG before the home folder": func(t *testing.T, s *session) {
			write(t, s.dir+"/home/.docker/config.json", auths(registry, "old"), 0o600)
			write(t, s.dir+"/docker/config.json", good, 0o600)
			s.env = append(s.env, "DOCKER_CONFIG="+s.dir+"/docker")
		},
		"DOCKER_AUTH_CONFIG beside a file of docker": func(t *testing.T, s *session) {
			write(t, s.dir+"/home/.docker/config.json", `{}`, 0o600)
			s.env = append(s.env, "DOCKER_AUTH_CONFIG="+good)
		},
		"a helper for the registry": func(t *testing.T, s *session) {
			write(t, s.dir+"/home/.docker/config.json", helpers, 0o600)
		},
		"a helper for all registries": func(t *testing.T, s *session) {
			write(t, s.dir+"/home/.docker/config.json", `{"credsStore": "test"}`, 0o600)
		},
		"REGISTRY_AUTH_FILE": func(t *testing.T, s *session) {
			write(t, s.dir+"/auth.json", good, 0o600)
			s.env = append(s.env, "REGISTRY_AUTH_FILE="+s.dir+"/auth.json")
		},
		"podman login in the runtime folder": func(t *testing.T, s *session) {
			write(t, s.dir+"/run/containers/auth.json", good, 0o600)
			s.env = append(s.env, "XDG_RUNTIME_DIR="+s.dir+"/run")
		},
		"podman's file in the configuration folder": func(t *testing.T, s *session) {
			write(t, s.dir+"/home/.config/containers/auth.json", good, 0o600)
		},
		"podman login by itself": func(t *testing.T, s *session) {
			s.env = append(s.env, "XDG_RUNTIME_DIR="+s.dir+"/run")
			s.login(t, "podman")
		},
		"skopeo login by itself": func(t *testing.T, s *session) {
			s.env = append(s.env, "XDG_RUNTIME_DIR="+s.dir+"/run")
			s.login(t, "skopeo")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t, registry, base)
			login(t, s)
			if code, stderr := s.convert(t); code != 0 {
				t.Errorf("exit code %d: %s", code, stderr)
			}
			if strings.HasPrefix(name, "a helper") {
				asked, err := os.ReadFile(s.dir + "/bin/asked")
				if err != nil || !strings.Contains(string(asked), "get "+registry) {
					t.Errorf("the helper was asked %q (%v)", asked, err)
				}
			}
		})
	}
}

// login lets a tool of the field write its file.
func (s *session) login(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		if os.Getenv("REQUIRE_TOOLS") == "1" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v", err)
	}
	check(t, os.MkdirAll(s.dir+"/run", 0o700))
	cmd := exec.CommandContext(t.Context(), tool, "login", "--tls-verify=false", "--username", loopback.User, "--password-stdin", s.registry)
	cmd.Env, cmd.Stdin = s.env, strings.NewReader(loopback.Password)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s login: %v\n%s", tool, err, out)
	}
}

func TestRefusedCredentialsEndInTheAdviceToLogIn(t *testing.T) {
	registry := loopback.PrivateRegistry(t)
	base := privateBase(t, registry)
	for name, test := range map[string]struct {
		config string // of docker
		env    string
		code   int
		want   []string
	}{
		"nobody has logged in": {"", "", 4, []string{registry + " wants credentials (401)", "docker login"}},
		"wrong password":       {auths(registry, "guess"), "", 4, []string{registry + " wants credentials (401)", "docker login"}},
		"another registry's":   {auths("registry.example.com", loopback.Password), "", 4, []string{"wants credentials (401)", "docker login"}},
		"helper without an answer": {
			`{"credsStore": "test"}`, "REGISTRY=registry.example.com", 4, []string{"wants credentials (401)", "docker login"},
		},
		"helper that is not installed": {`{"credsStore": "none"}`, "", 2, []string{"credentials for " + registry, "docker-credential-none", "mend the file"}},
		"broken file":                  {`{"auths": `, "", 2, []string{"credentials for " + registry, "mend the file"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t, registry, base)
			if test.config != "" {
				write(t, s.dir+"/home/.docker/config.json", test.config, 0o600)
			}
			s.env = append(s.env, test.env)
			code, stderr := s.convert(t)
			if code != test.code || strings.Count(strings.TrimSpace(stderr), "\n") > 0 {
				t.Errorf("exit code %d, want %d and one line: %s", code, test.code, stderr)
			}
			for _, want := range test.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("no %q in: %s", want, stderr)
				}
			}
			if strings.Contains(stderr, loopback.Password) || strings.Contains(stderr, "guess") {
				t.Errorf("the password is shown: %s", stderr)
			}
		})
	}
}

// A dry run finds out that the credentials are not good for the target, before anything is written.
func TestDryRunAsksTheTargetWithTheCredentials(t *testing.T) {
	registry := loopback.PrivateRegistry(t)
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64"})
	check(t, err)
	base, err := layout.Write(t.TempDir(), mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img}))
	check(t, err)
	for password, want := range map[string]int{loopback.Password: 0, "guess": 4} {
		s := newSession(t, registry, "oci:"+string(base))
		write(t, s.dir+"/home/.docker/config.json", auths(registry, password), 0o600)
		code, stderr := s.convert(t, "--dry-run")
		if code != want || want != 0 && !strings.Contains(stderr, registry+" wants credentials (401)") {
			t.Errorf("exit code %d, want %d: %s", code, want, stderr)
		}
	}
	catalog, err := name.NewRegistry(registry)
	check(t, err)
	list, err := remote.Catalog(t.Context(), catalog, remote.WithAuth(&authn.Basic{Username: loopback.User, Password: loopback.Password}))
	if err != nil || len(list) > 0 {
		t.Errorf("repositories %q, %v", list, err)
	}
}

// Where docker has a file, podman's is not looked at, and docker's variable is only read beside a file: the documentation says so.
func TestPlacesThatAreNotLookedAt(t *testing.T) {
	registry := loopback.PrivateRegistry(t)
	base := privateBase(t, registry)
	good := auths(registry, loopback.Password)
	for name, prepare := range map[string]func(*session){
		"podman's file beside one of docker": func(s *session) {
			write(t, s.dir+"/home/.docker/config.json", `{}`, 0o600)
			write(t, s.dir+"/run/containers/auth.json", good, 0o600)
			s.env = append(s.env, "XDG_RUNTIME_DIR="+s.dir+"/run")
		},
		"the home folder beside a DOCKER_CONFIG without a file": func(s *session) {
			write(t, s.dir+"/home/.docker/config.json", good, 0o600)
			s.env = append(s.env, "DOCKER_CONFIG="+s.dir+"/docker")
		},
		"DOCKER_AUTH_CONFIG without a file of docker": func(s *session) { s.env = append(s.env, "DOCKER_AUTH_CONFIG="+good) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t, registry, base)
			prepare(s)
			if code, stderr := s.convert(t); code != 4 {
				t.Errorf("exit code %d, want 4; mend docs/ci.md: %s", code, stderr)
			}
		})
	}
}
