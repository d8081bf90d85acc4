package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/registry-mirror/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// registry is an origin with one repository, "a/b", that can require a password and be switched off.
type registry struct {
	*httptest.Server
	mu        sync.Mutex
	manifests map[string][]byte // by tag and digest
	types     map[string]string
	blobSizes map[string]int
	password  string
	down      bool
	asked     atomic.Int64
}

func newRegistry(t testing.TB) *registry {
	r := &registry{manifests: map[string][]byte{}, types: map[string]string{}, blobSizes: map[string]int{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *registry) put(tag, mediaType string, body []byte) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(body)
	for _, ref := range []string{tag, d.String()} {
		r.manifests[ref], r.types[ref] = body, mediaType
	}
	return d
}

func (r *registry) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.asked.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch ref := req.URL.Path[strings.LastIndex(req.URL.Path, "/")+1:]; {
	case r.down:
		http.Error(w, "down", http.StatusBadGateway)
	case r.password != "" && req.Header.Get("Authorization") != r.password:
		w.Header().Set("WWW-Authenticate", `Basic realm="origin"`)
		http.Error(w, "who are you", http.StatusUnauthorized)
	case r.manifests[ref] != nil:
		w.Header().Set("Content-Type", r.types[ref])
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(r.manifests[ref]).String())
		_, _ = w.Write(r.manifests[ref])
	case r.blobSizes[ref] != 0: // less than 0: it says that the blob is empty
		w.Header().Set("Content-Length", fmt.Sprint(max(r.blobSizes[ref], 0)))
	default:
		http.NotFound(w, req)
	}
}

// fakeBlobs serves one blob from a file; failAt makes Await fail there, and stuckAt makes it wait.
type fakeBlobs struct {
	path            string
	data            []byte
	failAt, stuckAt int64
	openErr         error
	mu              sync.Mutex
	opened          []BlobRef
	warmed          []digest.Digest
}

func (f *fakeBlobs) Warm(ref BlobRef, _ string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.warmed = append(f.warmed, ref.Digest)
}

func (f *fakeBlobs) Open(_ context.Context, ref BlobRef, _ string) (Blob, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened = append(f.opened, ref)
	if f.openErr != nil {
		return nil, f.openErr
	}
	return &fakeBlob{fakeBlobs: f}, nil
}

type fakeBlob struct {
	*fakeBlobs
	file *os.File
}

func (b *fakeBlob) Await(ctx context.Context, off, length int64) (int64, error) {
	n := min(length, 64<<10)
	if b.failAt >= 0 && off+n > b.failAt {
		return 0, errors.New("nobody has it")
	}
	if b.stuckAt >= 0 && off+n > b.stuckAt {
		<-ctx.Done()
		return 0, context.Cause(ctx)
	}
	return n, nil
}

func (b *fakeBlob) AwaitMoving(ctx context.Context, off, length int64, quiet time.Duration) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	return b.Await(ctx, off, length)
}

func (b *fakeBlob) File() (f *os.File, err error) {
	if b.file == nil {
		b.file, err = os.Open(b.path)
	}
	return b.file, err
}

func (b *fakeBlob) Close() error {
	if b.file != nil {
		return b.file.Close()
	}
	return nil
}

// fixture is a mirror over a registry and one blob of 300 KiB.
type fixture struct {
	t        testing.TB
	origin   *registry
	blobs    *fakeBlobs
	records  *Records
	handler  *Handler
	mirror   *httptest.Server
	blob     digest.Digest
	manifest digest.Digest
}

