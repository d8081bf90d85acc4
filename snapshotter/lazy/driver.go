package lazy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/snapshotter/erofs"
	"github.com/shoal-project/shoal/snapshotter/fanotify"
	"github.com/shoal-project/shoal/snapshotter/keeper"
)

const (
	// keptAs is what the keeper has the group under. Another layout of the log needs another name.
	keptAs = "fanotify-1"
	// settleAfter is when Settled is taken to have been called, should nobody do so.
	settleAfter = 5 * time.Minute
	// sweepEvery is how often it is looked whether mounts that were removed here are gone everywhere.
	sweepEvery = 10 * time.Second
	// keeperPause is how long after a keeper could not be started it is tried again.
	keeperPause = time.Second
	// keeperEvery is how often a keeper is asked whether it lives: one that hangs would be found when it is needed.
	keeperEvery = 3 * time.Second
)

// Config configures a Driver.
type Config struct {
	// Dir is the driver's own folder: records of mounts, and blobs that have to be expanded. It must be on a file system that fanotify
	// can hold readers of (ext4, xfs, btrfs), as must the files of the blobs.
	Dir string
	// Keeper is the process that lets readers wait when this one dies. Without a socket there is none: they would read zeros.
	Keeper keeper.Config
	// Readahead is how many bytes the kernel reads ahead in a mount at the most; a fault waits for as many. Default 4 MiB.
	Readahead int
	// Room accounts for expanded blobs; nil does not.
	Room Room
	// Log is where faults of reads are reported; nil discards.
	Log *slog.Logger
	// Registerer takes the metrics; nil keeps them private.
	Registerer prometheus.Registerer
}

// A Driver mounts images. Its methods may be called concurrently, Run and Close once, Close behind Run.
type Driver struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	faults  *faults
	group   *fanotify.Group
	groupID fanotify.File
	shelf   *shelf
	// inherited says that an earlier process had the group.
	inherited bool
	kept      *keeper.Client // nil without a keeper; replaced by keep only
	wake      chan struct{}  // there are jobs
	fuller    chan struct{}  // a device has become whole
	settled   chan struct{}
	settle    func()

	reading sync.Mutex // one bootstrap at a time

	mounting sync.Mutex // one mount at a time, so that what the kernel calls it can be told; taken before mu

	mu        sync.Mutex // guards all below
	mounts    map[string]*mount
	lingering []*mount // removed here, but in use elsewhere
	devices   map[fanotify.File]*device
	claimed   chan struct{} // closed and replaced when there is another device
	jobs      []job
	turns     uint64 // reads
}

// New returns a driver, with the marks of an earlier process if the keeper has them. It starts nothing but a keeper: reads of mounts
// wait until Run runs. The error is fanotify.ErrUnsupported where kernel or file system cannot do it.
func New(ctx context.Context, cfg Config) (*Driver, error) {
	d := newDriver(cfg)
	for _, dir := range []string{d.recordDir(), d.expandedDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("lazy mounts: %w", err)
		}
	}
	d.shelf = newShelf(d.expandedDir(), cfg.Room)
	if err := d.openGroup(ctx); err != nil {
		return nil, fmt.Errorf("lazy mounts below %s: %w", cfg.Dir, err)
	}
	d.metrics = newMetrics(cfg.Registerer)
	d.faults = newFaults(d.log, d.metrics)
	return d, nil
}

// newDriver returns a driver without a group.
func newDriver(cfg Config) *Driver {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	cfg.Readahead = cmp.Or(cfg.Readahead, 4<<20)
	d := &Driver{cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1), fuller: make(chan struct{}, 1), settled: make(chan struct{}), mounts: map[string]*mount{},
		devices: map[fanotify.File]*device{}, claimed: make(chan struct{})}
	d.settle = sync.OnceFunc(func() { close(d.settled) })
	return d
}

func (d *Driver) recordDir() string   { return filepath.Join(d.cfg.Dir, "mounts") }
func (d *Driver) expandedDir() string { return filepath.Join(d.cfg.Dir, "expanded") }

// openGroup takes the group over from the keeper, or makes one and has it kept.
func (d *Driver) openGroup(ctx context.Context) error {
	var err error
	if d.cfg.Keeper.Socket != "" {
		err = d.inherit(ctx)
	}
	if err == nil && !d.inherited { // else it has been shown that it works here
		err = d.makeGroup()
	}
	if err == nil {
		d.groupID, err = d.group.ID()
	}
	if err != nil {
		return errors.Join(err, d.closeGroup())
	}
	return nil
}

// inherit connects to the keeper, and takes over the group that it has, if any.
func (d *Driver) inherit(ctx context.Context) error {
	kept, err := connect(ctx, d.cfg.Keeper)
	if err != nil {
		return err
	}
	files, err := kept.Get(keptAs)
	if err == nil && len(files) > 0 {
		d.group, err = fanotify.Adopt(files)
	}
	if err != nil {
		d.group = nil
		return errors.Join(err, kept.Close())
	}
	d.kept, d.inherited = kept, len(files) > 0
	return nil
}

