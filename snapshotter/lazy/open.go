package lazy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"

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
		if err := Abandon(ctx, cfg); err != nil {
			cfg.Log.Warn("mounts of an earlier process may stay", "error", err)
		}
		d, err := NewFuse(cfg)
		if err != nil {
			return nil, "", err
		}
		return d, FUSE, nil
	}
	return nil, "", fmt.Errorf("driver %q of lazy mounts: want %s, %s or %s", kind, Auto, EROFS, FUSE)
}
