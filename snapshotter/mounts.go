package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/snapshotter/erofs"
)

const (
	// pinOwner begins the names under which snapshots own pins.
	pinOwner = "snapshot "
	// restoring is how many images are mounted at once after a start.
	restoring = 4
)

// ensureMounted has the image of a snapshot mounted, and then its blobs pinned. It is errdefs.ErrNotFound when the snapshot was removed meanwhile,
// and ErrUnseen when the caller would not see it.
func (s *Snapshotter) ensureMounted(ctx context.Context, id string, n note) error {
	if err := s.unseen(ctx); err != nil {
		return fmt.Errorf("image %s: %w", n.Image, err)
	}
	unlock, err := s.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	err = s.mount(ctx, id, n)
	if ctx.Err() == nil { // else it is the caller's, who does not wait
		s.setFailed(id, err)
	}
	return err
}

// mount is ensureMounted of a snapshot that is locked.
func (s *Snapshotter) mount(ctx context.Context, id string, n note) error {
	mounted, err := s.isMounted(id)
	if err != nil || mounted && s.isUp(id) && !isDead(s.fsPath(id)) {
		return err
	}
	if !s.isImage(id) {
		return fmt.Errorf("image %s: its snapshot was removed: %w", n.Image, errdefs.ErrNotFound)
	}
	image := MountedImage{Name: n.Image, Bootstrap: s.imagePath(id), Decoded: n.decoded, Prefetch: n.Prefetch}
	for _, b := range n.Blobs {
		image.Blobs = append(image.Blobs, n.ref(b))
	}
	if err := s.cfg.Mounter.Mount(ctx, image, s.fsPath(id)); err != nil {
		return fmt.Errorf("image %s: %w", n.Image, err)
	}
	// Not before: a pin keeps what the store has by the word of others, such as a blob of a wrong length. What is mounted is in use anyway.
	if err := s.pin(id, n); err != nil {
		if !mounted {
			err = errors.Join(err, s.cfg.Mounter.Unmount(ctx, s.fsPath(id)))
		}
		return fmt.Errorf("image %s: %w", n.Image, err)
	}
	s.setUp(id, true)
	s.log.Info("image mounted", "image", n.Image, "snapshot", id)
	return nil
}

