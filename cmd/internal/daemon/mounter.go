package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer"
	mirror "github.com/shoal-project/shoal/registry-mirror"
	"github.com/shoal-project/shoal/snapshotter"
	"github.com/shoal-project/shoal/snapshotter/fanotify"
	"github.com/shoal-project/shoal/snapshotter/keeper"
	"github.com/shoal-project/shoal/snapshotter/lazy"
)

// mounter mounts images lazily, or, where this host cannot, behind their bytes. The driver and its keeper begin with the first image: most
// nodes of a cluster may have none.
type mounter struct {
	cfg      lazy.Config
	images   images
	prefetch string // overrules what images say, if it is not empty
	log      *slog.Logger
	opened   chan struct{} // closed when there is a driver

	mu     sync.Mutex   // guards the rest
	driver *lazy.Driver // nil until it is needed
	off    string       // why there is none; empty while there may be
}

// newMounter returns a mounter that finds out at once whether it can be lazy. A keeper that an earlier process has left is taken over.
func newMounter(ctx context.Context, cfg lazy.Config, images images, log *slog.Logger) *mounter {
	m := &mounter{cfg: cfg, images: images, log: log, opened: make(chan struct{})}
	if err := fanotify.Probe(cfg.Dir); err != nil {
		m.fail(err)
	} else if kept, err := keeper.Connect(ctx, keeper.Config{Socket: cfg.Keeper.Socket}); err == nil {
		_ = kept.Close() // only a question
		m.lazy(ctx)
	}
	return m
}

func (m *mounter) fail(err error) {
	m.off = "images are fetched before they are mounted: " + err.Error()
	m.log.Warn("images are fetched before they are mounted", "error", err)
}

// lazy returns the driver, which it opens when it is needed first; nil where there is none.
func (m *mounter) lazy(ctx context.Context) *lazy.Driver {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.driver != nil || m.off != "" {
		return m.driver
	}
	driver, err := lazy.New(context.WithoutCancel(ctx), m.cfg) // for others too
	if err != nil {
		m.fail(err)
		return nil
	}
	m.driver = driver
	close(m.opened)
	return driver
}

// state tells the kind of driver there is or would be, and why it is not lazy.
func (m *mounter) state() (kind, off string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.off != "" {
		return "eager", m.off
	}
	return "lazy", ""
}

// run answers readers of mounts until ctx ends.
func (m *mounter) run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.opened:
	}
	return m.lazy(ctx).Run(ctx)
}

// settled tells the driver that all images of earlier processes were mounted again.
func (m *mounter) settled() {
	select {
	case <-m.opened:
		m.driver.Settled() // it stays what it is
	default:
	}
}

func (m *mounter) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.driver != nil {
		_ = m.driver.Close() // the keeper holds what counts
	}
}

// Mount implements snapshotter.Mounter.
func (m *mounter) Mount(ctx context.Context, image snapshotter.MountedImage, target string) error {
	driver := m.lazy(ctx)
	if driver == nil {
		return snapshotter.NewEager(m.images).Mount(ctx, image, target)
	}
	from := imageBlobs{images: m.images, refs: map[digest.Digest]mirror.BlobRef{}}
	for _, ref := range image.Blobs {
		from.refs[ref.Digest] = ref
	}
	ahead, err := lazy.ParsePrefetch(cmp.Or(m.prefetch, image.Prefetch))
	if err != nil { // of the image: the configuration was checked
		m.log.Warn("all of the image is fetched", "image", image.Name, "error", err)
	}
	return driver.Mount(ctx, lazy.Image{Name: image.Name, Bootstrap: image.Bootstrap, Blobs: from, Prefetch: ahead}, target)
}

// Unmount implements snapshotter.Mounter.
func (m *mounter) Unmount(ctx context.Context, target string) error {
	if driver := m.lazy(ctx); driver != nil {
		return driver.Unmount(ctx, target)
	}
	return snapshotter.NewEager(m.images).Unmount(ctx, target)
}

// accessed returns the files of what is mounted at a target, in the order in which they were first read.
func (m *mounter) accessed(target string) ([]string, error) {
	m.mu.Lock()
	driver := m.driver
	m.mu.Unlock()
	if driver == nil {
		return nil, errors.New("only the lazy driver takes note of reads; see shoal status")
	}
	return driver.Accessed(target)
}

// imageBlobs are the blobs of one image.
type imageBlobs struct {
	images images
	refs   map[digest.Digest]mirror.BlobRef
}

// Open implements lazy.Source.
func (b imageBlobs) Open(ctx context.Context, blob lazy.Blob) (lazy.Reader, error) {
	ref, ok := b.refs[blob.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: the image's manifest does not have it", blob.Digest)
	}
	r, err := b.images.open(ctx, ref)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// images lets the snapshotter ask the mirror for images, and the peer for their blobs.
type images struct {
	mirror *mirror.Handler
	blobs  blobs
	mounts func(registry, repository string) bool
}

// Image implements snapshotter.Images.
func (i images) Image(registry, repository string, manifest digest.Digest) (mirror.Image, error) {
	if !i.mounts(registry, repository) {
		return mirror.Image{}, mirror.ErrUnknown
	}
	return i.mirror.Image(registry, repository, manifest)
}

// Open implements snapshotter.Images. It reads with what the caller brought who pulled the image.
func (i images) Open(ctx context.Context, ref mirror.BlobRef) (mirror.Blob, error) {
	r, err := i.open(ctx, ref)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (i images) open(ctx context.Context, ref mirror.BlobRef) (*peer.Reader, error) {
	return i.blobs.open(ctx, ref, i.mirror.Authorization(ref.Registry, ref.Repository))
}
