package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/peer"
	mirror "github.com/shoal-project/shoal/registry-mirror"
	"github.com/shoal-project/shoal/snapshotter"
	"github.com/shoal-project/shoal/snapshotter/keeper"
	"github.com/shoal-project/shoal/snapshotter/lazy"
)

// snapshots is the node's snapshotter; without a listener it does not run.
type snapshots struct {
	*snapshotter.Snapshotter

	driver   *lazy.Driver // nil when images are fetched before they are mounted
	kind     string       // as local.SnapshotterStatus has it
	listener net.Listener
	address  string
	off      string // why it does not run, or why not lazily; empty when it does
}

var errSnapshotterRoot = errors.New("mounting needs root")

// openSnapshots opens the snapshotter, as far as the configuration wants it and this host can.
func (n *node) openSnapshots(ctx context.Context, images images) error {
	if n.cfg.Snapshotter.Enabled == config.SnapshotterOff {
		n.snapshots.off = "turned off"
		return nil
	}
	err := n.tryOpenSnapshots(ctx, images)
	if err == nil {
		return nil
	}
	n.snapshots.close()
	if n.cfg.Snapshotter.Enabled == config.SnapshotterOn {
		return errors.Join(errors.New("snapshotter"), err)
	}
	n.snapshots = snapshots{off: err.Error()}
	n.log.Info("no snapshotter here", "error", err)
	return nil
}

func (n *node) tryOpenSnapshots(ctx context.Context, images images) error {
	if os.Geteuid() != 0 {
		return errSnapshotterRoot
	}
	root, address := n.cfg.SnapshotterPaths()
	s := &n.snapshots
	s.address = address
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	cfg := snapshotter.Config{Root: root, Images: images, Pins: n.store, Log: n.component("snapshotter"), Registerer: n.admin.registry}
	var err error
	if cfg.Mounter, err = n.openMounter(ctx, root, images); err != nil {
		s.kind = "none"
		s.off = "images are unpacked: " + err.Error()
		n.log.Warn("images are unpacked, not mounted", "error", err)
	}
	if s.listener, err = snapshotter.Listen(ctx, address); err != nil {
		return err
	}
	s.Snapshotter, err = snapshotter.New(cfg)
	return err
}

// openMounter returns what mounts images: before their bytes are there, or, where this host cannot, behind them.
func (n *node) openMounter(ctx context.Context, root string, images images) (snapshotter.Mounter, error) {
	if err := snapshotter.Probe(root); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(n.cfg.DataDir, "lazy")
	driver, err := lazy.New(ctx, lazy.Config{Dir: dir, Log: n.component("lazy"), Registerer: n.admin.registry,
		Keeper: keeper.Config{Socket: filepath.Join(dir, "keeper.sock"), Command: []string{self, "keeper"}}})
	if err != nil {
		n.snapshots.off = "images are fetched before they are mounted: " + err.Error()
		n.log.Warn("images are fetched before they are mounted", "error", err)
		n.snapshots.kind = "eager"
		return snapshotter.NewEager(images), nil
	}
	n.snapshots.driver, n.snapshots.kind = driver, "lazy"
	return lazyMounter{driver, images}, nil
}

// lazyMounter has the driver read blobs from the peer.
type lazyMounter struct {
	driver *lazy.Driver
	images images
}

// Mount implements snapshotter.Mounter.
func (m lazyMounter) Mount(ctx context.Context, image snapshotter.MountedImage, target string) error {
	from := imageBlobs{images: m.images, refs: map[digest.Digest]mirror.BlobRef{}}
	for _, ref := range image.Blobs {
		from.refs[ref.Digest] = ref
	}
	return m.driver.Mount(ctx, lazy.Image{Name: image.Name, Bootstrap: image.Bootstrap, Blobs: from}, target)
}

// Unmount implements snapshotter.Mounter.
func (m lazyMounter) Unmount(ctx context.Context, target string) error {
	return m.driver.Unmount(ctx, target)
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

// run serves containerd until ctx ends.
func (s *snapshots) run(ctx context.Context) error {
	if s.listener == nil {
		return nil
	}
	return s.Serve(ctx, s.listener)
}

// restoreEvery is how long after images could not be mounted that had been before the start it is tried again.
const restoreEvery = 10 * time.Second

// restoreSnapshots mounts what was mounted before the start, until all of it is.
func (n *node) restoreSnapshots(ctx context.Context) error {
	if n.snapshots.listener == nil {
		return nil
	}
	for {
		err := n.snapshots.Restore(ctx)
		if err == nil && n.snapshots.driver != nil {
			n.snapshots.driver.Settled()
		}
		if err == nil || ctx.Err() != nil {
			return nil
		}
		n.component("snapshotter").Warn("not all is as it was before the start, trying again", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(restoreEvery):
		}
	}
}

// runDriver answers readers of mounts until ctx ends.
func (s *snapshots) runDriver(ctx context.Context) error {
	if s.driver == nil {
		return nil
	}
	return s.driver.Run(ctx)
}

func (s *snapshots) close() {
	if s.listener != nil {
		_ = s.listener.Close() // usually closed by its server already
	}
	if s.Snapshotter != nil {
		_ = s.Close() // bbolt syncs each transaction
	}
	if s.driver != nil {
		_ = s.driver.Close() // the keeper holds what counts
	}
}

// status describes it.
func (s *snapshots) status() local.SnapshotterStatus {
	st := local.SnapshotterStatus{Off: s.off}
	if s.listener != nil {
		st.Address, st.Driver = s.address, s.kind
		st.Mounted = s.Mounted()
	}
	return st
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
