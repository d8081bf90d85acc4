package source_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
)

// web serves a handler and returns the URL of a file there.
func web(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.URL + "/file"
}

// tagged serves the content under an ETag.
func tagged(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", `"one"`)
	serveContent(w, r)
}

// plain serves the content as servers do that know no ranges.
func plain(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	w.Header().Set("ETag", `"one"`)
	_, _ = w.Write(content)
}

func webBlob(w source.Web) source.Blob { return source.Blob{Web: &w, Size: int64(len(content))} }

func TestProbeTellsWhatAURLHas(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{"ranges": tagged, "no ranges": plain} {
		t.Run(name, func(t *testing.T) {
			info, err := newSource(t, source.Config{}).Probe(t.Context(), source.Web{URL: web(t, h)})
			want := source.Info{Size: int64(len(content)), Validator: source.Validator{ETag: `"one"`}}
			if diff := cmp.Diff(want, info); err != nil || diff != "" {
				t.Errorf("error %v, info (-want +got):\n%s", err, diff)
			}
		})
	}
	empty := web(t, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(""))
	})
	if info, err := newSource(t, source.Config{}).Probe(t.Context(), source.Web{URL: empty}); err != nil || info.Size != 0 {
		t.Errorf("empty file: %+v, %v", info, err)
	}
	for header, want := range map[string]source.Info{
		"Cache-Control: max-age=5, no-store": {NoStore: true}, "Cache-Control: private": {Private: true},
		"Vary: Accept-Encoding, Authorization": {Private: true}, "Vary: Accept-Encoding": {},
	} {
		key, value, _ := strings.Cut(header, ": ")
		info, err := newSource(t, source.Config{}).Probe(t.Context(), source.Web{URL: web(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(key, value)
			tagged(w, r)
		})})
		if err != nil || info.NoStore != want.NoStore || info.Private != want.Private {
			t.Errorf("%s: %+v, %v", header, info, err)
		}
	}
}

func TestURLIsReadWithRangesAndWithout(t *testing.T) {
	s := newSource(t, source.Config{})
	size := int64(len(content))
	for _, r := range [][2]int64{{0, size}, {0, 10}, {100, 5000}, {size - 1, 1}} {
		got, err := fetchAll(t, s, webBlob(source.Web{URL: web(t, tagged), Confirm: true}), r, "")
		if err != nil || !bytes.Equal(got, content[r[0]:r[0]+r[1]]) {
			t.Errorf("range %v: %d bytes, error %v", r, len(got), err)
		}
	}
	b := webBlob(source.Web{URL: web(t, plain), Confirm: true})
	if got, err := fetchAll(t, s, b, [2]int64{0, size}, ""); err != nil || !bytes.Equal(got, content) {
		t.Errorf("without ranges: %d bytes, error %v", len(got), err)
	}
	if _, err := fetchAll(t, s, b, [2]int64{1, 5}, ""); !errors.Is(err, source.ErrRangeIgnored) {
		t.Errorf("without ranges, from 1: %v", err)
	}
}

func TestContentThatChangesIsNamedAndNeverMixed(t *testing.T) {
	// Each handler has the first content for the probe, and another one from the n-th request on.
	change := func(from int32, other http.HandlerFunc) http.HandlerFunc {
		var n atomic.Int32
		return func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1) >= from {
				other(w, r)
				return
			}
			tagged(w, r)
		}
	}
	tag := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"two"`)
		r.Header.Del("If-Match") // a server that does not know it
		serveContent(w, r)
	}
	strict := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"two"`)
		serveContent(w, r)
	}
	longer := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"one"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(append([]byte("more"), content...)))
	}
	for name, other := range map[string]http.HandlerFunc{"etag": tag, "etag, precondition": strict, "length": longer} {
		for when, from := range map[string]int32{"before": 2, "meanwhile": 3} {
			t.Run(name+" "+when, func(t *testing.T) {
				s := newSource(t, source.Config{})
				w := source.Web{URL: web(t, change(from, other)), Confirm: true}
				info, err := s.Probe(t.Context(), w)
				if err != nil {
					t.Fatal(err)
				}
				w.Validator = info.Validator
				got, err := fetchAll(t, s, webBlob(w), [2]int64{0, info.Size}, "")
				if !errors.Is(err, source.ErrChanged) || !errors.Is(err, piece.ErrMismatch) || len(got) == len(content) {
					t.Errorf("%d bytes, error %v, want ErrChanged before the last byte", len(got), err)
				}
			})
		}
	}
}

func TestRightThatEndsMeanwhileIsNoChange(t *testing.T) {
	var n atomic.Int32
	b := webBlob(source.Web{URL: web(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) > 1 {
			http.Error(w, "expired", http.StatusForbidden)
			return
		}
		tagged(w, r)
	}), Validator: source.Validator{ETag: `"one"`}, Confirm: true})
	if got, err := fetchAll(t, newSource(t, source.Config{}), b, [2]int64{0, b.Size}, ""); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, error %v", len(got), err)
	}
}