// isMounted reports whether something is mounted in a snapshot, be it dead.
func (s *Snapshotter) isMounted(id string) (bool, error) {
	mounted, err := mountinfo.Mounted(s.fsPath(id))
	switch {
	case errors.Is(err, syscall.ENOTCONN): // by FUSE, and its process is no more
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	return mounted, err
}

// isDead reports whether what is mounted at a path is by FUSE, and its connection is no more.
func isDead(path string) bool {
	var st unix.Statfs_t
	return errors.Is(unix.Statfs(path, &st), unix.ENOTCONN)
}

// isUp reports whether this process has mounted, or taken over, what is mounted in a snapshot.
func (s *Snapshotter) isUp(id string) bool {
	s.upMu.Lock()
	defer s.upMu.Unlock()
	return s.up[id]
}

// Mounted returns how many images are mounted.
func (s *Snapshotter) Mounted() int {
	s.upMu.Lock()
	defer s.upMu.Unlock()
	return len(s.up)
}

func (s *Snapshotter) setUp(id string, up bool) {
	s.upMu.Lock()
	defer s.upMu.Unlock()
	if up {
		s.up[id] = true
	} else {
		delete(s.up, id)
	}
	s.metrics.mounts.Set(float64(len(s.up)))
}

// Failed returns why images that are to be mounted are not, an error for each, with its name.
func (s *Snapshotter) Failed() []error {
	s.upMu.Lock()
	defer s.upMu.Unlock()
	return slices.SortedFunc(maps.Values(s.failed), func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
}

// setFailed notes why the image of a snapshot could not be mounted; nil and errdefs.ErrNotFound, of one that was removed, are no reason.
func (s *Snapshotter) setFailed(id string, err error) {
	s.upMu.Lock()
	defer s.upMu.Unlock()
	if err == nil || errdefs.IsNotFound(err) {
		delete(s.failed, id)
	} else {
		s.failed[id] = err
	}
}

// discard removes the folder of a snapshot that is no more.
func (s *Snapshotter) discard(ctx context.Context, id string) error {
	unlock, err := s.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	mounted, err := s.isMounted(id)
	switch {
	case err != nil:
		return err
	case mounted && s.cfg.Mounter != nil:
		err = s.cfg.Mounter.Unmount(ctx, s.fsPath(id))
	case mounted:
		err = erofs.Unmount(s.fsPath(id))
	}
	if err != nil {
		return err // before anything of it is removed
	}
	s.setUp(id, false)
	s.setFailed(id, nil)
	return errors.Join(s.unpin(id), os.RemoveAll(s.dir(id)))
}

// pin keeps what is read of an image: its blobs, and the layer with their chunk maps.
func (s *Snapshotter) pin(id string, n note) error {
	if s.cfg.Pins == nil {
		return nil
	}
	var errs []error
	for _, b := range n.pinned() {
		errs = append(errs, s.cfg.Pins.Pin(b.Digest, pinOwner+id))
	}
	return errors.Join(errs...)
}

// isImage reports whether the folder of a snapshot has an image. What it tells holds while the snapshot is locked.
func (s *Snapshotter) isImage(id string) bool {
	n, err := s.readNote(id)
	return err == nil && n.Whole
}

// unpin lets go of the blobs that a snapshot has pinned, whatever its note says.
func (s *Snapshotter) unpin(id string) error {
	if s.cfg.Pins == nil {
		return nil
	}
	var errs []error
	for d, owners := range s.cfg.Pins.Pins() {
		if slices.Contains(owners, pinOwner+id) {
			errs = append(errs, s.cfg.Pins.Unpin(d, pinOwner+id))
		}
	}
	return errors.Join(errs...)
}

// Restore brings things to where they were before a restart: what no snapshot has is removed, and images are mounted that are not, or taken
// over. It goes on with the next image where one fails, and tells of all that failed; it may be called again. Snapshots can be used meanwhile.
func (s *Snapshotter) Restore(ctx context.Context) error {
	errs := []error{s.Cleanup(ctx)}
	images := map[string]note{}
	err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		ids, err := idMap(ctx)
		for id, key := range ids {
			if n, noteErr := s.readNote(id); noteErr == nil && n.Whole {
				if _, info, _, err := storage.GetInfo(ctx, key); err == nil && info.Kind == snapshots.KindCommitted {
					images[id] = n
				}
			}
		}
		return err
	})
	errs = append(errs, err)
	if err == nil {
		errs = append(errs, s.sweepPins(ctx, images))
	}
	if s.cfg.Mounter == nil {
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, s.mountAll(ctx, images))...)
}

// mountAll mounts images by the IDs of their snapshots.
func (s *Snapshotter) mountAll(ctx context.Context, images map[string]note) error {
	var group errgroup.Group
	group.SetLimit(restoring)
	var mu sync.Mutex // guards errs
	var errs []error
	for id, n := range images {
		group.Go(func() error {
			err := s.ensureMounted(ctx, id, n)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
			return nil
		})
	}
	return errors.Join(append(errs, group.Wait())...)
}

// idMap returns the keys of all snapshots by their IDs.
func idMap(ctx context.Context) (map[string]string, error) {
	ids, err := storage.IDMap(ctx)
	if errdefs.IsNotFound(err) { // nothing was ever written
		return nil, nil
	}
	return ids, err
}

// sweepPins takes away the pins of snapshots that have no image; those in images have one, and others may have come to have one meanwhile.
func (s *Snapshotter) sweepPins(ctx context.Context, images map[string]note) error {
	if s.cfg.Pins == nil {
		return nil
	}
	stale := map[string]bool{}
	for _, owners := range s.cfg.Pins.Pins() {
		for _, owner := range owners {
			id, ours := strings.CutPrefix(owner, pinOwner)
			if _, used := images[id]; ours && !used {
				stale[id] = true
			}
		}
	}
	var errs []error
	for id := range stale {
		errs = append(errs, s.sweepPinsOf(ctx, id))
	}
	return errors.Join(errs...)
}

func (s *Snapshotter) sweepPinsOf(ctx context.Context, id string) error {
	unlock, err := s.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if s.isImage(id) {
		return nil
	}
	return s.unpin(id)
}

// MountedAt returns the folders where an image is mounted by its reference, as containerd knows it.
func (s *Snapshotter) MountedAt(ctx context.Context, image string) (targets []string, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		ids, err := idMap(ctx)
		for id := range ids {
			if n, noteErr := s.readNote(id); noteErr == nil && n.Whole && n.Image == image && s.isUp(id) {
				targets = append(targets, s.fsPath(id))
			}
		}
		return err
	})
	slices.Sort(targets)
	return targets, err
}
