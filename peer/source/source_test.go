package source_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// registry serves one handler on a loopback port and returns its HOST:PORT.
func registry(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.Listener.Addr().String()
}

func newEndpoints(t testing.TB, configs map[string]source.RegistryConfig) *source.Endpoints {
	t.Helper()
	endpoints, err := source.NewEndpoints(configs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(endpoints.Close)
	return endpoints
}

func newSource(t testing.TB, cfg source.Config) *source.Source {
	t.Helper()
	if cfg.Resolve == nil {
		cfg.Resolve = newEndpoints(t, nil).Resolve
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
	for _, size := range []int64{b.Size, 0} { // known and not known
		b.Size = size
		for _, r := range [][2]int64{{0, int64(len(content))}, {0, 1}, {1000, 5000}, {int64(len(content)) - 1, 1}} {
			got, err := fetchAll(t, s, b, r, "")
			if err != nil || !bytes.Equal(got, content[r[0]:r[0]+r[1]]) {
				t.Errorf("size %d, range %v: %d bytes, error %v", size, r, len(got), err)
			}
		}
	}
}

func TestFaultyRegistryFailsInItsClass(t *testing.T) {
	hang := func(r *http.Request) { <-r.Context().Done() }
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			http.Error(w, "no\n luck", code)
		}
	}
	send := func(code int, header map[string]string, n int, after func(*http.Request)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for k, v := range header {
				w.Header().Set(k, v)
			}
			w.WriteHeader(code)
			_, _ = w.Write(content[:n])
			_ = http.NewResponseController(w).Flush()
			if after != nil {
				after(r)
			}
		}
	}
	const goodRange, total = "bytes 0-999/1048576", "1048576"
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		want    []error
	}{
		{"401 without a challenge", status(401), []error{piece.ErrDenied}},
		{"403", status(403), []error{piece.ErrDenied}},
		{"404", status(404), []error{piece.ErrAbsent}},
		{"416", status(416), []error{piece.ErrTransient}},
		{"429", status(429), []error{piece.ErrTransient}},
		{"500", status(500), []error{piece.ErrTransient}},
		{"503", status(503), []error{piece.ErrTransient}},
		{"no content", status(204), []error{piece.ErrTransient}},
		{"never answers", func(_ http.ResponseWriter, r *http.Request) { hang(r) }, []error{source.ErrStalled, piece.ErrTransient}},
		{"stops after the header", send(206, map[string]string{"Content-Range": goodRange, "Content-Length": "1000"}, 0, hang), []error{source.ErrStalled}},
		{"stops in the middle", send(206, map[string]string{"Content-Range": goodRange, "Content-Length": "1000"}, 500, hang), []error{source.ErrStalled}},
		{"cut in the middle", send(206, map[string]string{"Content-Range": goodRange, "Content-Length": "1000"}, 500, nil), []error{io.ErrUnexpectedEOF, piece.ErrTransient}},
		{"chunked and short", send(206, map[string]string{"Content-Range": goodRange}, 500, nil), []error{io.ErrUnexpectedEOF, piece.ErrTransient}},
		{"other range", send(206, map[string]string{"Content-Range": "bytes 1-1000/" + total, "Content-Length": "1000"}, 1000, nil), []error{piece.ErrTransient}},
		{"other length", send(206, map[string]string{"Content-Range": goodRange, "Content-Length": "999"}, 999, nil), []error{piece.ErrTransient}},
		{"other size", send(206, map[string]string{"Content-Range": "bytes 0-999/5000", "Content-Length": "1000"}, 1000, nil), []error{piece.ErrTransient}},
		{"no range", send(206, map[string]string{"Content-Length": "1000"}, 1000, nil), []error{piece.ErrTransient}},
		{"whole blob of another size", send(200, map[string]string{"Content-Length": "2000"}, 2000, nil), []error{piece.ErrTransient}},
		{"redirects for ever", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, []error{piece.ErrTransient}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSource(t, source.Config{Patience: 200 * time.Millisecond, Stall: 100 * time.Millisecond})
			_, err := fetchAll(t, s, blobAt(registry(t, c.handler)), [2]int64{0, 1000}, "")
			for _, want := range c.want {
				if !errors.Is(err, want) {
					t.Errorf("error %v, want %v", err, want)
				}
			}
			if refused, ok := errors.AsType[*source.StatusError](err); ok && refused.Status != 204 {
				if refused.RetryAfter != 7*time.Second || refused.Text != "no luck" {
					t.Errorf("refusal %+v", refused)
				}
			}
		})
	}
}

