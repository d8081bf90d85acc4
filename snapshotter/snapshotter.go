package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/converter/bootstrap"
	mirror "github.com/shoal-project/shoal/registry-mirror"
)

// Images tells what is known of images, and reads their blobs.
type Images interface {
	// Image returns what is known of an image by the digest of its manifest. It asks nobody.
	Image(registry, repository string, manifest digest.Digest) (mirror.Image, error)
	// Open opens a blob and begins to fetch it. The caller closes it.
	Open(ctx context.Context, ref mirror.BlobRef) (mirror.Blob, error)
}

// Mounter mounts images. Its methods may be called concurrently, for one target one after the other.
type Mounter interface {
	// Mount makes the image readable at the folder target. Where it is mounted already, by this process or by one before it, it sees
	// to it that it stays readable.
	Mount(ctx context.Context, image MountedImage, target string) error
	// Unmount takes it away. A target where nothing is mounted is no error.
	Unmount(ctx context.Context, target string) error
}

// Pins keep blobs from being evicted. *store.Store is one.
type Pins interface {
	Pin(d digest.Digest, owner string) error
	Unpin(d digest.Digest, owner string) error
	Pins() map[digest.Digest][]string
}

// MountedImage is an image to be mounted.
type MountedImage struct {
	Name      string // reference, for logs and errors
	Bootstrap string // path of the file with the RAFS v6 bootstrap; it has been checked
	// Decoded is what the bootstrap says, where that is known; else nil. It is not to be changed.
	Decoded *bootstrap.Image
	Blobs   []mirror.BlobRef
	// Prefetch says what is fetched before it is read: empty or "whole", "none", or paths in the image apart by commas.
	Prefetch string
}

// Config configures a Snapshotter.
type Config struct {
	// Root is the folder of metadata and snapshots. It must stay the same while containerd knows any of them.
	Root string
	// Images and Mounter are for images with a Nydus variant. Without a Mounter all layers are unpacked, late those that were to be mounted.
	Images  Images
	Mounter Mounter
	// Pins keep the blobs of mounted images; nil keeps none.
	Pins Pins
	// Log is where mounts and fallbacks are reported; nil discards.
	Log *slog.Logger
	// Registerer takes the metrics; nil keeps them private.
	Registerer prometheus.Registerer
}

// Snapshotter implements containerd's snapshots.Snapshotter and snapshots.Cleaner. It is safe for concurrent use.
type Snapshotter struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	lock    *os.File // keeps the folder from other processes
	meta    *storage.MetaStore
	// plain is containerd's overlay over the same metadata. It leaves the folders of what it removes to cleanup.
	plain   snapshots.Snapshotter
	decoded recent
	fault   atomic.Pointer[error]
	blind   atomic.Pointer[error] // why containerd does not see mounts
	looking sync.Mutex            // one look for who sees mounts at a time
	locks   locks                 // by ID of a snapshot: mounting, unpacking and removing it

	upMu   sync.Mutex       // guards the fields below
	up     map[string]bool  // by ID: what this process has mounted or taken over
	failed map[string]error // by ID: what it could not mount when it was tried last, and why
}

// New opens or creates the folder, which one process can have. Nothing is mounted before Restore.
func New(cfg Config) (*Snapshotter, error) {
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, err
	}
	root, err := filepath.Abs(cfg.Root) // it stands in mounts, which others make
	if err != nil {
		return nil, err
	}
	cfg.Root = root
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Snapshotter{cfg: cfg, log: cfg.Log, metrics: newMetrics(cfg.Registerer), locks: newLocks(), up: map[string]bool{}, failed: map[string]error{}}
	if s.lock, err = lockFolder(root); err != nil {
		return nil, err
	}
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("snapshots in %s: %w", root, err), s.lock.Close())
	}
	return s, nil
}

// open opens what is in the folder.
func (s *Snapshotter) open() error {
	root := s.cfg.Root
	s.forgetLook()
	// Of pulls that did not come to their end. Later it would take them from those that go on.
	if err := os.RemoveAll(filepath.Join(root, bootstrapsName)); err != nil {
		return err
	}
	if err := checkMetadata(root); err != nil {
		return err
	}
	var err error
	if s.meta, err = storage.NewMetaStore(filepath.Join(root, metadataName)); err != nil {
		return err
	}
	if s.plain, err = overlay.NewSnapshotter(root, overlay.WithMetaStore(s.meta), overlay.AsynchronousRemove); err != nil {
		return errors.Join(err, s.meta.Close())
	}
	return nil
}

