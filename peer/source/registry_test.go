package source_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
)

// needTool returns the path of a program; without it the test is skipped, or fails where tools are required.
func needTool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") == "1" {
			t.Fatalf("%s is required: %v", name, err)
		}
		t.Skipf("%s is not installed: this behaviour goes UNTESTED", name)
	}
	return path
}

// htpasswd is user "reader", password "secret".
const htpasswd = "reader:$2a$04$Ak9SG1hZ6dTheHxz.U9L7.B2wSvM6O.PTURhUUhC3e2esovau/tV.\n"

// dockerRegistry runs Debian's registry on a loopback port until the test ends and returns its HOST:PORT.
func dockerRegistry(t testing.TB, auth bool) string {
	t.Helper()
	return dockerRegistryBelow(t, auth, "/")
}

// dockerRegistryBelow has it serve below a prefix.
func dockerRegistryBelow(t testing.TB, auth bool, prefix string) string {
	t.Helper()
	program, dir := needTool(t, "docker-registry"), t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: 127.0.0.1:0, prefix: %s}\n", dir, prefix)
	if auth {
		users := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(users, []byte(htpasswd), 0o600); err != nil {
			t.Fatal(err)
		}
		config += "auth: {htpasswd: {realm: test, path: " + users + "}}\n"
	}
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", file) // killed below, before the folder goes
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr, drained := make(chan string, 1), make(chan struct{})
	go func() { // ends with the process
		defer close(drained)
		listening := regexp.MustCompile(`listening on (127\.0\.0\.1:[0-9]+)`)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				addr <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-drained
		_ = cmd.Wait() // killed
	})
	select {
	case a := <-addr:
		return a
	case <-drained:
		t.Fatal("docker-registry ended before it listened")
	case <-time.After(20 * time.Second):
		t.Fatal("docker-registry does not listen")
	}
	return ""
}

// push uploads a blob and returns how to find it.
func push(t testing.TB, registry, authorization string, data []byte) source.Blob {
	t.Helper()
	b := source.Blob{Registry: registry, Repository: "team/model", Digest: digest.FromBytes(data), Size: int64(len(data))}
	location := send(t, http.MethodPost, "http://"+registry+"/v2/"+b.Repository+"/blobs/uploads/", authorization, nil)
	send(t, http.MethodPut, location+"&digest="+b.Digest.String(), authorization, data)
	return b
}

func send(t testing.TB, method, target, authorization string, body []byte) (location string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s %s", method, target, resp.Status, text)
	}
	return resp.Header.Get("Location")
}

// fetchAll reads the range of an offset and a length.
func fetchAll(t testing.TB, s *source.Source, b source.Blob, r [2]int64, authorization string) ([]byte, error) {
	t.Helper()
	body, err := s.Fetch(t.Context(), b, r[0], r[1], authorization)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

func TestDockerRegistryServesRanges(t *testing.T) {
	b := push(t, dockerRegistry(t, false), "", content)
	s := newSource(t, source.Config{})
	for _, r := range [][2]int64{{0, b.Size}, {0, 1}, {12345, 300_000}, {b.Size - 1, 1}} {
		got, err := fetchAll(t, s, b, r, "")
		if err != nil || !bytes.Equal(got, content[r[0]:r[0]+r[1]]) {
			t.Errorf("range %v: %d bytes, error %v", r, len(got), err)
		}
	}
	missing := b
	missing.Digest = digest.FromString("nothing")
	_, err := fetchAll(t, s, missing, [2]int64{0, 1}, "")
	refused, ok := errors.AsType[*source.StatusError](err)
	if !ok || refused.Status != http.StatusNotFound || !errors.Is(err, piece.ErrAbsent) {
		t.Errorf("missing blob: %v", err)
	}
}

func TestDockerRegistryWithUsersNeedsCredentials(t *testing.T) {
	const basic = "Basic cmVhZGVyOnNlY3JldA=="
	b := push(t, dockerRegistry(t, true), basic, content)
	keychain := func(user, password string) authn.Keychain {
		return keys{b.Registry: {Username: user, Password: password}}
	}
	for _, c := range []struct {
		name, authorization string
		keychain            authn.Keychain
		want                error
	}{
		{name: "nobody", want: piece.ErrDenied},
		{name: "the caller's own", authorization: basic},
		{name: "the caller's own, wrong, although the keychain's are right", authorization: "Basic eDp5", keychain: keychain("reader", "secret"), want: piece.ErrDenied},
		{name: "the keychain's", keychain: keychain("reader", "secret")},
		{name: "the keychain's, wrong", keychain: keychain("reader", "wrong"), want: piece.ErrDenied},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSource(t, source.Config{Keychain: c.keychain})
			for range 2 { // the second time with what was learnt
				got, err := fetchAll(t, s, b, [2]int64{100, 1000}, c.authorization)
				if !errors.Is(err, c.want) || err == nil && !bytes.Equal(got, content[100:1100]) {
					t.Errorf("%d bytes, error %v, want %v", len(got), err, c.want)
				}
			}
		})
	}
}

// TestRegistryIsReadFromItsMirrorBelowAPrefix has a registry's name led to another host and path, with the credentials of its name.
func TestRegistryIsReadFromItsMirrorBelowAPrefix(t *testing.T) {
	const basic = "Basic cmVhZGVyOnNlY3JldA=="
	mirror := dockerRegistryBelow(t, true, "/hub/")
	b := push(t, mirror+"/hub", basic, content)
	b.Registry = "registry.example"
	endpoints := newEndpoints(t, map[string]source.RegistryConfig{b.Registry: {URL: "http://" + mirror + "/hub"}})
	s := newSource(t, source.Config{Resolve: endpoints.Resolve, Keychain: keys{b.Registry: {Username: "reader", Password: "secret"}}})
	for _, authorization := range []string{basic, ""} {
		if got, err := fetchAll(t, s, b, [2]int64{100, 1000}, authorization); err != nil || !bytes.Equal(got, content[100:1100]) {
			t.Errorf("%d bytes, error %v", len(got), err)
		}
	}
}

// keys is a keychain for tests.
type keys map[string]authn.AuthConfig

func (k keys) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if config, ok := k[r.RegistryStr()]; ok {
		return authn.FromConfig(config), nil
	}
	return authn.Anonymous, nil
}

// fixed resolves every registry alike.
func fixed(base *url.URL, client *http.Client) func(string) (*url.URL, *http.Client) {
	return func(string) (*url.URL, *http.Client) { return base, client }
}