func TestRegistryWithoutRangesIsReadFromTheStart(t *testing.T) {
	s := newSource(t, source.Config{})
	b := blobAt(registry(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) }))
	got, err := fetchAll(t, s, b, [2]int64{0, 1000}, "")
	if err != nil || !bytes.Equal(got, content[:1000]) {
		t.Errorf("from 0: %d bytes, error %v", len(got), err)
	}
	if _, err := fetchAll(t, s, b, [2]int64{1, 1000}, ""); !errors.Is(err, source.ErrRangeIgnored) || !errors.Is(err, piece.ErrTransient) {
		t.Errorf("from 1: %v", err)
	}
}

func TestReaderThatPausesIsNotTheRegistrysStall(t *testing.T) {
	s := newSource(t, source.Config{Stall: 30 * time.Millisecond})
	body, err := s.Fetch(t.Context(), blobAt(registry(t, serveContent)), 0, int64(len(content)), "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	var got bytes.Buffer
	if _, err := io.CopyN(&got, body, 10); err != nil {
		t.Fatal(err)
	}
	<-time.After(100 * time.Millisecond) // the pause is what is tested
	if _, err := io.Copy(&got, body); err != nil || !bytes.Equal(got.Bytes(), content) {
		t.Errorf("%d bytes, error %v", got.Len(), err)
	}
}

func TestEndedCallerIsNotTheRegistrysFault(t *testing.T) {
	gone := errors.New("the lease moved")
	ctx, cancel := context.WithCancelCause(t.Context())
	b := blobAt(registry(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel(gone)
		<-r.Context().Done()
	}))
	_, err := newSource(t, source.Config{}).Fetch(ctx, b, 0, 10, "")
	if !errors.Is(err, gone) || errors.Is(err, piece.ErrTransient) {
		t.Errorf("error %v, want only the cause of the cancellation", err)
	}
}

// TestCredentialsStayWithTheirHost follows a redirect to another port of the same host, which net/http alone would trust.
func TestCredentialsStayWithTheirHost(t *testing.T) {
	seen := make(chan string, 2)
	storage := registry(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Get("Authorization")
		serveContent(w, r)
	})
	b := blobAt(registry(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Get("Authorization")
		http.Redirect(w, r, "http://"+storage+"/signed", http.StatusTemporaryRedirect)
	}))
	got, err := fetchAll(t, newSource(t, source.Config{}), b, [2]int64{10, 20}, "Bearer mine")
	if err != nil || !bytes.Equal(got, content[10:30]) {
		t.Fatalf("%q, error %v", got, err)
	}
	if first, second := <-seen, <-seen; first != "Bearer mine" || second != "" {
		t.Errorf("the registry saw %q, the storage behind it %q", first, second)
	}
}

func TestSignedURLsAreNotInErrors(t *testing.T) {
	for _, location := range []string{"http://127.0.0.1:1/blob?X-Amz-Signature=secret", "/again?X-Amz-Signature=secret"} { // refused, and endless
		b := blobAt(registry(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, location, http.StatusTemporaryRedirect)
		}))
		_, err := fetchAll(t, newSource(t, source.Config{}), b, [2]int64{10, 20}, "")
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error %v", location, err)
		}
	}
}

