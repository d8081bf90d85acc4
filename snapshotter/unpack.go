package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/snapshotter/erofs"
)

// unpackAll unpacks the layers among those of a stack, the highest first, that were left empty because the image above them was mounted.
func (s *Snapshotter) unpackAll(ctx context.Context, stack, missing []string) error {
	for _, id := range slices.Backward(missing) { // the lowest first: a layer may say nothing of folders that those below have
		var below []string
		for _, parent := range stack[slices.Index(stack, id)+1:] {
			below = append(below, s.fsPath(parent))
		}
		if err := s.unpack(ctx, id, below); err != nil {
			return err
		}
	}
	return nil
}

func (s *Snapshotter) unpack(ctx context.Context, id string, below []string) error {
	unlock, err := s.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	n, err := s.readNote(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another has done it
	}
	if err != nil {
		return err
	}
	fresh := filepath.Join(s.dir(id), "fs.new")
	if err := os.RemoveAll(fresh); err != nil { // of a try before this one
		return err
	}
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return err
	}
	if err := s.apply(ctx, n, fresh, below); err != nil {
		return errors.Join(fmt.Errorf("layer %s of %s: %w", n.Layer.Digest, n.Image, err), os.RemoveAll(fresh))
	}
	if err := s.swap(id, fresh); err != nil {
		return errors.Join(fmt.Errorf("layer %s of %s: %w", n.Layer.Digest, n.Image, err), os.RemoveAll(fresh))
	}
	s.metrics.layers.WithLabelValues("late").Inc()
	s.log.Info("layer unpacked after all", "image", n.Image, "layer", n.Layer.Digest)
	return nil
}

// swap puts what was unpacked in the place of an empty layer, or of an image that is mounted there still though this host mounts none any more.
// Containers that stand on that mount keep it. The note goes last, when all else is on the disk: while it is there, nobody takes the folder for the layer's.
func (s *Snapshotter) swap(id, fresh string) error {
	mounted, err := s.isMounted(id)
	if err != nil {
		return err
	}
	if mounted {
		if err := erofs.Unmount(s.fsPath(id)); err != nil { // it names the folder
			return fmt.Errorf("an image is mounted in place of it; end what uses the folder: %w", err)
		}
	}
	if err := os.RemoveAll(s.fsPath(id)); err != nil {
		return err
	}
	if err := os.Rename(fresh, s.fsPath(id)); err != nil {
		return err
	}
	if err := syncAllAt(s.dir(id)); err != nil {
		return err
	}
	return os.Remove(filepath.Join(s.dir(id), noteName))
}

// apply unpacks a layer into a folder, as the overlay's lower folder.
func (s *Snapshotter) apply(ctx context.Context, n note, into string, below []string) error {
	if s.cfg.Images == nil {
		return errors.New("this host mounts no images and fetches nothing of them; pull the image again")
	}
	blob, err := s.cfg.Images.Open(ctx, n.ref(n.Layer))
	if err != nil {
		return err
	}
	defer blob.Close()
	plain, err := compression.DecompressStream(&stream{ctx: ctx, blob: blob, size: n.Layer.Size})
	if err != nil {
		return err
	}
	defer plain.Close()
	sum := digest.SHA256.Digester()
	tar := io.TeeReader(plain, sum.Hash())
	if _, err := archive.Apply(ctx, into, tar, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(below)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, tar); err != nil { // what stands behind the archive's end
		return err
	}
	if n.DiffID != "" && n.DiffID != sum.Digest() {
		return fmt.Errorf("its content is %s, the configuration says %s", sum.Digest(), n.DiffID)
	}
	return nil
}
