package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/cmd/internal/fetch"
	"github.com/shoal-project/shoal/peer/peertest"
	"github.com/shoal-project/shoal/peer/piece"
)

// shelf is a folder behind a web server that makes pages of links, and counts the bytes of files it was asked for.
type shelf struct {
	*httptest.Server
	dir string

	mu     sync.Mutex // guards what follows
	gone   string     // a path that is listed and not there
	served map[string]int
}

func newShelf(t *testing.T, files map[string]string) *shelf {
	s := &shelf{dir: t.TempDir(), served: map[string]int{}}
	for name, content := range files {
		write(t, filepath.Join(s.dir, name), content)
	}
	handler := http.FileServer(http.Dir(s.dir))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.served[r.URL.Path]++
		gone := s.gone != "" && r.URL.Path == s.gone
		s.mu.Unlock()
		if gone {
			http.NotFound(w, r)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func write(t *testing.T, name, content string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(name), 0o755)
	if err == nil {
		err = os.WriteFile(name, []byte(content), 0o644)
	}
	if err == nil {
		at := time.Now().Add(-time.Hour).Truncate(time.Second)
		err = os.Chtimes(name, at, at)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// tree gets all of the shelf.
func (s *shelf) tree(t *testing.T, cfg fetch.Config) (*fetch.TreeResult, error) {
	t.Helper()
	cfg.Origin = newSource(t)
	items, err := fetch.Index(t.Context(), cfg.Origin, s.URL+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	return fetch.Tree(t.Context(), cfg, s.URL, items)
}

// contents reads all files below a folder.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(name)
		rel, _ := filepath.Rel(dir, name)
		out[filepath.ToSlash(rel)] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var shelfFiles = map[string]string{"config.json": "{}", "a b&c.txt": "odd name", "part/1.bin": strings.Repeat("x", 300000), "part/deep/ö.bin": "y"}

func TestAllFilesBelowAFolderAreFetchedThroughTheNode(t *testing.T) {
	swarm, s := peertest.NewSwarm(t), newShelf(t, shelfFiles)
	swarm.Host(peertest.Seed)
	cfg := fetch.Config{Output: filepath.Join(t.TempDir(), "out"), Node: node(t, swarm.Host()), NoFallback: true}
	r, err := s.tree(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(shelfFiles, contents(t, cfg.Output)); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	if r.Bytes.Node != r.Size || len(r.Files) != 4 || r.Files[1].Path != "config.json" || r.Files[1].Digest != digest.FromString("{}") {
		t.Errorf("%+v", r)
	}
}

func TestTreeGoesOnWhereItBrokeOffAndFetchesWhatChanged(t *testing.T) {
	s := newShelf(t, shelfFiles)
	cfg := fetch.Config{Output: t.TempDir()}
	s.gone = "/part/1.bin"
	r, err := s.tree(t, cfg)
	if !errors.Is(err, piece.ErrAbsent) || !strings.Contains(err.Error(), "part/1.bin") || r == nil || r.Failed != 1 {
		t.Fatalf("error %v, result %+v; want the one file that is gone", err, r)
	}
	s.gone = ""
	changed := filepath.Join(s.dir, "config.json")
	write(t, changed, "[]")
	now := time.Now().Truncate(time.Second)
	if err := os.Chtimes(changed, now, now); err != nil {
		t.Fatal(err)
	}
	r, err = s.tree(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(len("odd name") + len("y")); r.Bytes.Kept != want || r.Bytes.Origin != r.Size-want {
		t.Errorf("%+v, want %d bytes kept and the others read", r.Bytes, want)
	}
	if got := contents(t, cfg.Output); got["config.json"] != "[]" || len(got) != 4 {
		t.Errorf("files %v", got)
	}
}

func TestFileWithTheDigestOfItsListingIsNotAskedFor(t *testing.T) {
	s := newShelf(t, map[string]string{"a": "right"})
	cfg := fetch.Config{Output: t.TempDir(), Origin: newSource(t)}
	item := fetch.Item{Path: "a", Size: 5, Digest: digest.FromString("right"),
		Link: func(context.Context) (string, error) { return s.URL + "/a", nil }}
	for i, content := range []string{"wrong", "right"} {
		write(t, filepath.Join(cfg.Output, "a"), content)
		before := s.served["/a"]
		if _, err := fetch.Tree(t.Context(), cfg, s.URL, []fetch.Item{item}); err != nil {
			t.Fatal(err)
		}
		if asked := s.served["/a"] > before; asked != (i == 0) || contents(t, cfg.Output)["a"] != "right" {
			t.Errorf("%s: asked: %v, then there is %v", content, asked, contents(t, cfg.Output))
		}
	}
}

func TestOnlyLinksBelowThePageAreFollowed(t *testing.T) {
	page := `<a href="../">up</a> <a href="/etc/">root</a> <a href='https://other.example.com/x'>other</a> <a href="?C=N">sort</a>
<a href="%2e%2e/">up</a> <a href="a%2fb">slash</a> <a class="f" href="./file&amp;1">1</a> <a href="file&amp;1">again</a> <a href="#top">here</a>`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, page) }))
	defer server.Close()
	items, err := fetch.Index(t.Context(), newSource(t), server.URL+"/dir/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(items) != 1 || items[0].Path != "file&1" {
		t.Errorf("%+v, want the one file", items)
	}
}

func TestFoldersThatDoNotEndAreAnError(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `<a href="again/">again</a>`) }))
	defer server.Close()
	if items, err := fetch.Index(t.Context(), newSource(t), server.URL+"/", nil); err == nil {
		t.Errorf("%d files, want an error", len(items))
	}
}

func TestPathsOfAListingStayInTheFolder(t *testing.T) {
	for _, paths := range [][]string{{"/etc/passwd"}, {"../x"}, {"a/../../x"}, {""}, {"a", "a"}, {"a", "a/b"}, {"a//b"}, {".."}} {
		var items []fetch.Item
		for _, p := range paths {
			items = append(items, fetch.Item{Path: p})
		}
		if err := fetch.CheckItems(items); err == nil {
			t.Errorf("%q are taken", paths)
		}
	}
}
