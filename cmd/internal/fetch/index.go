package fetch

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
)

// Item is one file of a tree.
type Item struct {
	Path   string        `json:"path"`             // slash-separated, below the tree's top
	Size   int64         `json:"size"`             // bytes; negative when the listing does not tell
	Digest digest.Digest `json:"digest,omitempty"` // if the listing tells
	// Link returns a URL of the file, which may be good for some time only. Header goes to its host beside that of the Config, and Ignore
	// are query parameters as there.
	Link   func(ctx context.Context) (string, error) `json:"-"`
	Header http.Header                               `json:"-"`
	Ignore []string                                  `json:"-"`
}

const (
	maxIndex   = 16 << 20 // bytes of one folder's page
	maxItems   = 1_000_000
	maxFolders = 100_000
	maxDepth   = 64
)

// Index lists the files below a URL that ends in a slash and answers with a page of links, as web servers make for folders. Only links to what is
// below the page itself count. Errors of the host have a class of package piece.
func Index(ctx context.Context, src *source.Source, top string, header http.Header) ([]Item, error) {
	base, err := url.Parse(top)
	if err != nil || !strings.HasSuffix(base.Path, "/") || base.RawQuery != "" {
		return nil, &RequestError{fmt.Errorf("%s: a folder's URL ends in a slash and has no query", source.Redact(top))}
	}
	x := index{src: src, header: header, base: base}
	if err := x.folder(ctx, "", 0); err != nil {
		return nil, err
	}
	if len(x.items) == 0 {
		return nil, fmt.Errorf("%s: its page has no links to files below it: %w", source.Redact(top), piece.ErrAbsent)
	}
	slices.SortFunc(x.items, func(a, b Item) int { return strings.Compare(a.Path, b.Path) })
	return x.items, nil
}

type index struct {
	src     *source.Source
	header  http.Header
	base    *url.URL
	items   []Item
	folders int
}

// at returns the URL of what is at a path below the base.
func (x *index) at(name string) string {
	u := *x.base
	u.Path, u.RawPath = x.base.Path+name, ""
	return u.String()
}

// folder adds what the page of a folder leads to. dir is empty or ends in a slash.
func (x *index) folder(ctx context.Context, dir string, depth int) error {
	if x.folders++; depth > maxDepth || x.folders > maxFolders {
		return fmt.Errorf("%s: more than %d folders, or more than %d in each other", source.Redact(x.at("")), maxFolders, maxDepth)
	}
	page, err := x.page(ctx, x.at(dir))
	if err != nil {
		return fmt.Errorf("folder %s: %w", source.Redact(x.at(dir)), err)
	}
	for _, name := range below(page) {
		if strings.HasSuffix(name, "/") {
			if err := x.folder(ctx, dir+name, depth+1); err != nil {
				return err
			}
			continue
		}
		if len(x.items) == maxItems {
			return fmt.Errorf("%s: more than %d files", source.Redact(x.at("")), maxItems)
		}
		link := x.at(dir + name)
		x.items = append(x.items, Item{Path: dir + name, Size: -1, Link: func(context.Context) (string, error) { return link, nil }})
	}
	return nil
}

func (x *index) page(ctx context.Context, at string) (string, error) {
	body, err := x.src.Stream(ctx, source.Web{URL: at, Header: x.header})
	if err != nil {
		return "", err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxIndex+1))
	if err == nil && len(data) > maxIndex {
		err = errors.New("its page is too long")
	}
	return string(data), err
}

// anchor is a link of a page.
var anchor = regexp.MustCompile(`(?is)<a\s[^>]*?href\s*=\s*(?:"([^"]*)"|'([^']*)')`)

// below returns the names that a page leads to within its own folder, each once; those of folders end in a slash.
func below(page string) []string {
	var names []string
	seen := map[string]bool{}
	for _, m := range anchor.FindAllStringSubmatch(page, -1) {
		href := html.UnescapeString(m[1] + m[2])
		href, _, _ = strings.Cut(href, "#")
		if strings.Contains(href, "?") { // how the page is to be sorted
			continue
		}
		name, err := url.PathUnescape(strings.TrimPrefix(href, "./"))
		bare := strings.TrimSuffix(name, "/")
		if err != nil || strings.Contains(href, ":") || bare == "" || bare == "." || bare == ".." || strings.ContainsAny(bare, "/\\\x00") {
			continue
		}
		if !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}

// CheckItems makes sure that the paths of a tree stay below its top and do not get in each other's way.
func CheckItems(items []Item) error {
	files := map[string]bool{}
	for _, i := range items {
		if i.Path == "" || path.IsAbs(i.Path) || path.Clean(i.Path) != i.Path || i.Path == ".." || strings.HasPrefix(i.Path, "../") || strings.Contains(i.Path, "\x00") {
			return fmt.Errorf("the listing has the path %q", i.Path)
		}
		if files[i.Path] {
			return fmt.Errorf("the listing has %q twice", i.Path)
		}
		files[i.Path] = true
	}
	for name := range files {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if files[dir] {
				return fmt.Errorf("the listing has %q both as a file and as a folder", dir)
			}
		}
	}
	return nil
}
