package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/snapshotter"
	"github.com/shoal-project/shoal/snapshotter/keeper"
	"github.com/shoal-project/shoal/snapshotter/lazy"
)

// snapshots is the node's snapshotter; without a listener it does not run.
type snapshots struct {
	*snapshotter.Snapshotter

	mounter  *mounter       // nil when this host cannot mount images
	left     *lazy.Leftover // of an earlier process that could; else nil
	listener *snapshotter.Socket
	address  string
	// mountsNone: no repository is named whose images are mounted.
	mountsNone bool

	off string // why it does not run, or mounts nothing; else empty
}

var errSnapshotterRoot = errors.New("mounting needs root")

// openSnapshots opens the snapshotter, as far as the configuration wants it and this host can.
func (n *node) openSnapshots(ctx context.Context, images images) error {
	if n.cfg.Snapshotter.Enabled == config.SnapshotterOff {
		n.snapshots.off = "turned off"
		n.abandonMounts()
		return nil
	}
	err := n.tryOpenSnapshots(ctx, images)
	if err == nil {
		return nil
	}
	n.snapshots.close()
	if n.cfg.Snapshotter.Enabled == config.SnapshotterOn {
		return fmt.Errorf("snapshotter: %w", err)
	}
	n.snapshots = snapshots{off: err.Error()}
	if errors.Is(err, snapshotter.ErrDamaged) {
		n.log.Error("no snapshotter until somebody acts", "error", err)
	} else {
		n.log.Info("no snapshotter here", "error", err)
	}
	n.abandonMounts()
	return nil
}

// abandonMounts gives up what an earlier process has mounted, since this one will not serve it.
func (n *node) abandonMounts() {
	var err error
	if n.snapshots.left, err = lazy.Abandon(n.lazyConfig()); err != nil {
		n.log.Warn("mounts of an earlier process may stay", "error", err)
	}
}

func (n *node) tryOpenSnapshots(ctx context.Context, images images) error {
	if os.Geteuid() != 0 {
		return errSnapshotterRoot
	}
	root, address := n.cfg.SnapshotterPaths()
	if err := config.CheckSocket(address); err != nil {
		return err
	}
	s := &n.snapshots
	s.address, s.mountsNone = address, len(n.cfg.Snapshotter.Mount) == 0
	cfg := snapshotter.Config{Root: root, Images: images, Pins: n.store, Log: n.component("snapshotter"), Registerer: n.admin.registry}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	var err error
	switch s.mounter, err = n.openMounter(ctx, images); {
	case err == nil:
		cfg.Mounter = s.mounter
	case errors.Is(err, errForced) && n.cfg.Snapshotter.Enabled == config.SnapshotterOn:
		return err
	default:
		s.off = "images are unpacked: " + err.Error()
		n.log.Warn("images are unpacked, not mounted", "error", err)
		if !errors.Is(err, keeper.ErrHung) { // while that one has them, readers of the mounts wait
			n.abandonMounts()
		}
	}
	s.listener, err = snapshotter.Listen(ctx, address)
	switch {
	case errors.Is(err, snapshotter.ErrTaken):
		n.log.Error("snapshotter waits for its socket", "error", err) // what is mounted is looked after meanwhile
		s.listener = snapshotter.ListenLater(address, err)
	case err != nil:
		return err
	}
	s.Snapshotter, err = snapshotter.New(cfg)
	return err
}

// lazyConfig says where the driver's things are.
func (n *node) lazyConfig() lazy.Config {
	dir := filepath.Join(n.cfg.DataDir, "lazy")
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return lazy.Config{Dir: dir, Room: n.store, Log: n.component("lazy"), Registerer: n.admin.registry,
		Keeper: keeper.Config{Socket: filepath.Join(dir, "keeper.sock"), Command: []string{self, "keeper"}, Log: n.component("keeper")}}
}

// openMounter returns what mounts images. The error says why this host cannot.
func (n *node) openMounter(ctx context.Context, images images) (*mounter, error) {
	cfg := n.lazyConfig()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	m, err := newMounter(ctx, lazy.Kind(n.cfg.Snapshotter.Driver), cfg, images)
	if err == nil {
		m.prefetch = n.cfg.Snapshotter.Prefetch
	}
	return m, err
}

// run serves containerd until ctx ends.
func (s *snapshots) run(ctx context.Context) error {
	if s.listener == nil {
		return nil
	}
	return s.Serve(ctx, s.listener)
}

// runMounter answers readers of mounts until ctx ends.
func (s *snapshots) runMounter(ctx context.Context) error {
	switch {
	case s.mounter != nil:
		return s.mounter.run(ctx)
	case s.left != nil:
		return s.left.Run(ctx)
	}
	return nil
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
		if err == nil && n.snapshots.mounter != nil {
			n.snapshots.mounter.settled()
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

func (s *snapshots) close() {
	if s.listener != nil {
		_ = s.listener.Close() // usually done by its server already
	}
	if s.Snapshotter != nil {
		_ = s.Close() // bbolt syncs each transaction
	}
	if s.mounter != nil {
		s.mounter.close()
	}
	if s.left != nil {
		_ = s.left.Close() // the keeper holds what counts
	}
}

// accessed returns the files of an image in the order in which its containers here first read them.
func (s *snapshots) accessed(ctx context.Context, image string) ([]string, error) {
	if s.listener == nil || s.mounter == nil {
		return nil, fmt.Errorf("image %q: this node mounts no images: %s", image, s.off)
	}
	targets, err := s.MountedAt(ctx, image)
	if err != nil {
		return nil, err
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("image %q is not mounted on this node; pull it by this name with the snapshotter, and run its container", image)
	}
	files, err := s.mounter.accessed(targets[0])
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("image %q: nothing of it was read on this node while it was incomplete", image)
	}
	return files, err
}

// status describes it.
func (s *snapshots) status() local.SnapshotterStatus {
	if s.listener == nil {
		return local.SnapshotterStatus{Off: s.off}
	}
	st := local.SnapshotterStatus{Address: s.address, Driver: "none", Mounted: s.Mounted(), Off: s.off}
	if s.mounter != nil {
		st.Driver = string(s.mounter.kind)
	}
	for _, err := range s.Failed() {
		st.Failed = append(st.Failed, err.Error())
	}
	if err := errors.Join(s.listener.Lost(), s.Fault()); err != nil {
		st.Off = err.Error()
	}
	if s.mountsNone && st.Off == "" {
		st.Off = "all images are unpacked: snapshotter.mount names no repository"
	}
	return st
}
