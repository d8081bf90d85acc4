package lazy

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/shoal-project/shoal/snapshotter/fanotify"
	"github.com/shoal-project/shoal/snapshotter/keeper"
)

// Abandon lets go of what a Driver of an earlier process has left, for one that has none any more: it detaches its mounts and has the
// keeper drop the marks. Else readers of these mounts, and this process where it writes to a marked file, would wait for a Driver for good. Where
// nothing was left it does nothing.
func Abandon(ctx context.Context, cfg Config) error {
	d := &Driver{cfg: cfg}
	var errs []error
	names, err := filepath.Glob(filepath.Join(d.recordDir(), "*.json"))
	errs = append(errs, err)
	for _, name := range names {
		var r record
		data, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(data, &r)
		}
		if err == nil && isMounted(r.Target) {
			err = detach(r.Target)
		}
		errs = append(errs, err, os.Remove(name))
	}
	if cfg.Keeper.Socket == "" {
		return errors.Join(errs...)
	}
	cfg.Keeper.Command = nil // none is started for this
	k, err := keeper.Connect(ctx, cfg.Keeper)
	switch {
	case errors.Is(err, keeper.ErrNone):
		return errors.Join(errs...)
	case errors.Is(err, keeper.ErrHung):
		err = keeper.End(ctx, cfg.Keeper.Socket, fanotify.Links())
		return errors.Join(append(errs, err)...)
	}
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	return errors.Join(append(errs, k.Drop(keptAs), k.Close())...)
}