// tokenRegistry is a registry with a token server of its own. Each token is good for one use of its number.
type tokenRegistry struct {
	mu     sync.Mutex
	asked  []string // what the token server was asked
	issued int
	valid  string
	refuse int // status of the token server, if not 0
}

func (r *tokenRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if req.URL.Path == "/token" {
		user, _, _ := req.BasicAuth()
		r.asked = append(r.asked, req.URL.Query().Get("service")+" "+req.URL.Query().Get("scope")+" "+user)
		if r.refuse != 0 {
			w.WriteHeader(r.refuse)
			return
		}
		r.issued++
		r.valid = fmt.Sprintf("token-%d", r.issued)
		fmt.Fprintf(w, `{"token":%q,"expires_in":300}`, r.valid)
		return
	}
	if req.Header.Get("Authorization") != "Bearer "+r.valid || r.valid == "" {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+req.Host+`/token",service="the, \"registry\"",scope="repository:team/model:pull"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	serveContent(w, req)
}

func (r *tokenRegistry) revoke() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.valid = ""
}

func TestTokenIsFetchedOnceAndAgainWhenRefused(t *testing.T) {
	server := &tokenRegistry{}
	b := blobAt(registry(t, server.ServeHTTP))
	s := newSource(t, source.Config{Keychain: keys{b.Registry: authn.AuthConfig{Username: "reader", Password: "secret"}}})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := fetchAll(t, s, b, [2]int64{5, 50}, ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	server.revoke()
	if got, err := fetchAll(t, s, b, [2]int64{5, 50}, ""); err != nil || !bytes.Equal(got, content[5:55]) {
		t.Errorf("after the token was revoked: %q, %v", got, err)
	}
	ask := `the, "registry" repository:team/model:pull reader`
	if diff := cmp.Diff([]string{ask, ask}, server.asked); diff != "" {
		t.Errorf("token server was asked (-want +got):\n%s", diff)
	}
	if _, err := fetchAll(t, s, b, [2]int64{5, 50}, "Bearer of another"); !errors.Is(err, piece.ErrDenied) {
		t.Errorf("the caller's own bad token: %v, want ErrDenied", err)
	}
	if len(server.asked) != 2 {
		t.Error("the keychain was used for a caller with credentials of his own")
	}
}

func TestTokenServersRefusalHasItsClass(t *testing.T) {
	for status, want := range map[int]error{401: piece.ErrDenied, 403: piece.ErrDenied, 503: piece.ErrTransient} {
		server := &tokenRegistry{refuse: status}
		if _, err := fetchAll(t, newSource(t, source.Config{}), blobAt(registry(t, server.ServeHTTP)), [2]int64{0, 1}, ""); !errors.Is(err, want) {
			t.Errorf("%d: error %v, want %v", status, err, want)
		}
	}
}

func TestHostileNamesAreRefused(t *testing.T) {
	s := newSource(t, source.Config{})
	asked := false
	good := blobAt(registry(t, func(http.ResponseWriter, *http.Request) { asked = true }))
	for _, repository := range []string{"", "a//b", "../x", "a/../../x", "a/./b", "a?b", "a#b", "a%2fb", "/a"} {
		b := good
		b.Repository = repository
		if _, err := s.Fetch(t.Context(), b, 0, 1, ""); err == nil {
			t.Errorf("repository %q: no error", repository)
		}
	}
	b := good
	b.Digest = "sha256:../../x"
	if _, err := s.Fetch(t.Context(), b, 0, 1, ""); err == nil {
		t.Error("bad digest: no error")
	}
	for _, r := range [][2]int64{{-1, 1}, {0, 0}, {0, good.Size + 1}, {good.Size, 1}, {1 << 62, 1 << 62}} {
		if _, err := s.Fetch(t.Context(), good, r[0], r[1], ""); err == nil {
			t.Errorf("range %v: no error", r)
		}
	}
	if asked {
		t.Error("the registry was asked")
	}
}

func TestEndpointsResolve(t *testing.T) {
	e := newEndpoints(t, map[string]source.RegistryConfig{"10.0.0.1:5000": {PlainHTTP: true},
		"ghcr.io": {URL: "https://cache.example:8443/github/"}, "quay.io": {URL: "http://cache.example"}})
	for host, want := range map[string]string{
		"registry.example.com": "https://registry.example.com",
		"10.0.0.1:5000":        "http://10.0.0.1:5000",
		"10.0.0.1:5001":        "https://10.0.0.1:5001",
		"127.0.0.1:5000":       "http://127.0.0.1:5000",
		"127.8.8.8":            "http://127.8.8.8",
		"[::1]:5000":           "http://[::1]:5000",
		"localhost:5000":       "http://localhost:5000",
		"localhost.evil.com":   "https://localhost.evil.com",
		"docker.io":            "https://registry-1.docker.io",
		"ghcr.io":              "https://cache.example:8443/github/",
		"quay.io":              "http://cache.example",
	} {
		if base, client := e.Resolve(host); base.String() != want || client == nil {
			t.Errorf("%s: %s, want %s", host, base, want)
		}
	}
}

func TestEndpointsRefuseWhatIsNoURLOfARegistry(t *testing.T) {
	for _, raw := range []string{"cache.example", "ftp://cache.example", "https://", "https://user:pass@cache.example", "https://cache.example/?x=1", ":"} {
		_, err := source.NewEndpoints(map[string]source.RegistryConfig{"quay.io": {URL: raw}})
		if err == nil || !strings.Contains(err.Error(), "quay.io") || !strings.Contains(err.Error(), "https://HOST") {
			t.Errorf("%q: error %v", raw, err)
		}
	}
}

func TestLoopbackRegistryWithACAFileIsSpokenToInTLS(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(serveContent))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	host := srv.Listener.Addr().String()
	e := newEndpoints(t, map[string]source.RegistryConfig{host: {CAFile: ca}})
	if _, err := fetchAll(t, newSource(t, source.Config{Resolve: e.Resolve}), blobAt(host), [2]int64{0, 10}, ""); err != nil {
		t.Error(err)
	}
}

func TestCAFileMakesAPrivateRegistryTrusted(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(serveContent))
	srv.Config.ErrorLog = nil
	srv.TLS = &tls.Config{}
	srv.StartTLS()
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	// A loopback address would be taken for plain HTTP: the certificate is also good for example.com.
	const host = "example.com"
	at := func(e *source.Endpoints) source.Config {
		base, client := e.Resolve(host)
		base.Host = srv.Listener.Addr().String()
		return source.Config{Resolve: fixed(base, client)}
	}
	trusting := newEndpoints(t, map[string]source.RegistryConfig{host: {CAFile: ca}})
	b := blobAt(host)
	if _, err := fetchAll(t, newSource(t, at(trusting)), b, [2]int64{0, 10}, ""); err != nil {
		t.Errorf("with the CA file: %v", err)
	}
	if _, err := fetchAll(t, newSource(t, at(newEndpoints(t, nil))), b, [2]int64{0, 10}, ""); !errors.Is(err, piece.ErrTransient) {
		t.Errorf("without: %v", err)
	}

	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := source.NewEndpoints(map[string]source.RegistryConfig{"a": {CAFile: empty}, "b": {CAFile: "/does/not/exist"}})
	for _, text := range []string{"registry a", "no certificate", "registry b", "/does/not/exist"} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("error %v does not tell of %q", err, text)
		}
	}
}

func TestConnectionsAreKept(t *testing.T) {
	var mu sync.Mutex
	var clients []string
	b := blobAt(registry(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		clients = append(clients, r.RemoteAddr)
		serveContent(w, r)
	}))
	s := newSource(t, source.Config{})
	for i := range int64(5) {
		body, err := s.Fetch(t.Context(), b, i*1000, 1000, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(body, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		if err := body.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(slices.Compact(clients)); n != 1 {
		t.Errorf("%d connections for 5 requests in a row, want 1", n)
	}
}
