package lazy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/snapshotter/fanotify"
)

// A Mounter mounts images: a Driver or a Fuse, whose methods say more.
type Mounter interface {
	Mount(ctx context.Context, image Image, target string) error
	Unmount(ctx context.Context, target string) error
	Settled()
	Run(ctx context.Context) error
	Close() error
}

// A Kind is a way to mount images.
type Kind string

// The kinds. Auto is EROFS where kernel and file system can hold readers of files, else FUSE.
const (
	Auto  Kind = "auto"
	EROFS Kind = "erofs"
	FUSE  Kind = "fuse"
)

// Open returns what mounts images in the way that is wanted, and which one that is. It has tried what it returns as far as that can be done
// without an image.
func Open(ctx context.Context, kind Kind, cfg Config) (Mounter, Kind, error) {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	switch kind {
	case Auto, EROFS, "":
		d, err := New(ctx, cfg)
		if err == nil {
			return d, EROFS, nil
		}
		if kind == EROFS || !errors.Is(err, fanotify.ErrUnsupported) {
			return nil, "", err
		}
		cfg.Log.Info("images are mounted by FUSE", "reason", err)
		fallthrough
	case FUSE:
		d, err := NewFuse(cfg)
		if err != nil {
			return nil, "", err
		}
		left, err := Abandon(cfg)
		if err != nil {
			cfg.Log.Warn("mounts of an earlier process may stay", "error", err)
		}
		return &successor{d, left}, FUSE, nil
	}
	return nil, "", fmt.Errorf("driver %q of lazy mounts: want %s, %s or %s", kind, Auto, EROFS, FUSE)
}

// A successor mounts by FUSE where an earlier process did by EROFS.
type successor struct {
	*Fuse

	left *Leftover
}

// Run implements Mounter.
func (s *successor) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return s.Fuse.Run(ctx) })
	tasks.Go(func() error { return s.left.Run(ctx) })
	return tasks.Wait()
}

// Close implements Mounter.
func (s *successor) Close() error { return errors.Join(s.Fuse.Close(), s.left.Close()) }
