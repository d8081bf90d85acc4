package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newCluster makes a cluster that the test's end removes, and checks that nothing of it is left.
func newCluster(t *testing.T, cfg Config) *Cluster {
	t.Helper()
	NeedTools(t, "ip", "tc")
	c, err := New(t.Context(), cfg)
	if errors.Is(err, ErrRoot) {
		NeedRoot(t)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		assertGone(t, c.run)
	})
	return c
}

func assertGone(t *testing.T, run string) {
	t.Helper()
	if left, err := Traces(run); err != nil || len(left) > 0 {
		t.Errorf("run %s left behind (%v): %v", run, err, left)
	}
}

func TestRootRegistryLogCountsWhatContainerdPulls(t *testing.T) {
	NeedTools(t, "docker-registry", "containerd", "ctr")
	c := newCluster(t, Config{})
	registry, img := startRegistryWith(t, c, 3<<20, 1<<20)
	host, err := c.AddHost(t.Context(), "node")
	if err != nil {
		t.Fatal(err)
	}
	containerd, err := host.StartContainerd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ref := registry.Addr() + "/random:1"
	for pull := range int64(2) { // the second after Forget, from nothing
		if err := containerd.Pull(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, layer := range layers {
			hash, _ := layer.Digest()
			size, _ := layer.Size()
			served, err := registry.WaitServed(t.Context(), digest.Digest(hash.String()), size*(pull+1))
			if err != nil || served != size*(pull+1) {
				t.Errorf("layer %s: the log has %d bytes (%v), want %d", hash, served, err, size*(pull+1))
			}
		}
		if err := containerd.Forget(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRootLinksHoldBothDirectionsToTheirRate(t *testing.T) {
	const size = 8 << 20
	rate := Rate(100e6)
	c := newCluster(t, Config{})
	a, errA := c.AddHost(t.Context(), "a")
	b, errB := c.AddHost(t.Context(), "b")
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	url := serveZeros(t, a, size)
	for _, test := range []struct {
		name string
		a, b Rate
		want float64
	}{
		{"no limit", 0, 0, 0},
		{"sender", rate, 0, rate.Seconds(size)},
		{"receiver", 0, rate, rate.Seconds(size)},
		{"lifted", 0, 0, 0},
	} {
		if err := errors.Join(a.SetLink(t.Context(), test.a), b.SetLink(t.Context(), test.b)); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if n := fetch(t, b, url); n != size {
			t.Errorf("%s: got %d bytes, want %d", test.name, n, size)
		}
		// The burst goes at once; what is slower than the limit is the machine's load and not ours to judge.
		if got := time.Since(start).Seconds(); got < 0.95*test.want-0.05 || test.want == 0 && got > rate.Seconds(size) {
			t.Errorf("%s: took %.2f s, the link's limit is %.2f s", test.name, got, test.want)
		}
	}
}

func TestRootAKilledRunIsFoundAndRemoved(t *testing.T) {
	NeedTools(t, "ip", "docker-registry")
	if os.Getenv("SHOAL_LAB_VICTIM") != "" { // the child: it makes a cluster and hangs
		c, err := New(t.Context(), Config{})
		if err == nil {
			_, err = c.StartRegistry(t.Context())
		}
		fmt.Printf("run=%s err=%v\n", c.run, err)
		select {}
	}
	NeedRoot(t)
	victim := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	victim.Env = append(os.Environ(), "SHOAL_LAB_VICTIM=1")
	stdout, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	var run string
	for line := ""; run == ""; {
		if _, err := fmt.Fscanln(stdout, &line); errors.Is(err, io.EOF) {
			t.Fatal("the child ended")
		}
		run, _ = strings.CutPrefix(line, "run=")
		if run == line {
			run = ""
		}
	}
	if dead, err := Leftovers(); err != nil || slices.Contains(dead, run) {
		t.Errorf("Leftovers() = %v, %v, has the living run %s", dead, err, run)
	}
	_ = victim.Process.Kill()
	_ = victim.Wait()
	if dead, err := Leftovers(); err != nil || !slices.Contains(dead, run) {
		t.Errorf("Leftovers() = %v, %v, want %s in it", dead, err, run)
	}
	if err := Remove(t.Context(), run); err != nil {
		t.Error(err)
	}
	assertGone(t, run)
}

func TestRootAProgramThatDiesIsToldWithItsLastWords(t *testing.T) {
	c := newCluster(t, Config{})
	host, err := c.AddHost(t.Context(), "host")
	if err != nil {
		t.Fatal(err)
	}
	p, err := host.Start("doomed", []string{"sh", "-c", "echo out of luck >&2; exit 3"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = p.waitHealthy(t.Context(), host.Client(), "http://127.0.0.1:1/")
	if !errors.Is(err, ErrExited) || !strings.Contains(err.Error(), "out of luck") {
		t.Errorf("error %v, want ErrExited with the program's output", err)
	}
	if _, err := host.Run(t.Context(), "sh", "-c", "echo no such luck >&2; exit 1"); err == nil || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("Run: error %v, want the program's output in it", err)
	}
}

func TestRootAPausedProcessIsStoppedToo(t *testing.T) {
	c := newCluster(t, Config{})
	host, err := c.AddHost(t.Context(), "host")
	if err != nil {
		t.Fatal(err)
	}
	p, err := host.Start("sleeper", []string{"sleep", "1000"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	p.Stop(stopGrace)
	if took := time.Since(start); took >= stopGrace {
		t.Errorf("Stop took %v, the whole grace", took)
	}
}

// The end of newCluster's test sees to it that mounts and loop devices go with the cluster.
func TestRootEROFSMountsFromFilesAndFromLoopDevices(t *testing.T) {
	NeedTools(t, "mkfs.erofs", "losetup")
	c := newCluster(t, Config{})
	source, image := filepath.Join(c.Dir(), "source"), filepath.Join(c.Dir(), "image")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := command(t.Context(), "mkfs.erofs", image, source); err != nil {
		t.Fatal(err)
	}
	for name, mount := range map[string]func(context.Context, string, []string, string) error{"files": MountEROFS, "loops": mountLoops} {
		folder := filepath.Join(c.Dir(), name)
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := mount(t.Context(), image, nil, folder); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := os.ReadFile(filepath.Join(folder, "file")); err != nil || string(got) != "content" {
			t.Errorf("%s: file holds %q, %v", name, got, err)
		}
	}
}

func startRegistryWith(t *testing.T, c *Cluster, sizes ...int64) (*Registry, v1.Image) {
	t.Helper()
	registry, err := c.StartRegistry(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	img, err := RandomImage(t.TempDir(), 1, sizes...)
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.Push(t.Context(), "random", "1", img); err != nil {
		t.Fatal(err)
	}
	return registry, img
}

// serveZeros serves size bytes on the host and returns their URL.
func serveZeros(t *testing.T, h *Host, size int64) string {
	t.Helper()
	listener, err := h.Listen(t.Context(), h.Addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, size)) // a short reply is the reader's finding
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // until Close below
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return "http://" + listener.Addr().String() + "/"
}

func fetch(t *testing.T, h *Host, url string) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := h.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
