package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// first answers the first n requests that match in place of the registry.
func first(n int, method string, answer func(w http.ResponseWriter, r *http.Request)) func(http.ResponseWriter, *http.Request) bool {
	var left atomic.Int64
	left.Store(int64(n))
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != method || r.URL.Path == "/v2/" || left.Add(-1) < 0 {
			return false
		}
		answer(w, r)
		return true
	}
}

func TestUploadGoesOnWhereItEnded(t *testing.T) {
	data := noise(1, 200<<20)
	f, address := newFake(t)
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch && f.count(http.MethodPatch)%2 == 1 { // every other one breaks off in its midst
			r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, 30<<20), &failing{}))
		}
		return false
	}
	var told atomic.Int64
	b := blobOf(data)
	b.Progress = func(n int64) { told.Add(n) }
	outcome, err := registryAt(t, address, Config{Retry: hasty(3)}).Push(t.Context(), b)
	check(t, err)
	if !bytes.Equal(f.blob(b.Digest), data) || outcome != Sent {
		t.Errorf("%s: other bytes arrived", outcome)
	}
	if f.received != int64(len(data)) || told.Load() != b.Size {
		t.Errorf("%d bytes were kept and %d told of %d", f.received, told.Load(), len(data))
	}
	outcome, err = registryAt(t, address, Config{}).Push(t.Context(), b)
	if err != nil || outcome != Present || f.received != int64(len(data)) {
		t.Errorf("again: %s, %v", outcome, err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestPassingFaultsAreOutlived(t *testing.T) {
	data := noise(2, 3<<20)
	abort := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	status := func(code int) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(code)
		}
	}
	for _, method := range []string{http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodPut} {
		for what, answer := range map[string]func(http.ResponseWriter, *http.Request){
			"cut": abort, "429": status(429), "503": status(503), "500": status(500), "408": status(408),
		} {
			t.Run(method+" "+what, func(t *testing.T) {
				f, address := newFake(t)
				f.before = first(2, method, answer)
				b := blobOf(data)
				_, err := registryAt(t, address, Config{Retry: hasty(4)}).Push(t.Context(), b)
				check(t, err)
				if !bytes.Equal(f.blob(b.Digest), data) {
					t.Error("other bytes arrived")
				}
			})
		}
	}
}

func TestFirstQuestionIsRepeatedToo(t *testing.T) {
	f, address := newFake(t)
	var cuts atomic.Int64
	f.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/" && cuts.Add(1) <= 2 {
			panic(http.ErrAbortHandler)
		}
		return false
	}
	b := blobOf([]byte("x"))
	_, err := registryAt(t, address, Config{Retry: hasty(5)}).Push(t.Context(), b)
	check(t, err)
	if f.blob(b.Digest) == nil || cuts.Load() < 3 {
		t.Errorf("asked %d times", cuts.Load())
	}
}

func TestRefusalsAreNotRepeated(t *testing.T) {
	for _, status := range []int{401, 403, 405, 451} {
		f, address := newFake(t)
		f.before = first(100, http.MethodPost, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		_, err := registryAt(t, address, Config{Retry: hasty(5)}).Push(t.Context(), blobOf([]byte("x")))
		if err == nil || !strings.Contains(err.Error(), fmt.Sprint(status)) || f.count(http.MethodPost) != 1 {
			t.Errorf("%d: %d requests, %v", status, f.count(http.MethodPost), err)
		}
	}
}

func TestPatienceEnds(t *testing.T) {
	f, address := newFake(t)
	f.before = first(1000, http.MethodPatch, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	_, err := registryAt(t, address, Config{Retry: hasty(5)}).Push(t.Context(), blobOf(noise(1, 1000)))
	if err == nil || !strings.Contains(err.Error(), "503") || f.count(http.MethodPatch) != 5 {
		t.Errorf("%d requests, %v", f.count(http.MethodPatch), err)
	}
}

func TestForgottenUploadBeginsAnew(t *testing.T) {
	f, address := newFake(t)
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch && f.count(http.MethodPatch) == 1 {
			f.mu.Lock()
			clear(f.sessions)
			f.mu.Unlock()
		}
		return false
	}
	b := blobOf(noise(3, 1<<20))
	_, err := registryAt(t, address, Config{Retry: hasty(3)}).Push(t.Context(), b)
	check(t, err)
	if f.blob(b.Digest) == nil || f.count(http.MethodPost) != 2 {
		t.Errorf("%d sessions", f.count(http.MethodPost))
	}
}

func TestUploadTooLargeForAProxyIsCutUp(t *testing.T) {
	f, address := newFake(t)
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch && r.ContentLength > 4<<20 {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return true
		}
		return false
	}
	b := blobOf(noise(3, 30<<20))
	_, err := registryAt(t, address, Config{Retry: hasty(8)}).Push(t.Context(), b)
	check(t, err)
	if !bytes.Equal(f.blob(b.Digest), noise(3, 30<<20)) {
		t.Error("other bytes arrived")
	}
}

