package source

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

var testTime = time.Unix(1_600_000_000, 0)

// web serves files with ranges.
type web map[string][]byte

func (w web) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	data, ok := w[r.URL.Path]
	if !ok {
		http.NotFound(rw, r)
		return
	}
	rw.Header().Set("ETag", `"`+digest.FromBytes(data).Encoded()+`"`)
	rw.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(rw, r, "", testTime, bytes.NewReader(data))
}

// plain hides the request's range from a handler, as servers without ranges do.
func plain(w http.ResponseWriter, r *http.Request, h http.Handler) {
	r = r.Clone(r.Context())
	r.Header.Del("Range")
	h.ServeHTTP(w, r)
}

type packed struct {
	name   string
	data   string
	method uint16
	mode   fs.FileMode
}

func zipOf(t testing.TB, entries ...packed) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: e.method}
		h.SetMode(e.mode | 0o644)
		f, err := w.CreateHeader(h)
		check(t, err)
		_, err = f.Write([]byte(e.data))
		check(t, err)
	}
	check(t, w.Close())
	return out.Bytes()
}

func newWeb(t testing.TB, files web) (*faults, string) {
	f := &faults{Handler: files, of: map[string][]fault{}}
	return f, serve(t, f)
}

func TestArchivesBehindURLsAreRead(t *testing.T) {
	raw := tarOf(t, regular("a", strings.Repeat("1", 5000)), folder("none"), symlink("l", "a"))
	want := []string{"a=" + strings.Repeat("1", 5000), "l -> a", "none/"}
	zipped := zipOf(t, packed{"a", strings.Repeat("1", 5000), zip.Deflate, 0}, packed{"none/", "", zip.Store, fs.ModeDir}, packed{"l", "a", zip.Store, fs.ModeSymlink})
	files := web{
		"/m.tar": raw, "/m.tar.gz": gzipped(t, raw), "/m.tgz": gzipped(t, raw), "/m.tar.zst": zstded(t, raw), "/m.zip": zipped,
	}
	f, url := newWeb(t, files)
	for name, data := range files {
		f.of[name] = []fault{status(503), nil, cut(100), cut(1)}
		for _, fragment := range []string{"", "#sha256=" + digest.FromBytes(data).Encoded()} {
			m, err := Open(t.Context(), url+name+"?token=secret"+fragment, quick(Config{}))
			check(t, err)
			if m.Name != "m" || m.Ref != url+name || m.Local || (m.Files != nil) != (name == "/m.zip") {
				t.Errorf("%+v", m)
			}
			got, err := readAll(t, m)
			check(t, m.Close())
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
			}
		}
		m, err := Open(t.Context(), url+name+"#sha256="+strings.Repeat("0", 64), Config{})
		if err == nil {
			_, err = readAll(t, m)
		}
		if !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s with another digest: %v", name, err)
		}
	}
}

func TestSingleFileBehindURL(t *testing.T) {
	data := noise(1, 50_000)
	f, url := newWeb(t, web{"/x/model.gguf": data, "/download": data, "/empty.bin": nil})
	named := func(w http.ResponseWriter, r *http.Request, h http.Handler) {
		w.Header().Set("Content-Disposition", `attachment; filename="../tiny model.gguf"`)
		h.ServeHTTP(w, r)
	}
	f.of["/download"] = []fault{named}
	f.of["/x/model.gguf"] = []fault{nil, cut(10), status(429, "Retry-After", "0"), plain}
	for at, want := range map[string]string{"/x/model.gguf": "model.gguf", "/download": "tiny model.gguf", "/empty.bin": "empty.bin"} {
		m, err := Open(t.Context(), url+at, quick(Config{}))
		check(t, err)
		if len(m.Files) != 1 || m.Files[0].Path != want || m.Name != stem(want) {
			t.Fatalf("%+v", m)
		}
		for _, offset := range []int64{0, 40_000} {
			content := map[string][]byte{"/empty.bin": nil}
			wanted := data
			if c, ok := content[at]; ok {
				wanted = c
			}
			got, err := read(t.Context(), m, want, offset)
			if err != nil || !bytes.Equal(got, wanted[min(int(offset), len(wanted)):]) {
				t.Errorf("%s from %d: %d bytes, %v", at, offset, len(got), err)
			}
		}
	}
}

// A server that breaks off again and again is one thing, and a file that was changed another.
func TestServerWithoutRangesThatBreaksOffIsToldAsThat(t *testing.T) {
	data := noise(1, 50_000)
	for at, from := range map[string]int{"at the same byte": 1000, "earlier": 500} {
		f, url := newWeb(t, web{"/model.bin": data})
		broken := func(n int) fault {
			return func(w http.ResponseWriter, r *http.Request, h http.Handler) {
				plain(&cutter{w, n}, r, h)
			}
		}
		f.of["/model.bin"] = []fault{plain, broken(1000), broken(from), broken(from), broken(from)}
		m, err := Open(t.Context(), url+"/model.bin", quick(Config{Retries: 3}))
		check(t, err)
		_, err = read(t.Context(), m, "model.bin", 0)
		want := fmt.Sprintf("model.bin: its connection was cut at byte %d, and the server gives no ranges to go on from there; run it again", from)
		if !errors.Is(err, ErrService) || errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", at, want, err)
		}
	}
}

