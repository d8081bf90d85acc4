package mirror

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestAccessLogTellsWhatWasAnswered(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	var log bytes.Buffer // read when all handlers have ended
	web := httptest.NewServer(AccessLog(f.handler, slog.New(slog.NewJSONHandler(&log, nil))))
	f.mirror.Close()
	f.mirror = web
	f.get("/v2/a/b/manifests/v1", "User-Agent", "containerd/9")
	f.get(f.blobPath(), "Range", "bytes=5-9", "Authorization", "Basic c2VjcmV0")
	f.get("/v2/a/b/blobs/nonsense")
	web.Close() // waits for the handlers
	var got []string
	for line := range bytes.Lines(log.Bytes()) {
		var entry struct {
			Path, Range, Agent, Registry string
			Status, Bytes                int
		}
		if err := json.Unmarshal(line, &entry); err != nil || entry.Registry != f.origin.Listener.Addr().String() {
			t.Fatalf("%s: %v", line, err)
		}
		got = append(got, filepath.Base(filepath.Dir(entry.Path))+" "+entry.Range+" "+http.StatusText(entry.Status))
		if entry.Status == 206 && entry.Bytes != 5 {
			t.Errorf("%s: not five bytes", line)
		}
	}
	if want := []string{"manifests  OK", "blobs bytes=5-9 Partial Content", "blobs  Not Found"}; !slices.Equal(got, want) {
		t.Errorf("log %q, want %q", got, want)
	}
	if bytes.Contains(log.Bytes(), []byte("c2VjcmV0")) {
		t.Error("credentials are logged")
	}
}

// sentFiles is a connection's writer that takes files, as that of net/http does.
type sentFiles struct {
	http.ResponseWriter
	files int
}

func (s *sentFiles) ReadFrom(r io.Reader) (int64, error) {
	s.files++
	var buf bytes.Buffer
	n, err := buf.ReadFrom(r)
	_, _ = s.Write(buf.Bytes())
	return n, err
}

func TestAccessLogLeavesFilesToTheConnection(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &sentFiles{ResponseWriter: httptest.NewRecorder()}
	AccessLog(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		file, err := os.Open(name)
		if err != nil {
			t.Error(err)
			return
		}
		defer file.Close()
		http.ServeContent(w, r, "", time.Time{}, file)
	}), slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.files != 1 {
		t.Errorf("%d files were handed on, want 1", w.files)
	}
}