func TestServerThatStandsStillIsLeft(t *testing.T) {
	f, address := newFake(t)
	over := make(chan struct{})
	defer close(over)
	f.before = first(1, http.MethodPatch, func(http.ResponseWriter, *http.Request) { <-over })
	retry := hasty(5)
	retry.Idle = 2 * time.Second  // much for a busy machine, little for who waits
	b := blobOf(noise(4, 32<<20)) // more than the sockets between hold
	_, err := registryAt(t, address, Config{Retry: retry}).Push(t.Context(), b)
	check(t, err)
	if f.blob(b.Digest) == nil {
		t.Error("it is not there")
	}
}

func TestRegistryThatNeverAnswersIsLeft(t *testing.T) {
	f, address := newFake(t)
	over := make(chan struct{})
	defer close(over)
	f.before = func(http.ResponseWriter, *http.Request) bool {
		<-over
		return true
	}
	retry := hasty(2)
	retry.Idle = 50 * time.Millisecond
	r := registryAt(t, address, Config{Retry: retry})
	if _, err := r.Push(t.Context(), blobOf([]byte("x"))); !errors.Is(err, errIdle) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := r.Manifest(ctx, "v1"); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: got %v", err)
	}
}

func TestFaultOfTheBytesIsNoFaultOfTheRegistry(t *testing.T) {
	f, address := newFake(t)
	broken := fmt.Errorf("disk broke: %w", io.ErrUnexpectedEOF) // what of a connection would be repeated
	b := blobOf(noise(5, 1<<20))
	b.Open = func(context.Context, int64) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(noise(5, 1000)), &brokenReader{broken})), nil
	}
	_, err := registryAt(t, address, Config{Retry: hasty(5)}).Push(t.Context(), b)
	if !errors.Is(err, broken) || f.count(http.MethodPatch) > 1 {
		t.Errorf("%d tries, %v", f.count(http.MethodPatch), err)
	}
}

type brokenReader struct{ err error }

func (b *brokenReader) Read([]byte) (int, error) { return 0, b.err }

func TestBlobOfAnotherRepositoryIsMounted(t *testing.T) {
	f, address := newFake(t)
	b := blobOf(noise(6, 1000))
	from, err := name.NewRepository(address + "/base")
	check(t, err)
	b.From = &from
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("mount") == b.Digest.String() && r.URL.Query().Get("from") == "base" {
			w.WriteHeader(http.StatusCreated)
			return true
		}
		return false
	}
	outcome, err := registryAt(t, address, Config{}).Push(t.Context(), b)
	if err != nil || outcome != Mounted || f.count(http.MethodPatch) != 0 {
		t.Errorf("%s, %v", outcome, err)
	}
	elsewhere, err := name.NewRepository("127.0.0.1:1/base")
	check(t, err)
	b.From = &elsewhere
	if outcome, err = registryAt(t, address, Config{}).Push(t.Context(), b); err != nil || outcome != Sent {
		t.Errorf("from another registry: %s, %v", outcome, err)
	}
}

// tokens is a registry whose tokens are good for few requests.
type tokens struct {
	mu    sync.Mutex
	made  int
	left  int
	realm string
}

