package lazy

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/snapshotter/erofs"
	"github.com/shoal-project/shoal/snapshotter/keeper"
)

const (
	// adoptPause is how long after the marks of an earlier process could not be taken over it is tried again.
	adoptPause = 10 * time.Second
	// lookEvery is how often it is looked whether containers still use what was given up.
	lookEvery = time.Second
)

// A Leftover is what a Driver of an earlier process has left to one that has none. Run and Close are called once, Close behind Run.
type Leftover struct {
	driver  *Driver // which mounts nothing
	records []record
	known   bool // the records say all of what is mounted
}

// Abandon gives up what a Driver of an earlier process has mounted: it detaches the mounts. Containers that stand on them keep them; Run sees to
// those, and has to be called even where the error tells that something stays mounted. Where nothing was left both do nothing.
func Abandon(cfg Config) (*Leftover, error) {
	d := newDriver(cfg)
	d.metrics = newMetrics(nil)
	d.faults = newFaults(d.log, d.metrics)
	l := &Leftover{driver: d}
	var err error
	l.records, err = readRecords(d.recordDir())
	l.known = err == nil && len(l.records) > 0
	errs := []error{err}
	for _, r := range l.records {
		if isMounted(r.Target) {
			errs = append(errs, detach(r.Target))
		}
		l.known = l.known && len(r.Supers) > 0
		if len(r.alive()) > 0 {
			d.log.Error("image is in use and not looked after any more: what its containers read of incomplete blobs fails; restart them",
				"image", r.Image, "target", r.Target)
		}
	}
	return l, errors.Join(errs...)
}

// Run has all reads fail that would have to wait for a Driver, since what has not come would be read as zeros, until ctx ends or nothing is mounted
// anywhere any more. Then the keeper is let go. Reads and writes of this process itself go on.
func (l *Leftover) Run(ctx context.Context) error {
	d := l.driver
	if !l.adopt(ctx) {
		l.lost(ctx)
		return nil
	}
	d.settle() // nobody will claim anything
	tasks, over := errgroup.WithContext(ctx)
	over, stop := context.WithCancel(over)
	defer stop()
	tasks.Go(func() error { return d.group.Run(over, d.handle) })
	tasks.Go(func() error { return d.keep(over) })
	unused := false
	tasks.Go(func() error {
		unused = l.unused(over)
		stop()
		return nil
	})
	if err := tasks.Wait(); err != nil || !unused {
		return err
	}
	errs := []error{d.kept.Drop(keptAs), l.Close()}
	for _, r := range l.records {
		errs = append(errs, removeRecord(d.recordDir(), r.Target))
	}
	if err := errors.Join(errs...); err != nil {
		d.log.Warn("what an earlier process has left is not cleared", "error", err)
	}
	return nil
}

// lost says what nobody holds readers of.
func (l *Leftover) lost(ctx context.Context) {
	for _, r := range l.records {
		if len(r.alive()) > 0 && ctx.Err() == nil {
			l.driver.log.Error("image is in use and its readers are not held: what has not come is read as zeros; restart its containers",
				"image", r.Image, "target", r.Target)
		}
	}
}

// adopt takes the marks over from the keeper, and reports whether it had any. It tries until it can.
func (l *Leftover) adopt(ctx context.Context) bool {
	d := l.driver
	for said := ""; ; {
		if d.cfg.Keeper.Socket == "" || !keeper.Running(ctx, d.cfg.Keeper.Socket) {
			return false
		}
		err := d.inherit(ctx)
		if err == nil && !d.inherited {
			err = d.closeGroup()
		}
		if err == nil || ctx.Err() != nil {
			return err == nil && d.inherited
		}
		if err.Error() != said {
			said = err.Error()
			d.log.Error("marks of an earlier process are not taken over: who reads what has not come waits", "error", err)
		}
		if errors.Is(err, fs.ErrPermission) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(adoptPause):
		}
	}
}

// unused waits until nothing that was left is mounted, and reports false when ctx ends before.
func (l *Leftover) unused(ctx context.Context) bool {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		if !l.alive() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
}

// alive reports whether anything that was left may be mounted anywhere.
func (l *Leftover) alive() bool {
	if l.known {
		return slices.ContainsFunc(l.records, record.inUse)
	}
	supers, err := erofs.Supers() // any may be
	return err != nil || len(supers) > 0
}

// Close gives up descriptors. What is not cleared stays with the keeper.
func (l *Leftover) Close() error { return l.driver.closeGroup() }
