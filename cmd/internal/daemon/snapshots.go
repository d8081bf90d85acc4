package daemon

import (
	"context"
	"errors"
	"net"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/cmd/internal/local"
	mirror "github.com/shoal-project/shoal/registry-mirror"
	"github.com/shoal-project/shoal/snapshotter"
)

// snapshots is the node's snapshotter; without a listener it does not run.
type snapshots struct {
	*snapshotter.Snapshotter

	listener net.Listener
	address  string
	off      string // why it does not run, or why it mounts no images; empty when it does both
}

var errSnapshotterRoot = errors.New("mounting needs root")

// openSnapshots opens the snapshotter, as far as the configuration wants it and this host can.
func (n *node) openSnapshots(ctx context.Context, images snapshotter.Images) error {
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

func (n *node) tryOpenSnapshots(ctx context.Context, images snapshotter.Images) error {
	if os.Geteuid() != 0 {
		return errSnapshotterRoot
	}
	root, address := n.cfg.SnapshotterPaths()
	s := &n.snapshots
	s.address = address
	cfg := snapshotter.Config{Root: root, Images: images, Mounter: snapshotter.NewEager(images), Pins: n.store,
		Log: n.component("snapshotter"), Registerer: n.admin.registry}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	if err := snapshotter.Probe(root); err != nil {
		s.off = "images are unpacked: " + err.Error()
		cfg.Images, cfg.Mounter = nil, nil
		n.log.Warn("images are unpacked, not mounted", "error", err)
	}
	var err error
	if s.listener, err = snapshotter.Listen(ctx, address); err != nil {
		return err
	}
	s.Snapshotter, err = snapshotter.New(cfg)
	return err
}

// run serves containerd until ctx ends.
func (s *snapshots) run(ctx context.Context) error {
	if s.listener == nil {
		return nil
	}
	return s.Serve(ctx, s.listener)
}

// restore mounts what was mounted before the start.
func (n *node) restoreSnapshots(ctx context.Context) error {
	if n.snapshots.listener == nil {
		return nil
	}
	if err := n.snapshots.Restore(ctx); err != nil && ctx.Err() == nil {
		n.component("snapshotter").Warn("not all is as it was before the start", "error", err)
	}
	return nil
}

func (s *snapshots) close() {
	if s.listener != nil {
		_ = s.listener.Close() // usually closed by its server already
	}
	if s.Snapshotter != nil {
		_ = s.Close() // bbolt syncs each transaction
	}
}

// status describes it.
func (s *snapshots) status() local.SnapshotterStatus {
	st := local.SnapshotterStatus{Off: s.off}
	if s.listener != nil {
		st.Address = s.address
		st.Mounted = s.Mounted()
	}
	return st
}

// images lets the snapshotter ask the mirror for images, and the peer for their blobs.
type images struct {
	mirror *mirror.Handler
	blobs  blobs
}

// Image implements snapshotter.Images.
func (i images) Image(registry, repository string, manifest digest.Digest) (mirror.Image, error) {
	return i.mirror.Image(registry, repository, manifest)
}

// Open implements snapshotter.Images. It reads with what the caller brought who pulled the image.
func (i images) Open(ctx context.Context, ref mirror.BlobRef) (mirror.Blob, error) {
	return i.blobs.Open(ctx, ref, i.mirror.Authorization(ref.Registry, ref.Repository))
}