func (k *tokens) before(w http.ResponseWriter, r *http.Request) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r.URL.Path == "/token" {
		k.made++
		k.left = 3
		fmt.Fprintf(w, `{"token":"t%d"}`, k.made)
		return true
	}
	if k.left--; k.left < 0 || r.Header.Get("Authorization") != fmt.Sprintf("Bearer t%d", k.made) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="x"`, k.realm))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	return false
}

func TestTokenThatExpiresIsRenewed(t *testing.T) {
	f, address := newFake(t)
	k := &tokens{realm: "http://" + address + "/token"}
	f.before = k.before
	data := noise(7, 200<<20) // four requests, and those around them
	r := registryAt(t, address, Config{Retry: hasty(6)})
	b := blobOf(data)
	_, err := r.Push(t.Context(), b)
	check(t, err)
	if !bytes.Equal(f.blob(b.Digest), data) || k.made < 2 {
		t.Errorf("%d tokens, other bytes", k.made)
	}
	up, err := r.Create(t.Context())
	check(t, err)
	defer up.Cancel(t.Context())
	other := noise(8, 100<<20)
	_, err = up.Write(other)
	check(t, err)
	check(t, up.Commit(t.Context(), digest.FromBytes(other), int64(len(other))))
	if !bytes.Equal(f.blob(digest.FromBytes(other)), other) {
		t.Error("stream: other bytes")
	}
}

func TestStreamIsSentAgainFromWhatIsHeld(t *testing.T) {
	f, address := newFake(t)
	f.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if n := f.count(http.MethodPatch); r.Method == http.MethodPatch && n%2 == 0 {
			r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, 5<<20), &failing{}))
		}
		return false
	}
	data := noise(9, 70<<20)
	up, err := registryAt(t, address, Config{Retry: hasty(3)}).Create(t.Context())
	check(t, err)
	for at := 0; at < len(data); at += 1_000_003 {
		_, err := up.Write(data[at:min(at+1_000_003, len(data))])
		check(t, err)
	}
	check(t, up.Commit(t.Context(), digest.FromBytes(data), int64(len(data))))
	up.Cancel(t.Context())
	if !bytes.Equal(f.blob(digest.FromBytes(data)), data) || f.received != int64(len(data)) {
		t.Errorf("%d bytes of %d were kept", f.received, len(data))
	}
}

// hurried answers the first request that carries bytes before any of them was read, and keeps its body, as a client may.
type hurried struct {
	http.RoundTripper
	body io.Reader
}

func (h *hurried) RoundTrip(r *http.Request) (*http.Response, error) {
	if h.body != nil || r.Method != http.MethodPatch {
		return h.RoundTripper.RoundTrip(r)
	}
	h.body = r.Body
	return &http.Response{StatusCode: http.StatusServiceUnavailable, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
}

func TestBytesOfAStreamAreNotReadForARequestThatHasEnded(t *testing.T) {
	f, address := newFake(t)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := &hurried{RoundTripper: transport}
	up, err := registryAt(t, address, Config{Retry: hasty(3), Transport: client}).Create(t.Context())
	check(t, err)
	data := noise(1, 3*streamChunk)
	_, err = up.Write(data)
	check(t, err)
	d := digest.FromBytes(data)
	check(t, up.Commit(t.Context(), d, int64(len(data))))
	if n, err := client.body.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%d bytes of a buffer that is used again: %v", n, err)
	}
	if !bytes.Equal(f.blob(d), data) {
		t.Error("other bytes arrived")
	}
}

func TestStreamThatTheRegistryLostSaysSo(t *testing.T) {
	f, address := newFake(t)
	f.before = func(http.ResponseWriter, *http.Request) bool {
		f.mu.Lock()
		clear(f.sessions)
		f.mu.Unlock()
		return false
	}
	up, err := registryAt(t, address, Config{Retry: hasty(3)}).Create(t.Context())
	check(t, err)
	_, err = up.Write(make([]byte, 1000))
	check(t, err)
	if err = up.Commit(t.Context(), digest.FromBytes(make([]byte, 1000)), 1000); !errors.Is(err, ErrLost) {
		t.Errorf("got %v", err)
	}
	up.Cancel(t.Context())
}

func TestCanceledStreamDoesNotWaitForTheRegistry(t *testing.T) {
	f, address := newFake(t)
	over := make(chan struct{})
	defer close(over)
	f.before = first(1000, http.MethodPatch, func(http.ResponseWriter, *http.Request) { <-over })
	up, err := registryAt(t, address, Config{Retry: hasty(5)}).Create(t.Context()) // with a minute of patience
	check(t, err)
	_, err = up.Write(make([]byte, streamChunk))
	check(t, err)
	began := time.Now()
	up.Cancel(t.Context())
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it waited for %v", took)
	}
}

func TestPausesGrowAndKeepRetryAfter(t *testing.T) {
	r := Retry{}.withDefaults()
	for _, tc := range []struct {
		failed   int
		after    time.Duration
		from, to time.Duration
	}{
		{1, 0, 500 * time.Millisecond, 625 * time.Millisecond}, {3, 0, 2 * time.Second, 2500 * time.Millisecond},
		{60, 0, 30 * time.Second, 38 * time.Second}, {1, 42 * time.Second, 42 * time.Second, 53 * time.Second},
		{1, time.Hour, 5 * time.Minute, 376 * time.Second},
	} {
		if got := r.pause(tc.failed, tc.after); got < tc.from || got > tc.to {
			t.Errorf("failure %d, Retry-After %v: %v", tc.failed, tc.after, got)
		}
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"7": 7 * time.Second, "-1": 0, "x": 0, "": 0, "Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second, "Fri, 02 Jan 2026 03:04:00 GMT": 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: want %v, got %v", value, want, got)
		}
	}
}

// TestRealRegistriesSurviveCuts cuts the connection to each registry once at each stage of an upload.
func TestRealRegistriesSurviveCuts(t *testing.T) {
	data := noise(10, 40<<20)
	for _, program := range []string{"docker-registry", "distribution"} {
		address := realRegistry(t, program)
		serial := byte(0)
		for _, method := range []string{http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodPut} {
			for _, when := range []string{"before", "midst", "after"} {
				t.Run(program+" "+method+" "+when, func(t *testing.T) {
					var once sync.Once
					proxy := faultProxy(t, address, func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
						spoil := false
						if r.Method == method && r.URL.Path != "/v2/" {
							once.Do(func() { spoil = true })
						}
						switch {
						case !spoil:
							forward.ServeHTTP(w, r)
							return
						case when == "midst":
							r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, 1<<20), &failing{}))
							forward.ServeHTTP(w, r)
						case when == "after":
							forward.ServeHTTP(&deaf{}, r)
						}
						panic(http.ErrAbortHandler)
					})
					serial++
					data[0] = serial
					pushBothWays(t, proxy, data)
				})
			}
		}
	}
}

// deaf takes an answer that nobody gets.
type deaf struct{ header http.Header }

func (d *deaf) Header() http.Header {
	if d.header == nil {
		d.header = http.Header{}
	}
	return d.header
}
func (d *deaf) Write(p []byte) (int, error) { return len(p), nil }
func (d *deaf) WriteHeader(int)             {}

// pushBothWays pushes data as a blob, and something else as a stream that is begun anew when it is lost; it reads both back.
func pushBothWays(t *testing.T, address string, data []byte) {
	t.Helper()
	r := registryAt(t, address, Config{Retry: hasty(5)})
	b := blobOf(data)
	_, err := r.Push(t.Context(), b)
	check(t, err)
	streamed := blobOf(data[:len(data)/2])
	for try := range 3 {
		up, err := r.Create(t.Context())
		check(t, err)
		if _, err = up.Write(data[:len(data)/2]); err == nil {
			err = up.Commit(t.Context(), streamed.Digest, streamed.Size)
		}
		up.Cancel(t.Context())
		if err == nil {
			break
		}
		if !errors.Is(err, ErrLost) || try == 2 {
			t.Fatal(err)
		}
	}
	for _, want := range []Blob{b, streamed} {
		rc, err := r.Blob(t.Context(), want.Descriptor, 0)
		check(t, err)
		_, err = io.Copy(io.Discard, rc) // verifies
		check(t, err)
		check(t, rc.Close())
	}
}

// A login page on the way answers everything with 200.
func TestWhatSaysYesToEverythingIsNoRegistry(t *testing.T) {
	f, address := newFake(t)
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<html>Please log in</html>")
		return true
	}
	r := registryAt(t, address, Config{Retry: hasty(2)})
	if outcome, err := r.Push(t.Context(), blobOf(noise(1, 1000))); err == nil {
		t.Errorf("a blob counts as %s", outcome)
	}
	if err := r.PutManifest(t.Context(), "v1", "application/vnd.oci.image.manifest.v1+json", []byte("{}")); err == nil || !strings.Contains(err.Error(), "is it a registry") {
		t.Errorf("a manifest counts as written: %v", err)
	}
}

func TestBlobOfAnotherSizeIsNotThere(t *testing.T) {
	f, address := newFake(t)
	data := noise(1, 1000)
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodHead {
			return false
		}
		w.Header().Set("Content-Length", "999")
		return true
	}
	outcome, err := registryAt(t, address, Config{Retry: hasty(2)}).Push(t.Context(), blobOf(data))
	if err != nil || outcome != Sent || !bytes.Equal(f.blob(blobOf(data).Digest), data) {
		t.Errorf("%s, %v", outcome, err)
	}
}