func TestURLsThatCannotBeReadAreExplained(t *testing.T) {
	zipped := zipOf(t, packed{"a", "1", zip.Store, 0})
	f, url := newWeb(t, web{"/m.zip": zipped, "/x": {1, 2}, "/": {1}})
	f.of["/m.zip"] = []fault{plain}
	f.of["/secret"] = []fault{status(401)}
	f.of["/chunked"] = []fault{func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		_ = http.NewResponseController(w).Flush()
		_, _ = w.Write([]byte("x"))
	}}
	for at, tc := range map[string]struct {
		class error
		want  string
	}{
		"/m.zip": {ErrModel, "gives no ranges"}, "/none": {ErrModel, "no such file (404)"}, "/secret?key=hidden": {ErrService, "credentials (401)"},
		"/x#md5=1": {ErrModel, "want sha256="}, "/": {ErrModel, "names the file"}, "/chunked": {ErrModel, "does not tell its size"},
	} {
		_, err := Open(t.Context(), url+at, quick(Config{}))
		if !errors.Is(err, tc.class) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: got %v", at, err)
		}
	}
}

func TestPasswordInURLIsSentButNotShown(t *testing.T) {
	_, url := newWeb(t, nil)
	server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "me" || password != "hidden" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, url+"/none", http.StatusFound)
	}))
	_, err := Open(t.Context(), strings.Replace(server, "http://", "http://me:hidden@", 1)+"/f", quick(Config{}))
	if err == nil || !strings.Contains(err.Error(), "404") || strings.Contains(err.Error(), "hidden") {
		t.Errorf("got %v", err)
	}
}

func TestZipIsReadAtOffsetsWithFewRequests(t *testing.T) {
	big := string(noise(2, 700_000))
	zipped := zipOf(t, packed{"big", big, zip.Store, 0}, packed{"deflated", big, zip.Deflate, 0}, packed{"dir/small", "s", zip.Deflate, 0}, packed{"empty", "", zip.Deflate, 0})
	f, url := newWeb(t, web{"/m.zip": zipped})
	dir := t.TempDir()
	write(t, dir+"/m.zip", string(zipped), 0o600)
	for _, ref := range []string{url + "/m.zip", dir + "/m.zip"} {
		m, err := Open(t.Context(), ref, Config{})
		check(t, err)
		for name, want := range map[string]string{"big": big, "deflated": big, "dir/small": "s", "empty": ""} {
			for _, offset := range []int{0, 1, 600_000, 700_000} {
				got, err := read(t.Context(), m, name, int64(offset))
				if err != nil || string(got) != want[min(offset, len(want)):] {
					t.Errorf("%s: %s from %d: %d bytes, %v", ref, name, offset, len(got), err)
				}
			}
		}
		check(t, m.Close())
	}
	if n := len(f.requests()); n > 24 {
		t.Errorf("%d requests", n)
	}
}

func TestHostileZipsAreRefused(t *testing.T) {
	bomb := func() []byte {
		var out bytes.Buffer
		w := zip.NewWriter(&out)
		w.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestSpeed) })
		f, err := w.Create("zeros")
		check(t, err)
		_, err = io.Copy(f, io.LimitReader(zeros{}, freeBytes+1<<20))
		check(t, errors.Join(err, w.Close()))
		return out.Bytes()
	}()
	ok := zipOf(t, packed{"a", strings.Repeat("1", 100), zip.Store, 0})
	patch := func(at int, with byte) []byte { // counted from the directory's entry
		out := bytes.Clone(ok)
		out[bytes.Index(out, []byte("PK\x01\x02"))+at] = with
		return out
	}
	spoiled := bytes.Clone(ok)
	spoiled[bytes.IndexByte(spoiled, '1')] = '2'
	for _, tc := range []struct {
		name string
		data []byte
		cfg  Config
		want string
	}{
		{"parent", zipOf(t, packed{"../a", "1", zip.Store, 0}), Config{}, "leads out"},
		{"absolute", zipOf(t, packed{"/a", "1", zip.Store, 0}), Config{}, "absolute"},
		{"twice", zipOf(t, packed{"a", "1", zip.Store, 0}, packed{"a", "2", zip.Store, 0}), Config{}, "twice"},
		{"link out", zipOf(t, packed{"a", "1", zip.Store, 0}, packed{"l", "../x", zip.Store, fs.ModeSymlink}), Config{}, "leads out"},
		{"bomb", bomb, Config{}, "200 times"},
		{"limit", ok, Config{MaxExpanded: 99}, "limit"},
		{"no zip", []byte("no zip at all"), Config{}, "zip"},
		{"cut", ok[:len(ok)-30], Config{}, "zip"},
		{"encrypted", patch(8, 1), Config{}, "encrypted"},
		{"method", patch(10, 12), Config{}, "method 12"},
		{"larger than the archive", patch(23, 1), Config{}, "outside"},
		{"other sizes", patch(24, 99), Config{}, "sizes differ"},
		{"outside", patch(43, 1), Config{}, "m.zip"},
		{"spoiled", spoiled, Config{}, "crc32"},
		{"names", zipOf(t, packed{"a", "1", zip.Store, 0}, packed{"b", "2", zip.Store, 0}), Config{MaxFiles: 1}, "more than 1 names"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/m.zip", string(tc.data), 0o600)
			m, err := Open(t.Context(), dir+"/m.zip", tc.cfg)
			if err == nil {
				defer m.Close()
				_, err = readAll(t, m)
			}
			if err == nil || !hasClass(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("want %q, got %v", tc.want, err)
			}
		})
	}
}

