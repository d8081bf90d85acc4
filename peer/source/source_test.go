package source_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/peer/source"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// registry serves one handler on a loopback port and returns its HOST:PORT.
func registry(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.Listener.Addr().String()
}

func newSource(t testing.TB, cfg source.Config) *source.Source {
	t.Helper()
	if cfg.Resolve == nil {
		endpoints, err := source.NewEndpoints(nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(endpoints.Close)
		cfg.Resolve = endpoints.Resolve
	}
	s, err := source.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var content = []byte(strings.Repeat("0123456789abcdef", 64<<10))

func blobAt(registry string) source.Blob {
	return source.Blob{Registry: registry, Repository: "team/model", Digest: digest.FromBytes(content), Size: int64(len(content))}
}

func serveContent(w http.ResponseWriter, r *http.Request) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

func TestFetchReturnsExactlyTheRange(t *testing.T) {
	s := newSource(t, source.Config{})
	b := blobAt(registry(t, serveContent))
	for _, r := range [][2]int64{{0, b.Size}, {0, 1}, {1000, 5000}, {b.Size - 1, 1}} {
		body, err := s.Fetch(t.Context(), b, r[0], r[1], "")
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(got, content[r[0]:r[0]+r[1]]) {
			t.Errorf("range %v: %d bytes, error %v", r, len(got), err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	}
}
