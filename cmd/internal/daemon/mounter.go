package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/piece"
	mirror "github.com/shoal-project/shoal/registry-mirror"
	"github.com/shoal-project/shoal/snapshotter"
	"github.com/shoal-project/shoal/snapshotter/fanotify"
	"github.com/shoal-project/shoal/snapshotter/keeper"
	"github.com/shoal-project/shoal/snapshotter/lazy"
)

// mounter mounts images before their bytes are there. The driver and its keeper begin with the first image: most nodes of a cluster may
// have none.
type mounter struct {
	kind     lazy.Kind
	cfg      lazy.Config
	images   images
	prefetch string        // overrules what images say, if it is not empty
	opened   chan struct{} // closed when there is a driver

	mu     sync.Mutex   // guards driver
	driver lazy.Mounter // nil until it is needed
}

// errForced means that the configuration wants a driver that cannot work on this host.
var errForced = errors.New("this host cannot do what snapshotter.driver wants; auto takes what it can")

// newMounter returns a mounter of the wanted kind, and for lazy.Auto of the one that this host can. A keeper that an earlier process has left is
// taken over. The error is errForced where the host can never do what is wanted.
func newMounter(ctx context.Context, kind lazy.Kind, cfg lazy.Config, images images) (*mounter, error) {
	inherits := keeper.Running(ctx, cfg.Keeper.Socket) // that has shown what this host can
	auto := kind == lazy.Auto
	if auto {
		kind = lazy.EROFS
	}
	if kind == lazy.EROFS && !inherits {
		if err := probe(cfg.Dir); lacks(err) {
			if !auto {
				return nil, fmt.Errorf("%w: %s: %w", errForced, kind, err)
			}
			cfg.Log.Warn("images are mounted by FUSE, which is slower", "error", err)
			kind = lazy.FUSE
		}
	}
	m := &mounter{kind: kind, cfg: cfg, images: images, opened: make(chan struct{})}
	if inherits || kind == lazy.FUSE { // that needs no keeper, and tells what the host lacks
		_, err := m.lazy(ctx)
		if err != nil && kind == lazy.FUSE && !auto {
			err = fmt.Errorf("%w: %w", errForced, err)
		}
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

// probe tries what the driver erofs needs in a folder.
func probe(dir string) error {
	if err := fanotify.Probe(dir); err != nil {
		return err
	}
	return snapshotter.Probe(dir)
}

// lacks reports whether a host can never mount lazily by EROFS. A full disk, for one, passes.
func lacks(err error) bool {
	return errors.Is(err, fanotify.ErrUnsupported) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOTBLK)
}

// lazy returns the driver, which it opens when it is needed first.
func (m *mounter) lazy(ctx context.Context) (lazy.Mounter, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.driver != nil {
		return m.driver, nil
	}
	cfg := m.cfg
	metrics := prometheus.NewRegistry() // of a driver that is not to be, they go with it
	cfg.Registerer = metrics
	driver, _, err := lazy.Open(context.WithoutCancel(ctx), m.kind, cfg) // for others too
	if err != nil {
		return nil, err
	}
	if m.cfg.Registerer != nil {
		m.cfg.Registerer.MustRegister(metrics)
	}
	m.driver = driver
	close(m.opened)
	return driver, nil
}

// run answers readers of mounts until ctx ends.
func (m *mounter) run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.opened:
		return m.driver.Run(ctx) // it stays what it is
	}
}

// settled tells the driver that all images of earlier processes were mounted again.
func (m *mounter) settled() {
	select {
	case <-m.opened:
		m.driver.Settled()
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
	driver, err := m.lazy(ctx)
	if err != nil {
		return err
	}
	from := imageBlobs{images: m.images, refs: map[digest.Digest]mirror.BlobRef{}}
	for _, ref := range image.Blobs {
		from.refs[ref.Digest] = ref
	}
	ahead, err := lazy.ParsePrefetch(cmp.Or(m.prefetch, image.Prefetch))
	if err != nil { // of the image: the configuration was checked
		m.cfg.Log.Warn("all of the image is fetched", "image", image.Name, "error", err)
	}
	return driver.Mount(ctx, lazy.Image{Name: image.Name, Bootstrap: image.Bootstrap, Decoded: image.Decoded, Blobs: from, Prefetch: ahead}, target)
}

// Unmount implements snapshotter.Mounter.
func (m *mounter) Unmount(ctx context.Context, target string) error {
	driver, err := m.lazy(ctx)
	if err != nil {
		return err
	}
	return driver.Unmount(ctx, target)
}

// accessed returns the files of what is mounted at a target, in the order in which they were first read.
func (m *mounter) accessed(target string) ([]string, error) {
	m.mu.Lock()
	driver, ok := m.driver.(*lazy.Driver)
	m.mu.Unlock()
	if !ok {
		return nil, errors.New("only the driver erofs takes note of reads; see shoal status")
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
		return nil, err // no nil pointer in it
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
		return nil, err // no nil pointer in it
	}
	return r, nil
}

func (i images) open(ctx context.Context, ref mirror.BlobRef) (*imageReader, error) {
	authorization := i.mirror.Authorization(ref.Registry, ref.Repository)
	r, err := i.blobs.open(ctx, ref, authorization)
	if err != nil {
		return nil, err
	}
	return &imageReader{r, func() { i.mirror.Refused(ref.Registry, ref.Repository, authorization) }}, nil
}

// imageReader reads with credentials of one who pulled the image, as long as the origin takes them; then with the host's own.
type imageReader struct {
	*peer.Reader

	refused func()
}

// Await implements lazy.Reader.
func (r *imageReader) Await(ctx context.Context, off, length int64) (int64, error) {
	n, err := r.Reader.Await(ctx, off, length)
	if errors.Is(err, piece.ErrDenied) {
		r.refused()
	}
	return n, err
}