// Stat implements snapshots.Snapshotter.
func (s *Snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	return s.plain.Stat(ctx, key)
}

// Update implements snapshots.Snapshotter.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fields ...string) (snapshots.Info, error) {
	return s.plain.Update(ctx, info, fields...)
}

// Usage implements snapshots.Snapshotter. What is mounted counts for nothing: its blobs are the store's.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return s.plain.Usage(ctx, key)
}

// Walk implements snapshots.Snapshotter.
func (s *Snapshotter) Walk(ctx context.Context, visit snapshots.WalkFunc, filters ...string) error {
	return s.plain.Walk(ctx, visit, filters...)
}

// Prepare implements snapshots.Snapshotter. For a layer that need not be unpacked it makes a snapshot by the label's name and answers
// errdefs.ErrAlreadyExists, which has containerd go on without fetching it.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var asked snapshots.Info
	for _, opt := range opts {
		if err := opt(&asked); err != nil {
			return nil, err
		}
	}
	if target := asked.Labels[snapshots.LabelSnapshotRef]; target != "" {
		n, err := s.claim(ctx, parent, asked.Labels)
		if err != nil {
			return nil, err
		}
		if n != nil {
			return nil, s.place(ctx, placing{key, parent, target}, *n, opts)
		}
	}
	stack, err := s.parents(ctx, parent, asked.Labels)
	if err != nil {
		return nil, err
	}
	mounts, err := s.plain.Prepare(ctx, key, parent, opts...)
	return s.above(snapshots.KindActive, stack, mounts), err
}

// View implements snapshots.Snapshotter.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	stack, err := s.parents(ctx, parent, nil)
	if err != nil {
		return nil, err
	}
	mounts, err := s.plain.View(ctx, key, parent, opts...)
	return s.above(snapshots.KindView, stack, mounts), err
}

// Mounts implements snapshots.Snapshotter.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := s.plain.Mounts(ctx, key)
	if err != nil {
		return nil, err
	}
	_, info, err := s.find(ctx, key)
	if err != nil {
		return nil, err
	}
	stack, err := s.parents(ctx, info.Parent, info.Labels)
	return s.above(info.Kind, stack, mounts), err
}

// Commit implements snapshots.Snapshotter. The bootstrap layer of a Nydus image becomes a mounted image.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	id, info, err := s.find(ctx, key)
	if err != nil {
		return err
	}
	if !isBootstrap(info.Labels) {
		return s.plain.Commit(ctx, name, key, opts...)
	}
	n, err := s.adopt(ctx, id, info.Labels)
	if err != nil {
		return err
	}
	if err := s.plain.Commit(ctx, name, key, opts...); err != nil {
		return err
	}
	return s.ensureMounted(ctx, id, n)
}

// Remove implements snapshots.Snapshotter.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	id, _, err := s.find(ctx, key)
	if err != nil {
		return err
	}
	if err := s.plain.Remove(ctx, key); err != nil {
		return err
	}
	if err := s.discard(ctx, id); err != nil { // it is gone for containerd; Cleanup tries again
		s.log.Warn("snapshot's folder stays for now", "snapshot", key, "error", err)
	}
	return nil
}

// Cleanup implements snapshots.Cleaner: it removes the folders that no snapshot has.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	var orphans []string
	err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) error { // a folder is made and named within one such
		ids, err := idMap(ctx)
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(filepath.Join(s.cfg.Root, "snapshots"))
		for _, e := range entries {
			if _, ok := ids[e.Name()]; !ok {
				orphans = append(orphans, e.Name())
			}
		}
		return err
	})
	errs := []error{err}
	for _, id := range orphans {
		errs = append(errs, s.discard(ctx, id))
	}
	return errors.Join(errs...)
}

// Close implements snapshots.Snapshotter. Mounts stay: containers use them.
func (s *Snapshotter) Close() error { return errors.Join(s.plain.Close(), s.lock.Close()) }

// find returns the ID and what is known of a snapshot.
func (s *Snapshotter) find(ctx context.Context, key string) (id string, info snapshots.Info, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return id, info, err
}

// A stack are the IDs of a snapshot's parents, the highest first, as far as their folders are to be used.
type stack struct {
	ids []string
	cut bool // there are more, below a mounted image, which has the files of all of them
}

