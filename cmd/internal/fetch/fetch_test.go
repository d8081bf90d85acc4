package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/cmd/internal/fetch"
	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/peertest"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a web server with one file and faults.
type site struct {
	*httptest.Server
	mu     sync.Mutex // guards the fields below
	data   []byte
	etag   string
	header http.Header // of every answer
	plain  bool        // no ranges
	hidden bool        // no length
	status int         // of every answer, if not 0
	cut    int64       // the next answers with more than one byte are cut after so many
	cuts   int         // how many of them
	after  func()      // called after the next cut
	want   string      // as Authorization
	sent   int64
}

func newSite(t *testing.T, size int) *site {
	t.Helper()
	s := &site{data: bytes.Repeat([]byte("what a web server has\n"), size/22+1)[:size], etag: `"one"`, header: http.Header{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(w.Header(), s.header)
	switch {
	case s.status != 0:
		http.Error(w, "no", s.status)
		return
	case s.want != "" && r.Header.Get("Authorization") != s.want:
		http.Error(w, "who are you", http.StatusUnauthorized)
		return
	}
	if s.etag != "" {
		w.Header().Set("ETag", s.etag)
	}
	out := &limited{ResponseWriter: w, site: s, left: -1}
	if s.cuts > 0 && r.Header.Get("Range") != "bytes=0-0" {
		s.cuts--
		out.left = s.cut
	}
	switch {
	case s.hidden:
		_ = http.NewResponseController(w).Flush()
		_, _ = out.Write(s.data)
		if out.left == 0 {
			panic(http.ErrAbortHandler) // a clean end would be the file's
		}
	case s.plain:
		w.Header().Set("Content-Length", strconv.Itoa(len(s.data)))
		_, _ = out.Write(s.data)
	default:
		http.ServeContent(out, r, "", time.Time{}, bytes.NewReader(s.data))
	}
	if out.left == 0 && s.after != nil {
		s.after()
		s.after = nil
	}
}

// limited counts, and cuts an answer.
type limited struct {
	http.ResponseWriter
	site *site
	left int64
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left == 0 {
		return 0, errors.New("cut")
	}
	if l.left > 0 {
		p = p[:min(int64(len(p)), l.left)]
	}
	n, err := l.ResponseWriter.Write(p)
	if l.left > 0 {
		if l.left -= int64(n); l.left == 0 {
			err = errors.New("cut")
		}
	}
	l.site.sent += int64(n)
	return n, err
}

func (s *site) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// node serves the local API over a peer.
func node(t *testing.T, h *peertest.Host) *local.Client {
	t.Helper()
	origin := newSource(t)
	api := httptest.NewServer(local.Guard(local.Content(local.ContentConfig{Probe: origin.Probe,
		Open: func(ctx context.Context, b peer.Blob) (local.Blob, error) { return h.Open(ctx, b, "") }})))
	c := local.NewClient(api.Listener.Addr().String())
	t.Cleanup(func() { c.Close(); api.CloseClientConnections(); api.Close() })
	return c
}

// dying is a node that ends after n bytes of content and then answers nothing more than what a content is.
func dying(t *testing.T, h *peertest.Host, n int) *local.Client {
	t.Helper()
	origin := newSource(t)
	inner := local.Content(local.ContentConfig{Probe: origin.Probe,
		Open: func(ctx context.Context, b peer.Blob) (local.Blob, error) { return h.Open(ctx, b, "") }})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inner.ServeHTTP(&abort{ResponseWriter: w, left: &n}, r)
	}))
	api.Config.ErrorLog = log.New(io.Discard, "", 0)
	c := local.NewClient(api.Listener.Addr().String())
	t.Cleanup(func() { c.Close(); api.CloseClientConnections(); api.Close() })
	return c
}

// abort breaks the connection when there is no byte left to give.
type abort struct {
	http.ResponseWriter
	left *int
}

func (a *abort) Write(p []byte) (int, error) {
	if *a.left -= len(p); *a.left < 0 {
		panic(http.ErrAbortHandler)
	}
	return a.ResponseWriter.Write(p)
}

