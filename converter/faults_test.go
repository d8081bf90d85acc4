package converter_test

import (
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/layer"
	"github.com/shoal-project/shoal/converter/source"
	"github.com/shoal-project/shoal/converter/source/hubtest"
)

// faultyHub serves the model of flatModel; fault answers requests in place of the hub if it returns true.
func faultyHub(t *testing.T, fault func(s *httptest.Server, w http.ResponseWriter, r *http.Request) bool) converter.Config {
	t.Helper()
	hub := &hubtest.Hub{ID: "org/tiny", Dir: flatModel(t), Large: 1 << 20}
	s := httptest.NewUnstartedServer(hub)
	hub.Fault = func(w http.ResponseWriter, r *http.Request) bool { return fault(s, w, r) }
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	cfg := converts(t, "hf://org/tiny")
	cfg.Source.Hub.Endpoint = s.URL
	return cfg
}

func TestSourceThatDiesMidway(t *testing.T) {
	stored := func(r *http.Request) bool {
		return strings.HasPrefix(r.URL.Path, "/store/") && r.Method == http.MethodGet
	}
	var heads atomic.Int64
	for name, tc := range map[string]struct {
		fault func(s *httptest.Server, w http.ResponseWriter, r *http.Request) bool
		class error
		want  string
	}{
		"cut for good": {func(_ *httptest.Server, w http.ResponseWriter, r *http.Request) bool {
			if !stored(r) {
				return false
			}
			w.Header().Set("Content-Length", "1048576")
			_, _ = w.Write(make([]byte, 1000))
			panic(http.ErrAbortHandler)
		}, converter.ErrRegistry, ".bin"},
		"cut in its midst": {func(_ *httptest.Server, w http.ResponseWriter, r *http.Request) bool {
			if !stored(r) {
				return false
			}
			_, _ = w.Write(make([]byte, 1000))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, converter.ErrRegistry, "its connection was cut at byte"},
		"a later file is gone": {func(_ *httptest.Server, w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "vocab.txt") {
				http.NotFound(w, r)
				return true
			}
			return false
		}, converter.ErrSource, "vocab.txt"},
		"nobody listens any more": {func(s *httptest.Server, w http.ResponseWriter, r *http.Request) bool {
			if stored(r) {
				_ = s.Listener.Close()
				panic(http.ErrAbortHandler)
			}
			return false
		}, converter.ErrRegistry, "nobody listens"},
		"in trouble": {func(_ *httptest.Server, w http.ResponseWriter, r *http.Request) bool {
			if stored(r) && heads.Add(1) > 1 {
				w.WriteHeader(http.StatusBadGateway)
				return true
			}
			return false
		}, converter.ErrRegistry, "502"},
		"other bytes": {func(_ *httptest.Server, w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "vocab.txt") {
				w.Header().Set("Content-Length", "300000")
				_, _ = w.Write(make([]byte, 300_000))
				return true
			}
			return false
		}, converter.ErrVerify, "vocab.txt"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := faultyHub(t, tc.fault)
			_, err := converter.Convert(t.Context(), cfg)
			wantError(t, err, tc.class, tc.want)
			if errors.Is(err, layer.ErrChanged) || errors.Is(err, source.ErrChanged) {
				t.Errorf("told as a change: %v", err)
			}
			wantNothingLeft(t, cfg)
		})
	}
}

func TestSourceThatRecovers(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	cfg := faultyHub(t, func(_ *httptest.Server, w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if seen[r.URL.Path]++; r.Method != http.MethodGet || seen[r.URL.Path] > 1 {
			return false
		}
		panic(http.ErrAbortHandler)
	})
	got := modelLayers(t, cfg)
	if diff := cmp.Diff(modelLayers(t, converts(t, flatModel(t))), got); diff != "" {
		t.Errorf("(-folder +hub):\n%s", diff)
	}
}

// A layout gets a folder in one pass, so the file is changed while it is read.
func TestFileChangedInTheOnlyPass(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"written in place": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("other"), 4<<20)
				err = errors.Join(err, f.Close())
			}
			return err
		},
		"longer":  func(path string) error { return os.Truncate(path, 6<<20) },
		"shorter": func(path string) error { return os.Truncate(path, 4<<20+1) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := converts(t, writeModel(t, time.Now(), 0o644))
			path := filepath.Join(cfg.Model, "weights.bin")
			cfg.Progress = &onRead{after: 3 << 20, do: func() { check(t, change(path)) }}
			_, err := converter.Convert(t.Context(), cfg)
			wantError(t, err, converter.ErrSource, "weights.bin")
			if !errors.Is(err, source.ErrChanged) && !errors.Is(err, layer.ErrChanged) {
				t.Errorf("got %v", err)
			}
			wantNothingLeft(t, cfg)
		})
	}
}

// onRead does something once when so many bytes were read.
type onRead struct {
	recorder
	after int64
	once  sync.Once
	do    func()
}

func (o *onRead) Done(s converter.Stage, n int64) {
	o.recorder.Done(s, n)
	o.mu.Lock()
	reached := o.done[converter.Read] >= o.after
	o.mu.Unlock()
	if reached {
		o.once.Do(o.do)
	}
}