// parents makes the parents of a snapshot with those labels readable.
func (s *Snapshotter) parents(ctx context.Context, parent string, labels map[string]string) (stack, error) {
	ids, err := s.chain(ctx, parent)
	if err != nil || isBootstrap(labels) { // a bootstrap is unpacked over nothing, and stands for all below it
		return stack{ids: ids}, err
	}
	var missing []string
	for i, id := range ids {
		n, err := s.readNote(id)
		switch {
		case errors.Is(err, fs.ErrNotExist): // an ordinary layer
		case err != nil:
			return stack{}, err
		case n.Whole && s.cfg.Mounter != nil:
			if err := s.ensureMounted(ctx, id, n); err != nil {
				return stack{}, err
			}
			above := stack{ids: ids[:i+1], cut: i+1 < len(ids)}
			return above, s.unpackAll(ctx, above.ids, missing)
		default:
			missing = append(missing, id)
		}
	}
	return stack{ids: ids}, s.unpackAll(ctx, ids, missing)
}

// chain returns the IDs of a snapshot and all below it, itself first; none of the empty name.
func (s *Snapshotter) chain(ctx context.Context, key string) (ids []string, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		for key != "" {
			id, info, _, err := storage.GetInfo(ctx, key)
			if err != nil {
				return err
			}
			ids, key = append(ids, id), info.Parent
		}
		return nil
	})
	return ids, err
}

// above changes the mounts of an overlay so that it stands on the folders of the stack alone.
func (s *Snapshotter) above(kind snapshots.Kind, on stack, mounts []mount.Mount) []mount.Mount {
	if !on.cut {
		return mounts
	}
	if kind == snapshots.KindView && len(on.ids) == 1 {
		return []mount.Mount{{Type: "bind", Source: s.fsPath(on.ids[0]), Options: []string{"ro", "rbind"}}}
	}
	paths := make([]string, len(on.ids))
	for i, id := range on.ids {
		paths[i] = s.fsPath(id)
	}
	for _, m := range mounts {
		for j, o := range m.Options {
			if strings.HasPrefix(o, lowerOption) {
				m.Options[j] = lowerOption + strings.Join(paths, ":")
			}
		}
	}
	return mounts
}

const lowerOption = "lowerdir="

func (s *Snapshotter) dir(id string) string    { return filepath.Join(s.cfg.Root, "snapshots", id) }
func (s *Snapshotter) fsPath(id string) string { return filepath.Join(s.dir(id), "fs") }

// placing says where a snapshot comes to be.
type placing struct{ key, parent, target string }

// place makes the snapshot of a layer that is not unpacked. Its error is errdefs.ErrAlreadyExists when it has worked.
func (s *Snapshotter) place(ctx context.Context, at placing, n note, opts []snapshots.Opt) error {
	if _, err := s.plain.Prepare(ctx, at.key, at.parent, opts...); err != nil {
		return errors.Join(err, n.discard())
	}
	id, err := s.placed(ctx, at, n, opts)
	if err != nil {
		return errors.Join(err, n.discard(), s.Remove(context.WithoutCancel(ctx), at.key))
	}
	if id != "" && n.Whole {
		// In vain is no failure yet: who prepares a container tries again, and learns why not.
		if err := s.ensureMounted(ctx, id, n); err != nil {
			s.log.Warn("image is not mounted yet", "image", n.Image, "error", err)
		}
	}
	return fmt.Errorf("layer %s of %s: %w", n.Layer.Digest, n.Image, errdefs.ErrAlreadyExists)
}

// placed notes and commits what place has prepared; the ID is empty when another did it.
func (s *Snapshotter) placed(ctx context.Context, at placing, n note, opts []snapshots.Opt) (string, error) {
	id, _, err := s.find(ctx, at.key)
	if err != nil {
		return "", err
	}
	if err := s.writeNote(id, n); err != nil {
		return "", err
	}
	// containerd finds it by its label and parent. The name tells the same to us: other namespaces may have put the layer on other
	// snapshots of the same content.
	name := fmt.Sprintf("%s on %s", at.target, digest.FromString(at.parent).Encoded()[:16])
	err = s.plain.Commit(ctx, name, at.key, opts...)
	if errdefs.IsAlreadyExists(err) {
		return "", s.Remove(ctx, at.key)
	}
	return id, err
}