func newFixture(t testing.TB, cfg Config, cluster Cluster) *fixture {
	t.Helper()
	f := &fixture{t: t, origin: newRegistry(t)}
	data := bytes.Repeat([]byte("0123456789abcdef"), 300<<10/16)
	f.blobs = &fakeBlobs{path: filepath.Join(t.TempDir(), "blob"), data: data, failAt: -1, stuckAt: -1}
	if err := os.WriteFile(f.blobs.path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f.blob = digest.FromBytes(data)
	f.origin.blobSizes[f.blob.String()] = len(data)
	f.manifest = f.origin.put("v1", manifestType, manifestOf(f.blob, len(data)))
	f.records = openRecords(t)
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	up, err := upstream.New(upstream.Config{Resolve: func(host string) (*url.URL, *http.Client) {
		return &url.URL{Scheme: "http", Host: host}, client
	}})
	if err != nil {
		t.Fatal(err)
	}
	f.handler = New(cfg, f.records, up, f.blobs, cluster)
	f.mirror = httptest.NewServer(f.handler)
	t.Cleanup(f.mirror.Close)
	return f
}

func openRecords(t testing.TB) *Records {
	t.Helper()
	r, err := OpenRecords(filepath.Join(t.TempDir(), "mirror.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

func manifestOf(blob digest.Digest, size int) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"digest":"sha256:%064d","size":2,"mediaType":"x"},`+
		`"layers":[{"mediaType":"y","digest":%q,"size":%d}]}`, manifestType, 7, blob, size)
}

type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // of reading the body
}

func (f *fixture) get(path string, header ...string) answer {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, f.mirror.URL+path+"?ns="+f.origin.Listener.Addr().String(), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := f.mirror.Client().Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, body, err}
}

func (f *fixture) blobPath() string { return "/v2/a/b/blobs/" + f.blob.String() }

func TestManifestByTagAndDigest(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	for _, ref := range []string{"v1", f.manifest.String()} {
		got := f.get("/v2/a/b/manifests/" + ref)
		if got.status != 200 || digest.FromBytes(got.body) != f.manifest || got.header.Get("Content-Type") != manifestType ||
			got.header.Get("Docker-Content-Digest") != f.manifest.String() {
			t.Errorf("%s: %d %v", ref, got.status, got.header)
		}
	}
}

func TestManifestIsAskedOnceWhileFresh(t *testing.T) {
	f := newFixture(t, Config{TagTTL: time.Hour}, nil)
	for range 5 {
		f.get("/v2/a/b/manifests/v1")
	}
	if got := f.origin.asked.Load(); got != 1 {
		t.Errorf("the origin was asked %d times, want once", got)
	}
}

func TestMovedTagIsSeenAfterItsTTL(t *testing.T) {
	f := newFixture(t, Config{TagTTL: time.Nanosecond}, nil)
	f.get("/v2/a/b/manifests/v1")
	moved := f.origin.put("v1", manifestType, manifestOf(f.blob, 1))
	if got := f.get("/v2/a/b/manifests/v1").header.Get("Docker-Content-Digest"); got != moved.String() {
		t.Errorf("digest %s, want the new %s", got, moved)
	}
}

func TestOriginDownIsBridgedByOwnRecords(t *testing.T) {
	f := newFixture(t, Config{TagTTL: time.Nanosecond, VerdictTTL: time.Nanosecond}, nil)
	f.get("/v2/a/b/manifests/v1")
	f.origin.set(func() { f.origin.down = true })
	if got := f.get("/v2/a/b/manifests/v1"); got.status != 200 || !strings.HasPrefix(got.header.Get("Warning"), "110") {
		t.Errorf("status %d, Warning %q", got.status, got.header.Get("Warning"))
	}
	if got := f.get(f.blobPath()); got.status != 200 || !bytes.Equal(got.body, f.blobs.data) {
		t.Errorf("blob: status %d, %d bytes", got.status, len(got.body))
	}
	if got := f.get("/v2/a/b/manifests/unknown"); got.status != http.StatusServiceUnavailable {
		t.Errorf("unknown tag: status %d, want 503", got.status)
	}
}

func TestOriginDownIsBridgedByTheSeeds(t *testing.T) {
	seed := openRecords(t)
	served := httptest.NewServer(ServeRecords(seed))
	t.Cleanup(served.Close)
	seeds := NewSeeds(SeedConfig{Addrs: func() []string { return []string{served.Listener.Addr().String()} }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- seeds.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })

	first := newFixture(t, Config{}, seeds)
	first.get("/v2/a/b/manifests/v1")
	q := Query{first.origin.Listener.Addr().String(), "a/b", "v1", "", ""}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := seeds.Lookup(t.Context(), q); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the seed was not told: %v", err)
		}
	}
	second := newFixture(t, Config{}, seeds)
	second.origin = first.origin
	first.origin.set(func() { first.origin.down = true })
	if got := second.get("/v2/a/b/manifests/v1"); got.status != 200 || digest.FromBytes(got.body) != first.manifest {
		t.Errorf("status %d: %s", got.status, got.body)
	}
	if got := second.get("/v2/a/b/manifests/v1", "Authorization", "Basic other"); got.status == 200 {
		t.Error("credentials that the origin never saw were accepted while it is down")
	}
}

func TestPrivateContentOnlyForWhomTheOriginAccepts(t *testing.T) {
	f := newFixture(t, Config{TagTTL: time.Hour, VerdictTTL: time.Hour}, nil)
	f.origin.password = "Basic right"
	for _, path := range []string{"/v2/a/b/manifests/v1", f.blobPath()} {
		if got := f.get(path, "Authorization", "Basic right"); got.status != 200 {
			t.Fatalf("%s with the right password: %d", path, got.status)
		}
		for _, wrong := range []string{"", "Basic wrong"} {
			got := f.get(path, "Authorization", wrong)
			if got.status != 401 || got.header.Get("WWW-Authenticate") != `Basic realm="origin"` {
				t.Errorf("%s with %q: %d, challenge %q", path, wrong, got.status, got.header.Get("WWW-Authenticate"))
			}
		}
	}
}

func TestBlobWholeAndInRanges(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	size := len(f.blobs.data)
	for _, tc := range []struct {
		header string
		status int
		off, n int
	}{
		{"", 200, 0, size}, {"bytes=0-", 200, 0, size}, {"bytes=100-199", 206, 100, 100}, {"bytes=70000-", 206, 70000, size - 70000},
		{"bytes=-5", 206, size - 5, 5}, {"bytes=0-999999999", 200, 0, size}, {"bytes=299999-999999999", 206, 299999, size - 299999},
		{"lines=1-2", 200, 0, size}, {"bytes=1-2,5-6", 200, 0, size},
	} {
		got := f.get(f.blobPath(), "Range", tc.header)
		if got.status != tc.status || !bytes.Equal(got.body, f.blobs.data[tc.off:tc.off+tc.n]) {
			t.Errorf("%q: status %d, %d bytes, want %d and %d", tc.header, got.status, len(got.body), tc.status, tc.n)
		}
	}
	if got := f.get(f.blobPath(), "Range", "bytes=999999999-"); got.status != 416 ||
		got.header.Get("Content-Range") != fmt.Sprintf("bytes */%d", size) {
		t.Errorf("past the end: %d %v", got.status, got.header)
	}
}

func TestSizeOfABlobThatNoManifestNamedIsAskedOnce(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	for off := range 5 {
		if got := f.get(f.blobPath(), "Range", fmt.Sprintf("bytes=%d-%d", off, off+9)); got.status != 206 {
			t.Fatalf("status %d", got.status)
		}
	}
	if got := f.origin.asked.Load(); got != 1 {
		t.Errorf("the origin was asked %d times for five ranges, want once", got)
	}
}

func TestFirstBytesMissingIs404WithinTheLimit(t *testing.T) {
	for name, set := range map[string]func(*fakeBlobs){
		"error": func(b *fakeBlobs) { b.failAt = 0 }, "silence": func(b *fakeBlobs) { b.stuckAt = 0 },
		"open": func(b *fakeBlobs) { b.openErr = errors.New("store is full") },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, Config{FirstByte: 50 * time.Millisecond}, nil)
			set(f.blobs)
			if got := f.get(f.blobPath()); got.status != 404 || !strings.Contains(string(got.body), "BLOB_UNKNOWN") {
				t.Errorf("status %d: %s", got.status, got.body)
			}
		})
	}
}

func TestStreamThatCannotGoOnEndsInOrderAndIsRefusedAfterwards(t *testing.T) {
	for name, set := range map[string]func(*fakeBlobs){
		"error": func(b *fakeBlobs) { b.failAt = 200000 }, "silence": func(b *fakeBlobs) { b.stuckAt = 200000 },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, Config{Stall: 50 * time.Millisecond, RefuseFor: 300 * time.Millisecond}, nil)
			set(f.blobs)
			raw := f.rawGet()
			head, body, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
			if !bytes.Contains(head, fmt.Appendf(nil, "Content-Length: %d", len(f.blobs.data))) || len(body) < 100000 ||
				!bytes.Equal(body, f.blobs.data[:len(body)]) {
				t.Fatalf("got %d bytes behind %s", len(body), head)
			}
			if got := f.get(f.blobPath(), "Range", fmt.Sprintf("bytes=%d-", len(body))); got.status != 404 {
				t.Errorf("the resumed request got %d, want 404", got.status)
			}
			f.blobs.failAt, f.blobs.stuckAt = -1, -1
			time.Sleep(310 * time.Millisecond) // the refusal is a matter of wall-clock time
			if got := f.get(f.blobPath()); got.status != 200 {
				t.Errorf("after a while: %d", got.status)
			}
		})
	}
}

// rawGet reads a blob over a bare connection until its end, which must be a FIN: a reset fails the test.
func (f *fixture) rawGet() []byte {
	f.t.Helper()
	conn, err := net.Dial("tcp", f.mirror.Listener.Addr().String())
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s?ns=%s HTTP/1.1\r\nHost: m\r\n\r\n", f.blobPath(), f.origin.Listener.Addr())
	raw, err := io.ReadAll(conn)
	if err != nil {
		f.t.Fatalf("the connection did not end in order: %v", err)
	}
	return raw
}

func TestLaterRangeThatFailsIsCutNotRefused(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	f.blobs.failAt = 100000
	if got := f.get(f.blobPath(), "Range", "bytes=150000-"); got.status != 206 || got.err == nil {
		t.Errorf("status %d, read error %v", got.status, got.err)
	}
}

func TestRefusalsOfTheOriginArePassedOn(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	if got := f.get("/v2/a/b/manifests/none"); got.status != 404 || !json.Valid(got.body) {
		t.Errorf("missing manifest: %d %s", got.status, got.body)
	}
	if got := f.get("/v2/a/b/blobs/" + digest.FromString("none").String()); got.status != 404 {
		t.Errorf("missing blob: %d", got.status)
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	for _, path := range []string{"/v2/a/b/blobs/sha256:zz", "/v2/manifests/v1", "/v2/a/b/tags/lists", "/v2/a/b/referrers/v1", "/etc/passwd", "/v2/a/b/manifests/sha256:../x"} {
		if got := f.get(path); got.status != 404 {
			t.Errorf("%s: %d", path, got.status)
		}
	}
	resp, err := http.Post(f.mirror.URL+"/v2/a/b/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 405 {
		t.Errorf("POST: %d", resp.StatusCode)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestBlobsOfADualImageAreReadWithTheirChunkMap(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	boot := digest.FromString("boot")
	lazy := fmt.Appendf(nil, `{"layers":[{"digest":%q,"size":%d},{"digest":%q,"size":99,"annotations":{%q:"true"}}]}`,
		f.blob, len(f.blobs.data), boot, nydusBootstrapNote)
	lazyDigest := f.origin.put("", manifestType, lazy)
	index := fmt.Appendf(nil, `{"manifests":[{"digest":%q,"platform":{"os":"linux","architecture":"amd64"}},`+
		`{"digest":%q,"artifactType":%q,"platform":{"os":"linux","architecture":"amd64"}}]}`, f.manifest, lazyDigest, nydusArtifactType)
	f.origin.put("dual", "application/vnd.oci.image.index.v1+json", index)

	f.get("/v2/a/b/manifests/dual")
	f.get("/v2/a/b/manifests/" + f.manifest.String())
	if d := cmp.Diff([]digest.Digest{boot}, f.blobs.warmed); d != "" {
		t.Errorf("what was fetched ahead (-want +got):\n%s", d)
	}
	f.get(f.blobPath())
	want := []BlobRef{{Registry: f.origin.Listener.Addr().String(), Repository: "a/b", Digest: f.blob, Size: int64(len(f.blobs.data)),
		MapLayer: boot, MapSize: 99}}
	if d := cmp.Diff(want, f.blobs.opened); d != "" {
		t.Errorf("blobs opened (-want +got):\n%s", d)
	}
}

func TestStampedeAsksTheOriginOnce(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	gate := make(chan struct{})
	f.origin.mu.Lock()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			<-gate
			f.get("/v2/a/b/manifests/v1")
		})
	}
	close(gate)
	for i := 0; f.origin.asked.Load() == 0 && i < 5000; i++ {
		time.Sleep(time.Millisecond)
	}
	f.origin.mu.Unlock()
	wg.Wait()
	if got := f.origin.asked.Load(); got > 3 {
		t.Errorf("the origin was asked %d times by 20 callers", got)
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=-1", "bytes=5-2", "bytes=9223372036854775807-", "bytes=1-9223372036854775807", ""} {
		f.Add(s, int64(100))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		off, length, partial, err := parseRange(header, size)
		if err != nil {
			return
		}
		if off < 0 || length < 0 || off > size || length > size-off || partial == (length == size) {
			t.Errorf("%q of %d: off %d, length %d, partial %v", header, size, off, length, partial)
		}
	})
}

func FuzzPath(f *testing.F) {
	f.Add("/v2/a/b/manifests/latest", "r:5000")
	f.Add("/v2/../../etc/manifests/x", "r")
	f.Fuzz(func(t *testing.T, path, ns string) {
		h := &Handler{}
		r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: path, RawQuery: url.Values{"ns": {ns}}.Encode()}}
		req, err := h.parse(r)
		if err == nil && (req.Repository == "" || req.Reference == "" || strings.Contains(req.Reference, "/")) {
			t.Errorf("%q parsed to %+v", path, req)
		}
	})
}

func TestManifestThatCameMeanwhileIsNotAskedFor(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	f.get("/v2/a/b/manifests/v1")
	before := f.origin.asked.Load()
	q := Query{Registry: f.origin.Listener.Addr().String(), Repository: "a/b", Reference: "v1"}
	rec, err := f.handler.askOnce(t.Context(), q, http.Header{}) // as who saw nothing in the records a moment ago
	if err != nil || rec.Digest != f.manifest || f.origin.asked.Load() != before {
		t.Errorf("%v, %v, %d more requests", rec.Digest, err, f.origin.asked.Load()-before)
	}
}

func TestOriginThatCannotAnswerIsLogged(t *testing.T) {
	var log bytes.Buffer // written before the answer
	f := newFixture(t, Config{Log: slog.New(slog.NewTextHandler(&log, nil))}, nil)
	f.origin.set(func() { f.origin.down = true })
	f.get("/v2/a/b/manifests/v1")
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "a/b:v1") {
		t.Errorf("the log does not name the image:\n%s", log.String())
	}
}