func TestZipThatShrinksOrGrowsInDeflateIsAnError(t *testing.T) {
	ok := zipOf(t, packed{"a", strings.Repeat("1", 1000), zip.Deflate, 0})
	for _, size := range []byte{0xe7, 0xe9} { // 999 and 1001 for 1000
		data := bytes.Clone(ok)
		data[bytes.Index(data, []byte("PK\x01\x02"))+24] = size
		dir := t.TempDir()
		write(t, dir+"/m.zip", string(data), 0o600)
		m, err := Open(t.Context(), dir+"/m.zip", Config{})
		check(t, err)
		if _, err := read(t.Context(), m, "a", 0); !errors.Is(err, ErrDigest) {
			t.Errorf("got %v", err)
		}
		check(t, m.Close())
	}
}

func TestCanceledReadingEnds(t *testing.T) {
	f, url := newWeb(t, web{"/m.tar": tarOf(t, regular("a", "1"))})
	ctx, cancel := context.WithCancel(t.Context())
	f.of["/m.tar"] = []fault{func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		cancel()
		<-r.Context().Done()
	}}
	if _, err := Open(ctx, url+"/m.tar", Config{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRangesAreParsed(t *testing.T) {
	for value, want := range map[string]string{
		"bytes 0-9/10": "0 10 true", "bytes 5-9/*": "5 -1 true", "bytes 0-10/10": "0 0 false", "bytes 9-5/10": "0 0 false", "": "0 0 false",
		"bytes */10": "0 0 false", "items 0-9/10": "0 0 false", "bytes -5-9/10": "0 0 false", "bytes 0-9": "0 0 false",
	} {
		start, size, ok := contentRange(value)
		if got := fmt.Sprint(start, size, ok); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}

func TestRetryAfterIsUnderstood(t *testing.T) {
	date := "Mon, 02 Jan 2006 15:04:05 GMT"
	for value, want := range map[string]time.Duration{
		"3": 3 * time.Second, "Mon, 02 Jan 2006 15:04:15 GMT": 10 * time.Second, date: 0, "-1": 0, "soon": 0, "": 0,
		"Mon, 02 Jan 2006 15:04:00 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}, "Date": {date}}); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}

func FuzzZip(f *testing.F) {
	f.Add(zipOf(f, packed{"a/b", "1", zip.Store, 0}, packed{"c", strings.Repeat("2", 100), zip.Deflate, 0}, packed{"l", "c", zip.Store, fs.ModeSymlink}))
	f.Add(zipOf(f, packed{"../a", "1", zip.Store, 0}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := newSession(Config{MaxFiles: 1000, MaxExpanded: 1 << 20})
		check(t, err)
		src := &zipSource{bytes.NewReader(raw), int64(len(raw)), func(_ context.Context, want span) (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(bytes.NewReader(raw), want.from, want.to-want.from)), nil
		}}
		files, err := s.listZip(src, "fuzz")
		if err != nil {
			if !hasClass(err) {
				t.Errorf("no class: %v", err)
			}
			return
		}
		m := &Model{Files: files}
		for i := range files {
			if strings.HasPrefix(files[i].Path, "/") || strings.Contains("/"+files[i].Path+"/", "/../") || path.Clean(files[i].Path) != files[i].Path {
				t.Errorf("%q was passed on", files[i].Path)
			}
			if files[i].Mode.IsRegular() {
				got, err := read(t.Context(), m, files[i].Path, 0)
				if err == nil && int64(len(got)) != files[i].Size {
					t.Errorf("%q: %d bytes, its size is %d", files[i].Path, len(got), files[i].Size)
				}
			}
		}
	})
}
