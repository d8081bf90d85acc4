package peer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/peertest"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
)

// website has one file, counts what it sends, and can be told what to have.
type website struct {
	*httptest.Server
	mu       sync.Mutex // guards the fields below
	data     []byte
	etag     string
	secret   string // wanted as Authorization
	sent     int64
	swapAt   int64 // after so many bytes of one answer the file becomes another one
	swapTo   []byte
	refusals int
	cutAt    int64    // after so many bytes the next answer breaks off
	ranges   []string // that were asked for
}

func newWebsite(t *testing.T, size int) *website {
	t.Helper()
	s := &website{data: bytes.Repeat([]byte("content of the web, "), size/20+1)[:size], etag: `"one"`}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

func (s *website) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.ranges = append(s.ranges, r.Header.Get("Range"))
	data, etag, denied := s.data, s.etag, s.secret != "" && r.Header.Get("Authorization") != s.secret
	if denied {
		s.refusals++
	}
	s.mu.Unlock()
	if denied {
		http.Error(w, "who are you", http.StatusUnauthorized)
		return
	}
	w.Header().Set("ETag", etag)
	http.ServeContent(&counted{ResponseWriter: w, site: s}, r, "", time.Time{}, bytes.NewReader(data))
}

// counted hides ReadFrom and counts.
type counted struct {
	http.ResponseWriter
	site *website
	n    int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	s := c.site
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent += int64(n)
	if c.n += int64(n); s.swapAt > 0 && c.n >= s.swapAt {
		s.data, s.etag, s.swapAt = s.swapTo, `"two"`, 0
	}
	if s.cutAt > 0 && c.n >= s.cutAt {
		s.cutAt = 0
		return n, errors.New("cut")
	}
	return n, err
}

func (s *website) copies(b peer.Blob) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return float64(s.sent) / float64(b.Size)
}

// blob is the site's file as a host sees it that asks now.
func (s *website) blob(t *testing.T, header http.Header) peer.Blob {
	t.Helper()
	link, err := source.ParseLink(s.URL+"/file", nil, header)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, size := source.Validator{ETag: s.etag}, int64(len(s.data))
	return peer.Blob{Digest: piece.URLID(link.Name, v.String(), size), Size: size, Origin: peer.Origin{URL: link.Shared, Validator: v},
		Access: peer.Access{URL: link.URL, Header: link.Header, Validator: v}}
}

func near(got float64) bool { return got >= 1 && got < 1.01 } // probes cost a byte

func TestURLLeavesTheOriginOnce(t *testing.T) {
	for name, size := range map[string]int{"of many pieces": 5*mib + 12345, "of one piece": 1000} {
		t.Run(name, func(t *testing.T) {
			s, site := peertest.NewSwarm(t), newWebsite(t, size)
			seed := s.Host(peertest.Seed)
			hosts := []*peertest.Host{s.Host(), s.Host(), s.Host(), s.Host()}
			b := site.blob(t, nil)
			readAll(t, b, site.data, hosts...)
			if got := site.copies(b); !near(got) {
				t.Errorf("%.3f copies left the origin", got)
			}
			if got := seed.Counter(t, "shoal_peer_read_bytes_total", "source"); got != float64(size) {
				t.Errorf("the seed read %.0f bytes from the origin", got)
			}
		})
	}
}

func TestURLWithASecretIsReadByItsReaderAlone(t *testing.T) {
	s, site := peertest.NewSwarm(t), newWebsite(t, 3*mib)
	site.secret = "Bearer mine"
	s.Host(peertest.Seed)
	s.Host(peertest.Seed)
	b := site.blob(t, http.Header{"Authorization": {"Bearer mine"}})
	if b.Origin.URL != "" {
		t.Fatalf("others are told of %s", b.Origin.URL)
	}
	readAll(t, b, site.data, s.Host(), s.Host())
	if got := site.copies(b); !near(got) || site.refusals != 0 {
		t.Errorf("%.3f copies left the origin, %d hosts asked without the secret", got, site.refusals)
	}
	lone := newWebsite(t, mib)
	lone.secret = "Bearer mine"
	readAll(t, lone.blob(t, http.Header{"Authorization": {"Bearer mine"}}), lone.data, s.Host(peertest.Lone))
}

