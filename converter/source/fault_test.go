package source

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// need finds a tool, or skips aloud; with REQUIRE_TOOLS=1 it fails instead.
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

// quick asks again at once.
func quick(cfg Config) Config {
	cfg.RetryDelay = time.Nanosecond
	return cfg
}

// serve starts a server that ends with the test.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

// faults spoils the answers to requests whose path ends as given, each fault once, in order.
type faults struct {
	http.Handler
	mu   sync.Mutex
	of   map[string][]fault // guarded by mu
	seen []string           // method, path and range of each request; guarded by mu
}

type fault func(w http.ResponseWriter, r *http.Request, h http.Handler)

func (f *faults) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.seen = append(f.seen, r.Method+" "+r.URL.Path+" "+r.Header.Get("Range"))
	var next fault
	if list := f.of[r.URL.Path]; len(list) > 0 {
		next, f.of[r.URL.Path] = list[0], list[1:]
	}
	f.mu.Unlock()
	if next == nil {
		f.Handler.ServeHTTP(w, r)
		return
	}
	next(w, r, f.Handler)
}

func (f *faults) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string{}, f.seen...)
}

// status answers with a code.
func status(code int, headers ...string) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
	}
}

// cut breaks the connection after n bytes of the body.
func cut(n int) fault {
	return func(w http.ResponseWriter, r *http.Request, h http.Handler) {
		h.ServeHTTP(&cutter{w, n}, r)
	}
}

type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 || err != nil {
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

// spoil changes a byte of the body.
func spoil(at int) fault {
	return func(w http.ResponseWriter, r *http.Request, h http.Handler) {
		h.ServeHTTP(&spoiler{w, at}, r)
	}
}

type spoiler struct {
	http.ResponseWriter
	at int
}

func (s *spoiler) Write(p []byte) (int, error) {
	p = bytes.Clone(p)
	if s.at >= 0 && s.at < len(p) {
		p[s.at] ^= 1
	}
	s.at -= len(p)
	return s.ResponseWriter.Write(p)
}

// hang says nothing until the caller gives up.
func hang(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }

// read opens a file of a listed model and reads it to its end.
func read(ctx context.Context, m *Model, name string, offset int64) ([]byte, error) {
	for i := range m.Files {
		if m.Files[i].Path != name {
			continue
		}
		r, err := m.Files[i].Open(ctx, offset)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	return nil, fmt.Errorf("there is no %s", name)
}

func TestListedModelsAreReadConcurrently(t *testing.T) {
	big := string(noise(6, 300_000))
	zipped := zipOf(t, packed{"a", big, 0, 0}, packed{"b", big, 8, 0})
	_, url := newWeb(t, web{"/m.zip": zipped})
	h, _, cfg := newHub(t)
	for _, ref := range []string{url + "/m.zip", "hf://org/tiny", h.Dir} {
		m, err := Open(t.Context(), ref, cfg)
		check(t, err)
		var readers sync.WaitGroup
		for i := range 12 {
			readers.Go(func() {
				f := &m.Files[i%len(m.Files)]
				if !f.Mode.IsRegular() {
					return
				}
				offset := min(int64(i)*1000, f.Size)
				if got, err := read(t.Context(), m, f.Path, offset); err != nil || int64(len(got)) != f.Size-offset {
					t.Errorf("%s: %s from %d: %d bytes, %v", ref, f.Path, offset, len(got), err)
				}
			})
		}
		readers.Wait()
		check(t, m.Close())
	}
}
