package fetch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/opencontainers/go-digest"
)

// atOnce is how many files of a tree are fetched at a time.
const atOnce = 4

// TreeResult tells what was fetched of a tree.
type TreeResult struct {
	Target  string     `json:"target"` // without what may be secret
	Output  string     `json:"output"` // the folder
	Files   []TreeFile `json:"files"`  // in the order of their paths
	Failed  int        `json:"failed"` // of the files
	Size    int64      `json:"size"`   // of all that are there, in bytes
	Bytes   Bytes      `json:"bytes"`
	Seconds float64    `json:"seconds"`
}

// TreeFile tells what became of one file.
type TreeFile struct {
	Path   string        `json:"path"`
	Size   int64         `json:"size"`
	Digest digest.Digest `json:"digest,omitempty"`
	Error  string        `json:"error,omitempty"`
}

// Tree fetches the files into the folder cfg.Output, some at a time. A file that is there is left alone if it has the digest that its
// listing tells, or, where that tells none, the size and the time of what the URL has. When files fail, the others are fetched all the same, and the error has all of theirs.
func Tree(ctx context.Context, cfg Config, target string, items []Item) (*TreeResult, error) {
	if err := CheckItems(items); err != nil {
		return nil, err
	}
	began := time.Now()
	t := &tree{cfg: cfg, result: TreeResult{Target: target, Output: cfg.Output, Files: make([]TreeFile, len(items))}, errs: make([]error, len(items))}
	t.plan(items)
	var group errgroup.Group
	group.SetLimit(atOnce)
	for at, item := range items {
		group.Go(func() error {
			t.fetch(ctx, at, item)
			return nil
		})
	}
	_ = group.Wait() // each notes its own error
	t.result.Seconds = time.Since(began).Seconds()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return &t.result, errors.Join(t.errs...)
}

type tree struct {
	cfg Config

	mu     sync.Mutex // guards what follows
	result TreeResult
	errs   []error
	ended  int
	sized  bool // the plan is of all files, and told
}

// plan tells how much there is, if the listing does.
func (t *tree) plan(items []Item) {
	var sum int64
	for _, i := range items {
		if i.Size < 0 {
			return
		}
		sum += i.Size
	}
	if t.sized = true; t.cfg.Progress != nil {
		t.cfg.Progress.Plan(sum)
	}
}

// Step is part of Progress; the tree's own steps are files.
func (t *tree) Step(string) {}

// Plan adds a file whose size its listing did not tell.
func (t *tree) Plan(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.sized {
		t.cfg.Progress.Plan(n)
	}
}

// Done adds bytes that came.
func (t *tree) Done(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cfg.Progress.Done(n)
}

func (t *tree) fetch(ctx context.Context, at int, item Item) {
	if ctx.Err() != nil {
		return
	}
	r, err := t.file(ctx, item)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended++
	if t.cfg.Progress != nil {
		t.cfg.Progress.Step(fmt.Sprintf("%d of %d files", t.ended, len(t.errs)))
	}
	f := &t.result.Files[at]
	f.Path = item.Path
	if err != nil {
		t.result.Failed++
		f.Error, t.errs[at] = err.Error(), fmt.Errorf("%s: %w", item.Path, err)
		return
	}
	f.Size, f.Digest = r.Size, r.Digest
	t.result.Size += r.Size
	t.result.Bytes.Kept += r.Bytes.Kept
	t.result.Bytes.Node += r.Bytes.Node
	t.result.Bytes.Origin += r.Bytes.Origin
}

func (t *tree) file(ctx context.Context, item Item) (*Result, error) {
	output := filepath.Join(t.cfg.Output, filepath.FromSlash(item.Path))
	if item.Digest != "" {
		if n, ok := holds(output, item.Digest); ok {
			if t.cfg.Progress != nil {
				t.Done(n)
			}
			return &Result{Size: n, Digest: item.Digest, Bytes: Bytes{Kept: n}}, nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(output), 0o777); err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	link, err := item.Link(ctx)
	if err != nil {
		return nil, err
	}
	cfg := t.cfg
	cfg.Output, cfg.Digest, cfg.Part, cfg.Progress, cfg.Keep = output, item.Digest, nil, nil, item.Digest == ""
	if t.cfg.Progress != nil {
		cfg.Progress = t
	}
	if cfg.Target, err = ParseTarget(link); err != nil {
		return nil, err
	}
	cfg.Ignore = slices.Concat(t.cfg.Ignore, item.Ignore)
	cfg.Header = http.Header{}
	maps.Copy(cfg.Header, item.Header)
	maps.Copy(cfg.Header, t.cfg.Header)
	return Run(ctx, cfg)
}

// modified is when the content was changed at its origin; zero when it does not tell.
func (c content) modified() time.Time {
	at, err := http.ParseTime(c.validator.Modified)
	if err != nil {
		return time.Time{}
	}
	return at
}

// keeps reports whether the file is there already, and then has the result tell of it.
func (f *fetcher) keeps(c content) bool {
	if !f.Keep || f.Output == "" || f.Part != nil || c.modified().IsZero() {
		return false
	}
	info, err := os.Stat(f.Output)
	if err != nil || !info.Mode().IsRegular() || info.Size() != c.size || !info.ModTime().Equal(c.modified()) {
		return false
	}
	d, err := digestOf(f.Output)
	if err != nil {
		return false
	}
	f.result.Identity, f.result.Total, f.result.Size, f.result.Digest, f.result.Bytes = c.id, c.size, c.size, d, Bytes{Kept: c.size}
	f.plan(span{0, c.size}, c.size)
	return true
}

func digestOf(name string) (digest.Digest, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return digest.SHA256.FromReader(f)
}

// holds reports whether a file has the digest, and its size in bytes.
func holds(name string, want digest.Digest) (int64, bool) {
	f, err := os.Open(name)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || !want.Algorithm().Available() {
		return 0, false
	}
	got, err := want.Algorithm().FromReader(f)
	return info.Size(), err == nil && got == want
}
