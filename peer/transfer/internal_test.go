package transfer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/shoal-project/shoal/peer/piece"
)

// readerFrom records in what shape the body reaches net/http.
type readerFrom struct {
	*httptest.ResponseRecorder
	sources []io.Reader
}

func (r *readerFrom) ReadFrom(src io.Reader) (int64, error) {
	r.sources = append(r.sources, src)
	return io.Copy(struct{ io.Writer }{r.ResponseRecorder}, src)
}

func TestBodyReachesTheServerInTheShapeSendfileTakes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	want := bytes.Repeat([]byte("0123456789"), 300_000)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	below := &readerFrom{ResponseRecorder: httptest.NewRecorder()}
	req := httptest.NewRequest(http.MethodGet, "/", nil)
	req.Header.Set("Range", "bytes=1000000-2999999")
	below.Header().Set("Content-Type", "application/octet-stream")
	u := &upload{ResponseWriter: below, ctx: t.Context(), pacer: unpaced{}, stall: time.Second}
	http.ServeContent(u, req, "", time.Time{}, f)

	if below.Code != http.StatusPartialContent || !bytes.Equal(below.Body.Bytes(), want[1_000_000:]) || u.sent != 2_000_000 {
		t.Fatalf("status %d, %d bytes, counted %d", below.Code, below.Body.Len(), u.sent)
	}
	if len(below.sources) != 2 {
		t.Errorf("sent in %d steps, want 2", len(below.sources))
	}
	for _, src := range below.sources {
		limited, ok := src.(*io.LimitedReader)
		if !ok {
			t.Fatalf("source is a %T, want *io.LimitedReader", src)
		}
		if _, ok := limited.R.(*os.File); !ok {
			t.Errorf("source reads from a %T, want *os.File", limited.R)
		}
	}
}

func drawSet(rt *rapid.T, n int, name string) *piece.Set {
	s := piece.NewSet(n)
	for _, i := range rapid.SliceOfN(rapid.IntRange(0, max(n-1, 0)), 0, 50).Draw(rt, name) {
		s.Add(piece.Index(i))
	}
	if rapid.Bool().Draw(rt, name+" is full") {
		s.AddAll()
	}
	return s
}

func TestFramesTurnOneSetIntoTheOther(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(0, 3000).Draw(rt, "pieces")
		sent, now := drawSet(rt, n, "sent"), drawSet(rt, n, "now")
		frames := newFrameReader(bytes.NewReader(appendChanges(appendAll(nil, sent), sent, now)))
		var known *piece.Set
		for {
			have, err := frames.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				rt.Fatal(err)
			}
			if have.All != nil {
				known = have.All
			}
			for _, i := range have.Added {
				if !known.Add(i) {
					rt.Fatalf("piece %d was added twice", i)
				}
			}
			for _, i := range have.Removed {
				if !known.Remove(i) {
					rt.Fatalf("piece %d was removed twice", i)
				}
			}
		}
		if diff := cmp.Diff(now.Bytes(), known.Bytes()); diff != "" {
			rt.Fatalf("set (-want +got):\n%s", diff)
		}
	})
}

func TestUnknownOptionalFramesAreSkipped(t *testing.T) {
	frames := newFrameReader(bytes.NewReader(appendFrame(appendFrame(nil, 200, []byte("news")), frameAlive, nil)))
	for range 2 {
		have, err := frames.next()
		if err != nil || have.All != nil {
			t.Fatalf("%+v, %v", have, err)
		}
	}
}

func TestWatchersAreAddresses(t *testing.T) {
	for _, tc := range []struct {
		payload string
		want    []string
		ok      bool
	}{
		{"10.0.0.1:7702\nnode-2:7702", []string{"10.0.0.1:7702", "node-2:7702"}, true},
		{"", nil, true},
		{"10.0.0.1", nil, false},
		{"10.0.0.1:7702\n", nil, false},
		{strings.Repeat("a:1\n", maxWatchers) + "a:1", nil, false},
	} {
		have, err := newFrameReader(bytes.NewReader(appendFrame(nil, frameWatchers, []byte(tc.payload)))).next()
		if (err == nil) != tc.ok || err == nil && !slices.Equal(have.Watchers, tc.want) {
			t.Errorf("%.40q: got %q, %v", tc.payload, have.Watchers, err)
		}
	}
}

func TestFailuresKeepTheirClassAndText(t *testing.T) {
	for _, class := range []error{piece.ErrTransient, piece.ErrDenied, piece.ErrAbsent, piece.ErrMismatch} {
		said := fmt.Errorf("blob x: %w", class)
		have, err := newFrameReader(bytes.NewReader(appendFailed(nil, said))).next()
		if err != nil || !errors.Is(have.Failed, class) || have.Failed.Error() != said.Error() {
			t.Errorf("%v came as %v, error %v", said, have.Failed, err)
		}
	}
	if have, err := newFrameReader(bytes.NewReader(appendFailed(nil, errors.New(strings.Repeat("x", 3000))))).next(); err != nil || len(have.Failed.Error()) != maxText ||
		!errors.Is(have.Failed, piece.ErrTransient) {
		t.Errorf("a long text came as %v, error %v", have.Failed, err)
	}
	if have, err := newFrameReader(bytes.NewReader(appendFailed(nil, errors.New("x\x1b]0;owned\a\nshoal: all is well")))).next(); err != nil || have.Failed.Error() != "x?]0;owned??shoal: all is well" {
		t.Errorf("a text with control characters came as %q, error %v", have.Failed, err)
	}
	for _, payload := range []string{"", "\x01", "\x09text", "\x01" + strings.Repeat("x", maxText+1)} {
		if have, err := newFrameReader(bytes.NewReader(appendFrame(nil, frameFailed, []byte(payload)))).next(); !errors.Is(err, errFrame) {
			t.Errorf("%.20q came as %v, error %v", payload, have.Failed, err)
		}
	}
}

func FuzzFrames(f *testing.F) {
	a, b := piece.NewSet(100), piece.NewSet(100)
	a.Add(3)
	b.Add(99)
	f.Add(appendChanges(appendAll(nil, a), a, b))
	f.Add([]byte{frameAdded, 0, 0, 0, 1, 0})
	f.Add(appendFailed(appendAll(nil, a), piece.ErrDenied))
	f.Add([]byte{frameAll, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{frameAll, 0, 0, 0, 5, 0, 0, 0, 8, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		frames := newFrameReader(bytes.NewReader(data))
		count := -1
		for {
			have, err := frames.next()
			if err != nil {
				if !errors.Is(err, errFrame) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("error %v has no class", err)
				}
				return
			}
			if have.All != nil {
				count = have.All.Len()
			}
			for _, i := range append(have.Added, have.Removed...) {
				if int(i) >= count || i < 0 {
					t.Fatalf("index %d of %d pieces", i, count)
				}
			}
		}
	})
}
