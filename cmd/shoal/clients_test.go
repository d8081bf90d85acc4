package main_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/shoal-project/shoal/hack/lab/cluster"
	"github.com/shoal-project/shoal/hack/loopback"
)

// TestRootPodmansLibraryAndDockerPullThroughTheMirror has skopeo, which reads what podman and CRI-O read, and dockerd pull an image of
// docker.io through a node. Docker Hub itself cannot answer: the node reaches it at a registry of this machine, which wants a token for all
// as that does.
func TestRootPodmansLibraryAndDockerPullThroughTheMirror(t *testing.T) {
	cluster.NeedRoot(t)
	cluster.NeedTools(t, "docker-registry", "skopeo", "dockerd", "docker", "unshare")
	hub := loopback.Registry(t)
	ref, err := name.NewTag(hub+"/library/small:1", name.Insecure)
	check(t, err)
	img, err := cluster.RandomImage(t.TempDir(), 1, 100_000, 300_000)
	check(t, err)
	check(t, remote.Write(ref, img, remote.WithContext(t.Context())))
	mirror, _ := startNode(t, wantTokens(t, hub))

	t.Run("podman", func(t *testing.T) {
		etc := t.TempDir()
		write(t, etc+"/policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`, 0o644)
		write(t, etc+"/registries.conf", "", 0o644)
		shoal(t, "mirror", "configure", "--for", "podman", "--mirror", mirror, "--registry", "docker.io", "--registries-dir", etc+"/registries.conf.d")
		// In a mount namespace of its own the folder is that of the system.
		output(t, exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/containers && exec skopeo copy docker://docker.io/library/small:1 "dir:$1"`,
			etc, t.TempDir()))
	})
	t.Run("docker", func(t *testing.T) {
		dir, err := os.MkdirTemp("", "dockerd") //nolint:usetesting // t.TempDir is too long for a socket
		check(t, err)
		t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
		config, socket := dir+"/daemon.json", "unix://"+dir+"/docker.sock"
		write(t, config, `{"storage-driver": "vfs", "iptables": false, "ip6tables": false, "bridge": "none"}`, 0o644)
		shoal(t, "mirror", "configure", "--for", "docker", "--mirror", mirror, "--docker-config", config)
		ended := loopback.Daemon(t, exec.CommandContext(context.WithoutCancel(t.Context()), "dockerd", "--config-file", config, "--host", socket,
			"--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid"))
		if !loopback.Eventually(t, "dockerd", ended, func(ctx context.Context) bool {
			return exec.CommandContext(ctx, "docker", "--host", socket, "version").Run() == nil
		}) {
			t.Fatal("dockerd ended")
		}
		output(t, exec.CommandContext(t.Context(), "docker", "--host", socket, "pull", "docker.io/library/small:1"))
	})
}

// wantTokens stands before a registry and lets nobody in without the token that it gives everybody.
func wantTokens(t *testing.T, registry string) string {
	t.Helper()
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	var realm string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			_, _ = w.Write([]byte(`{"token": "everybody's"}`))
		case r.Header.Get("Authorization") != "Bearer everybody's":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="hub"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			forward.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	check(t, err)
	realm = "http://localhost:" + port + "/token" // a name, as the token server of Docker Hub has one
	return srv.Listener.Addr().String()
}

// TestStatusPageInABrowser looks at a node's page with Chromium, which must have nothing to complain of.
func TestStatusPageInABrowser(t *testing.T) {
	cluster.NeedTools(t, "chromium")
	_, page := startNode(t, "127.0.0.1:1")
	cmd := exec.CommandContext(t.Context(), "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir="+t.TempDir(),
		"--enable-logging=stderr", "--timeout=10000", "--dump-dom", page)
	cmd.Env, cmd.WaitDelay = append(os.Environ(), "HOME="+t.TempDir()), 10*time.Second
	var talk strings.Builder
	cmd.Stderr = &talk
	dom, err := cmd.Output()
	check(t, err)
	for _, want := range []string{"<h1>test-node</h1>", "Blobs on their way", "0 blobs", "Given to others"} {
		if !strings.Contains(string(dom), want) {
			t.Errorf("no %s in\n%s", want, dom)
		}
	}
	for _, complaint := range []string{"CONSOLE", "Content Security Policy"} {
		if strings.Contains(talk.String(), complaint) {
			t.Errorf("the browser complains:\n%s", &talk)
		}
	}
}

// startNode runs a node that reaches docker.io at hub, and returns the URLs of its mirror and of its page.
func startNode(t *testing.T, hub string) (mirror, page string) {
	t.Helper()
	dir := t.TempDir()
	listen, admin := freeAddress(t), freeAddress(t)
	config := filepath.Join(dir, "node.yaml")
	write(t, config, fmt.Sprintf("name: test-node\ndata_dir: %s/data\nmirror: {listen: %q, default_registry: docker.io}\nadmin: {listen: %q}\nregistries: {docker.io: {url: \"http://%s\"}}\n",
		dir, listen, admin, hub), 0o600)
	ended := loopback.Daemon(t, exec.CommandContext(context.WithoutCancel(t.Context()), "shoal", "node", "--config", config))
	if !loopback.Eventually(t, "shoal node", ended, func(ctx context.Context) bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+listen+"/v2/", nil)
		if err != nil {
			return false
		}
		resp, err := http.DefaultClient.Do(req)
		return err == nil && resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	}) {
		t.Fatal("the node ended")
	}
	return "http://" + listen, "http://" + admin + "/"
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().String()
}

func shoal(t *testing.T, args ...string) {
	t.Helper()
	output(t, exec.CommandContext(t.Context(), "shoal", args...))
}

func output(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	cmd.WaitDelay = 10 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}
