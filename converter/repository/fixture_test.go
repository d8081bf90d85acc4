package repository

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func noise(seed byte, n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(out)
	return out
}

// hasty is a Retry that does not wait.
func hasty(attempts int) Retry {
	return Retry{Attempts: attempts, Pause: time.Millisecond, MaxPause: time.Millisecond, MaxRetryAfter: time.Millisecond}
}

func blobOf(data []byte) Blob {
	return Blob{
		Descriptor: ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(data), Size: int64(len(data))},
		Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data[offset:])), nil
		},
	}
}

func registryAt(t testing.TB, address string, cfg Config) *Registry {
	t.Helper()
	repo, err := name.NewRepository(address + "/ml/x")
	check(t, err)
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	if cfg.Transport == nil {
		cfg.Transport = transport
	}
	return NewRegistry(repo, cfg)
}

// fakeRegistry keeps blobs and manifests in memory and resumes uploads wherever they ended, which the registries of Debian's and the
// distribution project's do not. before may answer a request in its place.
type fakeRegistry struct {
	before func(w http.ResponseWriter, r *http.Request) (done bool)

	mu       sync.Mutex
	blobs    map[string][]byte // guarded by mu, as all below
	sessions map[string][]byte
	serial   int
	received int64 // bytes of uploads
	requests map[string]int
}

func newFake(t testing.TB) (*fakeRegistry, string) {
	t.Helper()
	f := &fakeRegistry{blobs: map[string][]byte{}, sessions: map[string][]byte{}, requests: map[string]int{}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return f, strings.TrimPrefix(server.URL, "http://")
}

func (f *fakeRegistry) count(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests[method]
}

func (f *fakeRegistry) blob(d digest.Digest) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.blobs[d.String()]
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests[r.Method]++
	f.mu.Unlock()
	if f.before != nil && f.before(w, r) {
		return
	}
	path, isUpload := strings.CutPrefix(r.URL.Path, "/v2/ml/x/blobs/uploads/")
	switch {
	case r.URL.Path == "/v2/":
	case isUpload:
		f.upload(w, r, path)
	case r.Method == http.MethodPut:
		raw, _ := io.ReadAll(r.Body)
		f.mu.Lock()
		f.blobs[filepath.Base(r.URL.Path)] = raw
		f.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
	default:
		raw := f.blob(digest.Digest(filepath.Base(r.URL.Path)))
		if raw == nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(raw))
	}
}

func (f *fakeRegistry) upload(w http.ResponseWriter, r *http.Request, id string) {
	if r.Method == http.MethodPost {
		f.mu.Lock()
		f.serial++
		id = strconv.Itoa(f.serial)
		f.sessions[id] = []byte{}
		f.mu.Unlock()
		w.Header().Set("Location", "/v2/ml/x/blobs/uploads/"+id)
		w.WriteHeader(http.StatusAccepted)
		return
	}
	f.mu.Lock()
	have, ok := f.sessions[id]
	f.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	switch r.Method {
	case http.MethodPatch:
		var start, end int
		_, err := fmt.Sscanf(r.Header.Get("Content-Range"), "%d-%d", &start, &end)
		if err != nil || start != len(have) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		got, err := io.ReadAll(r.Body)
		f.mu.Lock()
		f.sessions[id] = append(have, got...)
		f.received += int64(len(got))
		f.mu.Unlock()
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusAccepted)
	case http.MethodGet:
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(0, len(have)-1)))
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPut:
		if got := digest.FromBytes(have).String(); got != r.URL.Query().Get("digest") {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		f.mu.Lock()
		f.blobs[r.URL.Query().Get("digest")] = have
		delete(f.sessions, id)
		f.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
	}
}

// need finds a tool or skips aloud; with REQUIRE_TOOLS=1 it fails.
func need(t testing.TB, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err == nil {
		return path
	}
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s is missing and REQUIRE_TOOLS=1", tool)
	}
	t.Skipf("SKIPPED: %s is missing; install it to run this test", tool)
	return ""
}

// realRegistry starts docker-registry (version 2) or distribution (version 3) and returns its address.
func realRegistry(t *testing.T, program string) string {
	t.Helper()
	return realRegistryIn(t, program, t.TempDir())
}

// realRegistryIn starts one that stores in a folder.
func realRegistryIn(t *testing.T, program, folder string) string {
	t.Helper()
	path := need(t, program)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	address := l.Addr().String()
	check(t, l.Close())
	config := filepath.Join(t.TempDir(), "config.yml")
	check(t, os.WriteFile(config, fmt.Appendf(nil,
		"version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s, secret: test}\n",
		folder, address), 0o600))
	cmd := exec.Command(path, "serve", config)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", program, out.String()[max(0, out.Len()-3000):])
		}
	})
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			check(t, conn.Close())
			return address
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s does not listen: %s", program, out.String())
		}
	}
}

// faultProxy stands before a registry. fault may spoil a request: it gets the handler that forwards it.
func faultProxy(t *testing.T, address string, fault func(w http.ResponseWriter, r *http.Request, forward http.Handler)) string {
	t.Helper()
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	forward := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := r.Clone(r.Context())
		out.URL, out.RequestURI = &url.URL{Scheme: "http", Host: address, Path: r.URL.Path, RawQuery: r.URL.RawQuery}, ""
		resp, err := transport.RoundTrip(out) // keeps Host, so that the registry names this proxy in its answers
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fault(w, r, forward) }))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}