func TestURLThatChangesMeanwhileReachesNobodyAsAWhole(t *testing.T) {
	s, site := peertest.NewSwarm(t), newWebsite(t, 5*mib)
	b := site.blob(t, nil)
	site.swapAt, site.swapTo = 2*mib, bytes.Repeat([]byte("x"), 5*mib)
	seed, h := s.Host(peertest.Seed), s.Host()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got, err := h.Read(ctx, b)
	if err == nil || !errors.Is(err, piece.ErrMismatch) || !strings.Contains(err.Error(), "changed at the origin") {
		t.Errorf("%d bytes, error %v", len(got), err)
	}
	for _, host := range []*peertest.Host{seed, h} {
		if st, err := host.Store.Get(b.Digest); err == nil {
			if st.Complete() {
				t.Error("the mixture is held as complete")
			}
			_ = st.Close()
		}
	}
	site.mu.Lock()
	now := site.data
	site.mu.Unlock()
	readAll(t, site.blob(t, nil), now, h)
}

func TestURLThatBreaksOffIsGoneOnWithOnlyWhereThatIsSafe(t *testing.T) {
	for etag, resumed := range map[string]bool{`"one"`: true, `W/"one"`: false} {
		t.Run(etag, func(t *testing.T) {
			s, site := peertest.NewSwarm(t), newWebsite(t, 3*mib)
			site.etag, site.cutAt = etag, mib
			readAll(t, site.blob(t, nil), site.data, s.Host(peertest.Lone))
			site.mu.Lock()
			defer site.mu.Unlock()
			got := slices.ContainsFunc(site.ranges, func(r string) bool { return r != "" && r != "bytes=0-0" })
			if got != resumed {
				t.Errorf("asked for %q", site.ranges)
			}
		})
	}
}

func TestURLOfKnownDigestIsCheckedByIt(t *testing.T) {
	s, site := peertest.NewSwarm(t), newWebsite(t, 3*mib)
	s.Host(peertest.Seed)
	b := site.blob(t, nil)
	b.Digest = digest.FromBytes(site.data)
	readAll(t, b, site.data, s.Host(), s.Host())
	wrong := site.blob(t, nil)
	wrong.Digest = digest.FromString("something else")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := s.Host().Read(ctx, wrong); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("error %v", err)
	}
}

func TestURLIsServedWhenTheOriginIsGone(t *testing.T) {
	s, site := peertest.NewSwarm(t), newWebsite(t, 3*mib)
	s.Host(peertest.Seed)
	b := site.blob(t, nil)
	readAll(t, b, site.data, s.Host())
	site.CloseClientConnections()
	site.Close()
	readAll(t, b, site.data, s.Host())
}

func TestURLThatNobodyVouchedForIsFetchedAgain(t *testing.T) {
	s, site := peertest.NewSwarm(t), newWebsite(t, 3*mib)
	b := site.blob(t, nil)
	h := s.Host(peertest.Lone)
	poison(t, h, b)
	readAll(t, b, site.data, h)
	h.Kill()
	again := s.Host(peertest.Lone, peertest.Dir(h.Dir)) // finds it vouched for, and asks nobody
	before := site.copies(b)
	readAll(t, b, site.data, again)
	if after := site.copies(b); after != before {
		t.Errorf("%.3f copies left the origin after the restart", after-before)
	}
}

func TestURLOfAnotherHostIsNotReadWithoutAValidator(t *testing.T) {
	s, site := peertest.NewSwarm(t), newWebsite(t, mib)
	b := site.blob(t, nil)
	b.Origin.Validator, b.Access = source.Validator{}, peer.Access{}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := s.Host(peertest.Lone).Read(ctx, b); err == nil {
		t.Error("no error")
	}
	if site.copies(b) != 0 {
		t.Error("the origin was read")
	}
	b.Origin.URL = site.URL + "/file?token=geheim"
	if r, err := s.Host(peertest.Lone).Open(ctx, b, ""); err == nil {
		_, _ = io.Copy(io.Discard, r.Section(ctx))
		t.Error("a URL with a secret was taken from another host")
	}
}

func TestStatusTellsWhoGaveWhat(t *testing.T) {
	s := peertest.NewSwarm(t)
	seed, h := s.Host(peertest.Seed), s.Host()
	b, data := s.Origin.Random(3*mib, 5)
	readAll(t, b, data, h)
	tasks := h.Tasks(t.Context())
	if len(tasks) != 1 || tasks[0].ID != b.Digest || tasks[0].Held != b.Size || tasks[0].Scheduler == "" {
		t.Fatalf("%+v", tasks)
	}
	if p := tasks[0].Parents; len(p) != 1 || p[0].Addr != seed.Addr || p[0].Bytes != b.Size || tasks[0].Origin != 0 {
		t.Errorf("%+v", tasks[0])
	}
	if l := h.Links(); len(l) != 1 || !l[0].Live {
		t.Errorf("%+v", l)
	}
}