// makeGroup makes a group and has it kept.
func (d *Driver) makeGroup() error {
	if err := fanotify.Probe(d.cfg.Dir); err != nil {
		return err
	}
	group, err := fanotify.New()
	if err != nil {
		return err
	}
	d.group = group
	return d.entrust()
}

// closeGroup gives up the group and the connection to the keeper, which holds on what it has.
func (d *Driver) closeGroup() error {
	var errs []error
	if d.group != nil {
		errs = append(errs, d.group.Close())
	}
	if d.kept != nil {
		errs = append(errs, d.kept.Close())
	}
	d.group, d.kept = nil, nil
	return errors.Join(errs...)
}

// connect returns a connection to a keeper that answers, in place of one that hangs.
func connect(ctx context.Context, cfg keeper.Config) (*keeper.Client, error) {
	kept, err := keeper.Connect(ctx, cfg)
	if errors.Is(err, keeper.ErrHung) {
		return keeper.Replace(ctx, cfg, keptAs, fanotify.Links())
	}
	return kept, err
}

// entrust has the keeper hold the group.
func (d *Driver) entrust() error {
	if d.kept == nil {
		return nil
	}
	return d.kept.Put(keptAs, d.group.Files())
}

// Close gives up files and descriptors. Mounts stay. Without any, the keeper is let go; without a keeper, mounts are detached, so that nobody
// reads through them what has not come.
func (d *Driver) Close() error {
	d.mu.Lock()
	var mounts []*mount
	for _, m := range d.mounts {
		mounts = append(mounts, m)
	}
	left := len(d.mounts) + len(d.lingering)
	d.mu.Unlock()
	var errs []error
	if d.kept == nil {
		for _, m := range mounts {
			errs = append(errs, detach(m.target))
		}
	} else if left == 0 && d.nothingLeft() {
		errs = append(errs, d.kept.Drop(keptAs))
	}
	for _, m := range mounts {
		d.release(m, false)
	}
	return errors.Join(append(errs, d.closeGroup())...)
}

// nothingLeft reports whether no mount of an earlier process can be left that nobody has claimed, here or in another namespace.
func (d *Driver) nothingLeft() bool {
	records, err := readRecords(d.recordDir())
	if err != nil || slices.ContainsFunc(records, record.inUse) {
		return false
	}
	supers, err := erofs.Supers()
	return !d.inherited || err == nil && len(supers) == 0
}

// Run answers reads and fetches ahead until ctx ends. Mounts stay, and who reads what has not come yet waits for the next process that
// runs a driver over the same folder.
func (d *Driver) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return d.group.Run(ctx, d.handle) })
	tasks.Go(func() error { return d.keep(ctx) })
	tasks.Go(func() error { return d.fetchAhead(ctx) })
	tasks.Go(func() error { return d.sweep(ctx) })
	return tasks.Wait()
}

// keep starts a new keeper when the old one has gone or hangs. The group lives on meanwhile, in this process alone.
func (d *Driver) keep(ctx context.Context) error {
	if d.kept == nil {
		return nil
	}
	ticker := time.NewTicker(keeperEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.kept.Gone():
		case <-ticker.C:
			if d.kept.Check() == nil {
				continue
			}
		}
		d.log.Warn("keeper has gone or hangs, starting another one", "socket", d.cfg.Keeper.Socket)
		for {
			err := d.replaceKeeper(ctx)
			if err == nil {
				break
			}
			d.log.Error("without a keeper readers of lazy mounts get zeros when this process ends", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(keeperPause):
			}
		}
	}
}

func (d *Driver) replaceKeeper(ctx context.Context) error {
	kept, err := connect(ctx, d.cfg.Keeper)
	if err != nil {
		return err
	}
	_ = d.kept.Close() // it has gone
	d.kept = kept
	return d.entrust()
}

// sweep lets go of what was unmounted when nothing has it mounted any more, keeps records, and settles when nobody does.
func (d *Driver) sweep(ctx context.Context) error {
	defer d.keepRecords(ctx)
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	late := time.NewTimer(settleAfter)
	defer late.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-late.C:
			d.Settled()
		case <-d.fuller:
			d.keepRecords(ctx)
		case <-ticker.C:
			d.mounting.Lock() // what is released must not be marked anew meanwhile
			d.releaseDead()
			d.mounting.Unlock()
		}
	}
}

// Settled says that Mount was called for every image that an earlier process had mounted and that is still wanted. Until then reads of
// what nobody claimed wait, from then on they fail. Expanded blobs that no mount uses are removed.
func (d *Driver) Settled() {
	d.mounting.Lock()
	defer d.mounting.Unlock()
	d.settle()
	if err := d.shelf.sweep(); err != nil {
		d.log.Warn("expanded blobs are not swept", "error", err)
	}
	if err := sweepRecords(d.recordDir()); err != nil {
		d.log.Warn("records of mounts are not swept", "error", err)
	}
}