func TestNodeThatDiesMeanwhileIsReplacedByTheOrigin(t *testing.T) {
	for _, known := range []bool{false, true} {
		w := newSite(t, 3*mib)
		cfg := w.config(t)
		if known {
			cfg.Digest = digest.FromBytes(w.data)
		}
		cfg.Node = dying(t, peertest.NewSwarm(t).Host(peertest.Lone), mib)
		if r := get(t, cfg, w.data); r.Bytes.Node == 0 || r.Bytes.Origin == 0 {
			t.Errorf("%+v", r.Bytes)
		}
		cfg = w.config(t)
		cfg.Node, cfg.NoFallback = dying(t, peertest.NewSwarm(t).Host(peertest.Lone), mib), true
		if _, err := fetch.Run(t.Context(), cfg); !errors.Is(err, fetch.ErrFallback) {
			t.Errorf("with --no-fallback: %v", err)
		}
		if names := folder(t, cfg); len(names) != 1 || !strings.HasSuffix(names[0], ".shoal-part") {
			t.Errorf("nothing is kept for the next call: %v", names)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	f.Add("https://h/a?x#y")
	f.Add("oci://r/a@" + digest.FromString("x").String())
	f.Fuzz(func(t *testing.T, s string) {
		target, err := fetch.ParseTarget(s)
		if err == nil && target.URL == "" && (target.Blob.Repository == "" || target.Blob.Digest.Validate() != nil) {
			t.Fatalf("%q is %+v", s, target)
		}
	})
}

func newSource(t *testing.T) *source.Source {
	t.Helper()
	endpoints, err := source.NewEndpoints(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(endpoints.Close)
	s, err := source.New(source.Config{Web: endpoints.Web, Resolve: endpoints.Resolve, Patience: 2 * time.Second, Stall: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// config is for the site's file, to a file in a folder of its own.
func (s *site) config(t *testing.T) fetch.Config {
	t.Helper()
	target, err := fetch.ParseTarget(s.URL + "/file")
	if err != nil {
		t.Fatal(err)
	}
	return fetch.Config{Target: target, Output: filepath.Join(t.TempDir(), "file"), Origin: newSource(t), Pause: time.Millisecond}
}

// get fetches and compares the file, beside which nothing may be left.
func get(t *testing.T, cfg fetch.Config, want []byte) *fetch.Result {
	t.Helper()
	r, err := fetch.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(cfg.Output)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, want %d, error %v", len(got), len(want), err)
	}
	if r.Digest != digest.FromBytes(want) || r.Size != int64(len(want)) {
		t.Errorf("told %s of %d bytes", r.Digest, r.Size)
	}
	if names := folder(t, cfg); len(names) != 1 {
		t.Errorf("beside the file: %v", names)
	}
	return r
}

func folder(t *testing.T, cfg fetch.Config) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(cfg.Output))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

const mib = 1 << 20

func TestFileComesThroughTheNodeOnceForTheCluster(t *testing.T) {
	s, w := peertest.NewSwarm(t), newSite(t, 3*mib+7)
	s.Host(peertest.Seed)
	for range 3 {
		cfg := w.config(t)
		cfg.Node, cfg.NoFallback = node(t, s.Host()), true
		r := get(t, cfg, w.data)
		if r.Bytes.Node != int64(len(w.data)) || r.Bytes.Origin != 0 || !piece.IsURL(r.Identity) {
			t.Errorf("%+v", r)
		}
	}
	if n := int64(len(w.data)); w.sent < n || w.sent > n+100 {
		t.Errorf("the origin sent %d bytes, want %d", w.sent, n)
	}
}

func TestFileComesDirectlyWithoutANode(t *testing.T) {
	for name, prepare := range map[string]func(*site){
		"with ranges": func(*site) {}, "without ranges": func(s *site) { s.plain = true }, "without a length": func(s *site) { s.hidden = true },
		"without a validator": func(s *site) { s.etag = "" }, "empty": func(s *site) { s.data = nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := newSite(t, mib)
			prepare(w)
			if r := get(t, w.config(t), w.data); r.Bytes.Origin != int64(len(w.data)) {
				t.Errorf("%+v", r)
			}
			cfg := w.config(t)
			cfg.Node = local.NewClient("127.0.0.1:1")
			get(t, cfg, w.data)
			cfg.NoFallback = true
			if _, err := fetch.Run(t.Context(), cfg); !errors.Is(err, fetch.ErrFallback) || !errors.Is(err, local.ErrNoNode) {
				t.Errorf("with --no-fallback: %v", err)
			}
		})
	}
}

func TestWhatMustNotBeSharedIsReadDirectly(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*site)
		header  http.Header
		share   bool
		through bool
	}{
		"no-store":             {prepare: func(s *site) { s.header.Set("Cache-Control", "no-store") }, share: true},
		"private":              {prepare: func(s *site) { s.header.Set("Cache-Control", "private") }},
		"private, shared":      {prepare: func(s *site) { s.header.Set("Cache-Control", "private") }, share: true, through: true},
		"vary":                 {prepare: func(s *site) { s.header.Set("Vary", "Cookie") }},
		"no validator":         {prepare: func(s *site) { s.etag = "" }},
		"no length":            {prepare: func(s *site) { s.hidden = true }},
		"secret, weak etag":    {prepare: func(s *site) { s.etag = `W/"one"` }, header: http.Header{"X-Key": {"k"}}},
		"secret, strong etag":  {prepare: func(*site) {}, header: http.Header{"X-Key": {"k"}}, through: true},
		"no secret, weak etag": {prepare: func(s *site) { s.etag = `W/"one"` }, through: true},
	} {
		t.Run(name, func(t *testing.T) {
			s, w := peertest.NewSwarm(t), newSite(t, mib)
			c.prepare(w)
			h := s.Host(peertest.Lone)
			cfg := w.config(t)
			cfg.Node, cfg.Header, cfg.Share = node(t, h), c.header, c.share
			if r := get(t, cfg, w.data); (r.Bytes.Node > 0) != c.through {
				t.Errorf("through the node: %d bytes", r.Bytes.Node)
			}
			if held := len(h.Store.List()); (held > 0) != c.through {
				t.Errorf("the node keeps %d contents", held)
			}
		})
	}
}

func TestNobodyReadsFromTheClusterWhatTheOriginRefusesThem(t *testing.T) {
	s, w := peertest.NewSwarm(t), newSite(t, mib)
	w.want = "Bearer mine"
	n := node(t, s.Host())
	cfg := w.config(t)
	cfg.Node, cfg.Header, cfg.NoFallback = n, http.Header{"Authorization": {"Bearer mine"}}, true
	get(t, cfg, w.data)
	for _, header := range []http.Header{nil, {"Authorization": {"Bearer other"}}} {
		other := w.config(t)
		other.Node, other.Header = n, header
		for _, other.NoFallback = range []bool{true, false} {
			other.Stdout, other.Output = &bytes.Buffer{}, ""
			_, err := fetch.Run(t.Context(), other)
			if err == nil || other.Stdout.(*bytes.Buffer).Len() > 0 || !strings.Contains(err.Error(), "401") {
				t.Errorf("%v: %v", header, err)
			}
		}
	}
}

func TestOriginThatIsDownIsBelievedOfWhatTakesNoSecret(t *testing.T) {
	for name, c := range map[string]struct {
		header http.Header
		status int
		ok     bool
	}{"public, down": {nil, 503, true}, "public, gone": {nil, 404, false}, "public, refused": {nil, 403, false},
		"with a secret": {http.Header{"X-Key": {"k"}}, 503, false}} {
		t.Run(name, func(t *testing.T) {
			s, w := peertest.NewSwarm(t), newSite(t, mib)
			cfg := w.config(t)
			cfg.Node, cfg.Header, cfg.NoFallback = node(t, s.Host(peertest.Lone)), c.header, true
			if r := get(t, cfg, w.data); r.Stale != "" {
				t.Errorf("stale since %s", r.Stale)
			}
			w.set(func() { w.status = c.status })
			again := w.config(t)
			again.Node, again.Header, again.NoFallback = cfg.Node, c.header, true
			r, err := fetch.Run(t.Context(), again)
			if (err == nil) != c.ok || c.ok && r.Stale == "" {
				t.Errorf("%+v, error %v", r, err)
			}
			if w.set(func() { w.status = 503 }); !c.ok { // a refusal is not forgotten while the origin is down
				if r, err := fetch.Run(t.Context(), again); err == nil {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}

func TestDownloadThatBreaksGoesOnWhereItWas(t *testing.T) {
	w := newSite(t, 3*mib)
	w.cut, w.cuts = mib, originTries
	cfg := w.config(t)
	_, err := fetch.Run(t.Context(), cfg)
	// Each answer brings a part, so that the tries are never used up: three of them are the file.
	if err != nil {
		t.Fatal(err)
	}
	w.set(func() { w.cuts, w.sent = 0, 0 })

	again := w.config(t)
	ctx, cancel := context.WithCancel(t.Context())
	again.Progress = ending{cancel}
	w.set(func() { w.cut, w.cuts = mib, 1 })
	if _, err := fetch.Run(ctx, again); err == nil {
		t.Fatal("no error from a call that was ended")
	}
	if _, err := os.Stat(again.Output); err == nil {
		t.Error("an incomplete file has its name")
	}
	again.Progress = nil
	w.set(func() { w.sent = 0 })
	if r := get(t, again, w.data); r.Bytes.Kept == 0 || w.sent > int64(len(w.data))-r.Bytes.Kept+100 {
		t.Errorf("%+v, sent %d", r.Bytes, w.sent)
	}
}

func TestDownloadThatCannotBeGoneOnWithIsBegunAnew(t *testing.T) {
	for name, prepare := range map[string]func(*site){
		"without ranges": func(s *site) { s.plain = true }, "weak etag": func(s *site) { s.etag = `W/"one"` },
		"without a validator": func(s *site) { s.etag = "" }, "without a length": func(s *site) { s.hidden = true },
	} {
		t.Run(name, func(t *testing.T) {
			w := newSite(t, 3*mib)
			prepare(w)
			cfg := w.config(t)
			w.cut, w.cuts = mib, 1
			if r := get(t, cfg, w.data); r.Bytes.Kept != 0 || r.Bytes.Origin != int64(len(w.data)) {
				t.Errorf("%+v", r.Bytes)
			}
			w.set(func() { w.cut, w.cuts = mib, 1 })
			cfg.Stdout, cfg.Output = &bytes.Buffer{}, ""
			if _, err := fetch.Run(t.Context(), cfg); err == nil {
				t.Error("a stream went on with something else")
			}
		})
	}
}

const originTries = 5

// ending ends a call when its first bytes have come.
type ending struct{ end func() }

func (ending) Step(string) {}
func (ending) Plan(int64)  {}
func (e ending) Done(n int64) {
	if n > 0 {
		e.end()
	}
}

func TestContentThatChangesMeanwhileIsNeverMixed(t *testing.T) {
	change := func(w *site) {
		w.cut, w.cuts = mib, 1
		w.after = func() { w.data, w.etag = bytes.Repeat([]byte("new"), mib), `"two"` }
	}
	for _, through := range []bool{false, true} {
		t.Run(fmt.Sprint("through a node: ", through), func(t *testing.T) {
			w := newSite(t, 3*mib)
			cfg := w.config(t)
			if through {
				cfg.Node = node(t, peertest.NewSwarm(t).Host(peertest.Lone))
			}
			change(w)
			get(t, cfg, bytes.Repeat([]byte("new"), mib))
		})
	}
	w := newSite(t, 3*mib)
	cfg := w.config(t)
	var out bytes.Buffer
	cfg.Output, cfg.Stdout = "", &out
	change(w)
	if _, err := fetch.Run(t.Context(), cfg); !errors.Is(err, source.ErrChanged) || strings.Contains(out.String(), "new") {
		t.Errorf("a stream: %v", err)
	}
}

func TestPartOfAnotherContentIsNotGoneOnWith(t *testing.T) {
	w := newSite(t, 3*mib)
	cfg := w.config(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.set(func() { w.cut, w.cuts, w.after = mib, 1, cancel })
	if _, err := fetch.Run(ctx, cfg); err == nil {
		t.Fatal("no error")
	}
	w.set(func() { w.data, w.etag = bytes.Repeat([]byte("new"), mib), `"two"` })
	if r := get(t, cfg, w.data); r.Bytes.Kept != 0 {
		t.Errorf("kept %d bytes", r.Bytes.Kept)
	}
}

func TestWrongDigestLeavesNoFile(t *testing.T) {
	w := newSite(t, mib)
	n := node(t, peertest.NewSwarm(t).Host(peertest.Lone))
	for _, through := range []*local.Client{nil, n} {
		cfg := w.config(t)
		cfg.Digest, cfg.Node = digest.FromString("other"), through
		if _, err := fetch.Run(t.Context(), cfg); !errors.Is(err, piece.ErrMismatch) {
			t.Errorf("error %v", err)
		}
		if names := folder(t, cfg); len(names) != 0 {
			t.Errorf("left: %v", names)
		}
		cfg.Digest = digest.FromBytes(w.data)
		if r := get(t, cfg, w.data); !r.Verified || r.Identity != cfg.Digest {
			t.Errorf("%+v", r)
		}
	}
}

func TestPartsOfAFile(t *testing.T) {
	w := newSite(t, mib)
	n := node(t, peertest.NewSwarm(t).Host(peertest.Lone))
	for _, through := range []*local.Client{nil, n} {
		for _, c := range []struct {
			part       fetch.Part
			first, end int
		}{{fetch.Part{Off: 5, Length: 10}, 5, 15}, {fetch.Part{Off: mib - 3, Length: -1}, mib - 3, mib}, {fetch.Part{Off: -7, Length: -1}, mib - 7, mib},
			{fetch.Part{Off: 10, Length: 2 * mib}, 10, mib}, {fetch.Part{Off: -2 * mib, Length: -1}, 0, mib}} {
			cfg := w.config(t)
			cfg.Part, cfg.Node = &c.part, through
			get(t, cfg, w.data[c.first:c.end])
		}
		cfg := w.config(t)
		cfg.Part, cfg.Node = &fetch.Part{Off: mib, Length: 1}, through
		if _, err := fetch.Run(t.Context(), cfg); err == nil {
			t.Error("no error behind the end")
		}
	}
	cfg := w.config(t)
	cfg.Part, cfg.Digest = &fetch.Part{Off: 0, Length: 10}, digest.FromBytes(w.data)
	if _, err := fetch.Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "cannot be checked") {
		t.Errorf("a part of a digest, directly: %v", err)
	}
}

func TestOriginsFaultsHaveTheirClass(t *testing.T) {
	for status, want := range map[int]error{401: piece.ErrDenied, 403: piece.ErrDenied, 404: piece.ErrAbsent, 500: piece.ErrTransient} {
		w := newSite(t, mib)
		w.status = status
		for _, through := range []*local.Client{nil, node(t, peertest.NewSwarm(t).Host(peertest.Lone))} {
			cfg := w.config(t)
			cfg.Node = through
			if _, err := fetch.Run(t.Context(), cfg); !errors.Is(err, want) {
				t.Errorf("%d: %v", status, err)
			}
			if names := folder(t, cfg); len(names) != 0 {
				t.Errorf("left: %v", names)
			}
		}
	}
}

func TestOutputThatCannotBeWrittenIsRefusedBeforeAnythingIsFetched(t *testing.T) {
	w := newSite(t, mib)
	cfg := w.config(t)
	dir := filepath.Dir(cfg.Output)
	for _, path := range []string{dir, dir + "/", filepath.Join(dir, "absent", "file")} {
		cfg.Output = path
		if _, err := fetch.Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "output") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if w.sent != 0 {
		t.Error("the origin was asked")
	}
	cfg.Output = os.DevNull
	if _, err := fetch.Run(t.Context(), cfg); err != nil {
		t.Errorf("%s: %v", os.DevNull, err)
	}
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode().IsRegular() {
		t.Fatal("the device was replaced by a file")
	}
	behind := filepath.Join(dir, "real")
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(behind, nil, 0o600), os.Symlink(behind, link)); err != nil {
		t.Fatal(err)
	}
	cfg.Output = link
	if _, err := fetch.Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Error("the link was replaced")
	}
	if got, err := os.ReadFile(behind); err != nil || !bytes.Equal(got, w.data) {
		t.Errorf("behind the link: %d bytes, %v", len(got), err)
	}
}

func TestTargets(t *testing.T) {
	d := digest.FromString("x").String()
	for in, want := range map[string]string{
		"https://h/a?token=geheim": "https://h/a?…", "oci://r.example.com/ml/llama@" + d: "r.example.com/ml/llama@" + d,
		"r.example.com:5000/a@" + d: "r.example.com:5000/a@" + d, "alpine@" + d: "docker.io/library/alpine@" + d,
	} {
		if got, err := fetch.ParseTarget(in); err != nil || got.String() != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "ftp://h/a", "r.example.com/a:tag", "s3://b/k", "a b", "http://"} {
		if got, err := fetch.ParseTarget(in); err == nil {
			t.Errorf("%q: %s", in, got)
		}
	}
}