func TestFaultyWebServerFailsInItsClass(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", code) }
	}
	short := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = w.Write(content[:1000])
	}
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	hangs := func(w http.ResponseWriter, r *http.Request) {
		short(w, r)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    error
	}{
		"401": {status(401), piece.ErrDenied}, "403": {status(403), piece.ErrDenied}, "404": {status(404), piece.ErrAbsent},
		"410": {status(410), piece.ErrAbsent}, "429": {status(429), piece.ErrTransient}, "500": {status(500), piece.ErrTransient},
		"short": {short, io.ErrUnexpectedEOF}, "hung": {hang, source.ErrStalled}, "hung in the middle": {hangs, source.ErrStalled},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t, source.Config{Patience: 200 * time.Millisecond, Stall: 100 * time.Millisecond})
			w := source.Web{URL: web(t, c.handler)}
			_, err := fetchAll(t, s, webBlob(w), [2]int64{0, int64(len(content))}, "")
			if !errors.Is(err, c.want) {
				t.Errorf("fetch: %v, want %v", err, c.want)
			}
			if _, err := s.Probe(t.Context(), w); !strings.Contains(name, "short") && !strings.Contains(name, "middle") && !errors.Is(err, c.want) {
				t.Errorf("probe: %v, want %v", err, c.want)
			}
		})
	}
}

func TestHeadersOfAReaderStayWithTheURLsHost(t *testing.T) {
	seen := make(chan http.Header, 2)
	storage := web(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Clone()
		tagged(w, r)
	})
	first := web(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Clone()
		http.Redirect(w, r, storage+"?signature=x", http.StatusFound)
	})
	w := source.Web{URL: first + "?token=geheim", Header: http.Header{"Authorization": {"Bearer mine"}, "X-Api-Key": {"mine"}}}
	got, err := fetchAll(t, newSource(t, source.Config{}), webBlob(w), [2]int64{10, 20}, "")
	if err != nil || !bytes.Equal(got, content[10:30]) {
		t.Fatalf("%q, error %v", got, err)
	}
	if h := <-seen; h.Get("Authorization") != "Bearer mine" || h.Get("X-Api-Key") != "mine" {
		t.Errorf("the host saw %v", h)
	}
	h := <-seen
	for _, name := range []string{"Authorization", "X-Api-Key", "Referer"} {
		if v := h.Get(name); v != "" {
			t.Errorf("the host it leads to saw %s: %s", name, v)
		}
	}
}

func TestForeignURLDoesNotLeadToThisMachine(t *testing.T) {
	asked := false
	url := web(t, func(w http.ResponseWriter, r *http.Request) { asked = true; tagged(w, r) })
	s := newSource(t, source.Config{})
	if _, err := s.Probe(t.Context(), source.Web{URL: url, Foreign: true}); !errors.Is(err, piece.ErrDenied) || asked {
		t.Errorf("error %v, asked: %v", err, asked)
	}
	if _, err := s.Probe(t.Context(), source.Web{URL: url}); err != nil {
		t.Errorf("an own reader's: %v", err)
	}
}

func TestErrorsDoNotShowSecrets(t *testing.T) {
	s := newSource(t, source.Config{Patience: 100 * time.Millisecond})
	dead := "http://127.0.0.1:1/file?token=geheim"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for _, url := range []string{dead, web(t, http.NotFound) + "?token=geheim"} {
		_, err := s.Probe(ctx, source.Web{URL: url})
		if err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("error %v", err)
		}
		if _, err = fetchAll(t, s, webBlob(source.Web{URL: url}), [2]int64{0, 1}, ""); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("error %v", err)
		}
	}
}

func TestLinkTellsNameFromSecret(t *testing.T) {
	for _, c := range []struct {
		raw          string
		ignore       []string
		name, shared string
	}{
		{"HTTP://Example.com:80", nil, "http://example.com/", "http://example.com/"},
		{"https://h:8443/a%20b?x=1&y=2#frag", nil, "https://h:8443/a%20b?x=1&y=2", "https://h:8443/a%20b?x=1&y=2"},
		{"https://h/a?X-Amz-Signature=s&v=1&X-Amz-Date=d", []string{"X-Amz-*"}, "https://h/a?v=1", ""},
		{"https://h/a?v=1&X-Amz-Signature=s", nil, "https://h/a?v=1&X-Amz-Signature=s", ""},
		{"https://h/a?sig=s", []string{"sig"}, "https://h/a", ""},
		{"https://user:pass@h/a", nil, "https://h/a", ""},
	} {
		l, err := source.ParseLink(c.raw, c.ignore, nil)
		if err != nil || l.Name != c.name || l.Shared != c.shared || l.Private() != (c.shared == "") {
			t.Errorf("%s: %+v, %v", c.raw, l, err)
		}
	}
	l, err := source.ParseLink("https://user:pass@h/a", nil, nil)
	if err != nil || l.Header.Get("Authorization") != "Basic dXNlcjpwYXNz" || strings.Contains(l.URL, "pass") {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err := source.ParseLink("https://h/a", nil, http.Header{"Cookie": {"c"}}); err != nil || !l.Private() {
		t.Errorf("with a cookie: %+v, %v", l, err)
	}
	for _, raw := range []string{"", "a", "ftp://h/a", "http:///a", "http:a", "://", "http://h/%zz?token=geheim"} {
		if _, err := source.ParseLink(raw, nil, nil); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

func FuzzParseLink(f *testing.F) {
	f.Add("https://user:pass@h:443/a?x=1&sig=2#f", "x*")
	f.Add("http://[::1]/?", "")
	f.Fuzz(func(t *testing.T, raw, ignore string) {
		l, err := source.ParseLink(raw, []string{ignore}, nil)
		if err != nil {
			return
		}
		again, err := source.ParseLink(l.Name, []string{ignore}, nil)
		if err != nil || again.Name != l.Name {
			t.Fatalf("%q has the name %q, which has %q: %v", raw, l.Name, again.Name, err)
		}
		if l.Shared != "" && l.Shared != l.URL {
			t.Fatalf("%q is shared as %q", raw, l.Shared)
		}
	})
}
