package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// A mishap is something that goes wrong while all nodes of a trial read.
type mishap struct {
	name, what string
	// bound is what it may add to the time until the last node has everything.
	bound time.Duration
	// before happens before the reading begins, during in its midst. Either may be nil.
	before, during func(context.Context, *trial) error
	// after checks, once all was read, that what should have happened did. Nil checks nothing.
	after func(context.Context, *trial) error
	// named is set for what happens to all of the machine, and so only to who asks for it.
	named bool
}

// mishaps are the cases of lab fault that are measured. The bounds are what the faults may cost according to the design.
func mishaps() []mishap {
	var all []mishap
	all = append(all, parentMishaps()...)
	all = append(all, seedMishaps()...)
	all = append(all, originMishaps()...)
	all = append(all, schedulerMishaps()...)
	all = append(all, nodeMishaps()...)
	return append(all, clockMishaps()...)
}

// blobPaths is what the requests for pieces between hosts have in their paths.
const blobPaths = "/v1/blobs/"

func parentMishaps() []mishap {
	parent := func(fn func(context.Context, *cluster.Node) error) func(context.Context, *trial) error {
		return func(ctx context.Context, t *trial) error {
			t.lose(t.nodes[0])
			return fn(ctx, t.nodes[0])
		}
	}
	all := []mishap{
		{name: "parent-killed", what: "a node is killed", bound: 200 * time.Millisecond,
			during: parent(func(_ context.Context, n *cluster.Node) error { n.Kill(); return nil })},
		{name: "parent-stopped", what: "a node hangs, its sockets open", bound: 1500 * time.Millisecond,
			during: parent(func(_ context.Context, n *cluster.Node) error { return n.Pause() })},
		{name: "parent-black-holed", what: "a node's cable is pulled", bound: 1500 * time.Millisecond,
			during: parent(func(ctx context.Context, n *cluster.Node) error { return n.Host().SetPlugged(ctx, false) })},
		{name: "parent-slow", what: "a node's link drops to a hundredth", bound: 1500 * time.Millisecond,
			during: parent(func(ctx context.Context, n *cluster.Node) error { return n.Host().SetLink(ctx, trialLink/100) })},
	}
	for where, at := range lies() {
		all = append(all, mishap{name: "parents-lying-" + where, what: "half of the nodes change a byte in the " + where + " chunk",
			bound: 200 * time.Millisecond,
			before: func(_ context.Context, t *trial) error {
				for _, n := range t.nodes[:len(t.nodes)/2] {
					n.Proxy.Set(cluster.Fault{Kind: cluster.Flip, Path: blobPaths, At: at})
				}
				return nil
			}})
	}
	return all
}

// lies yields where in the blob a liar changes a byte.
func lies() func(func(string, int64) bool) {
	return func(yield func(string, int64) bool) {
		_ = yield("first", 1000) && yield("middle", trialSize/2) && yield("last", trialSize-1000)
	}
}

func seedMishaps() []mishap {
	all := []mishap{
		{name: "seed-killed", what: "one of two seeds is killed", bound: 1500 * time.Millisecond,
			during: func(_ context.Context, t *trial) error { t.seeds[0].Kill(); return nil }},
		{name: "seed-stopped", what: "one of two seeds hangs", bound: 1500 * time.Millisecond,
			during: func(_ context.Context, t *trial) error { return t.seeds[0].Pause() }},
		{name: "seed-black-holed", what: "the cable of one of two seeds is pulled", bound: 1500 * time.Millisecond,
			during: func(ctx context.Context, t *trial) error { return t.seeds[0].Host().SetPlugged(ctx, false) }},
		{name: "seeds-killed", what: "both seeds are killed", bound: 2 * time.Second,
			during: func(_ context.Context, t *trial) error { t.seeds[0].Kill(); t.seeds[1].Kill(); return nil }},
		{name: "seeds-stopped", what: "both seeds hang", bound: 4 * time.Second,
			during: func(_ context.Context, t *trial) error {
				return errors.Join(t.seeds[0].Pause(), t.seeds[1].Pause())
			}},
	}
	for where, at := range lies() {
		all = append(all, mishap{name: "seed-lying-" + where, what: "a seed changes a byte in the " + where + " chunk",
			bound: 1500 * time.Millisecond,
			before: func(_ context.Context, t *trial) error {
				t.seeds[0].Proxy.Set(cluster.Fault{Kind: cluster.Flip, Path: blobPaths, At: at})
				return nil
			}})
	}
	return all
}

func originMishaps() []mishap {
	set := func(f cluster.Fault) func(context.Context, *trial) error {
		return func(_ context.Context, t *trial) error {
			f.Path = "/blobs/"
			t.registry.Proxy.Set(f)
			return nil
		}
	}
	struck := func(_ context.Context, t *trial) error {
		if t.registry.Proxy.Struck() == 0 {
			return errors.New("no request met the fault")
		}
		return nil
	}
	all := []mishap{
		{name: "origin-slow", what: "the registry sends four answers at half of the rate", bound: 4 * time.Second,
			before: set(cluster.Fault{Kind: cluster.Slow, BytesPerSecond: int(trialLink) / 16, Times: 4})},
		{name: "origin-hung", what: "the registry takes two requests and never answers them", bound: 4 * time.Second,
			before: set(cluster.Fault{Kind: cluster.Hang, Times: 2})},
		{name: "origin-cut", what: "the registry breaks four answers off in their middle", bound: 2 * time.Second,
			before: set(cluster.Fault{Kind: cluster.Cut, Times: 4})},
		{name: "origin-5xx", what: "the registry answers four times with 503", bound: 2 * time.Second,
			before: set(cluster.Fault{Kind: cluster.Unavailable, Times: 4})},
		{name: "origin-short", what: "the registry sends half of the range four times", bound: 2 * time.Second,
			before: set(cluster.Fault{Kind: cluster.Short, Times: 4})},
		{name: "origin-wrong-length", what: "the registry tells a wrong length four times", bound: 2 * time.Second,
			before: set(cluster.Fault{Kind: cluster.WrongLength, Times: 4})},
		{name: "origin-wrong-bytes", what: "the registry changes a byte, for a second", bound: 4 * time.Second,
			before: set(cluster.Fault{Kind: cluster.Flip, At: trialSize / 2}),
			during: func(ctx context.Context, t *trial) error { return t.healOrigin(ctx, time.Second) }},
		{name: "origin-down", what: "the registry is dead for two seconds when the cluster holds half", bound: 3 * time.Second,
			during: func(ctx context.Context, t *trial) error {
				t.registry.Proxy.Set(cluster.Fault{Kind: cluster.Unavailable})
				return t.healOrigin(ctx, 2*time.Second)
			}},
	}
	for i := range all[:6] {
		all[i].after = struck
	}
	return all
}

// healOrigin ends the registry's fault after a while.
func (t *trial) healOrigin(ctx context.Context, after time.Duration) error {
	if err := sleep(ctx, after); err != nil {
		return err
	}
	t.registry.Proxy.Set(cluster.Fault{})
	return nil
}

func schedulerMishaps() []mishap {
	each := func(fn func(context.Context, *cluster.Scheduler) error, n int) func(context.Context, *trial) error {
		return func(ctx context.Context, t *trial) error {
			var err error
			for _, s := range t.schedulers[:n] {
				err = errors.Join(err, fn(ctx, s))
			}
			return err
		}
	}
	kill := func(_ context.Context, s *cluster.Scheduler) error { s.Kill(); return nil }
	pause := func(_ context.Context, s *cluster.Scheduler) error { return s.Pause() }
	unplug := func(ctx context.Context, s *cluster.Scheduler) error { return s.Host().SetPlugged(ctx, false) }
	return []mishap{
		{name: "scheduler-killed", what: "one of two schedulers is killed", bound: time.Second, during: each(kill, 1)},
		{name: "scheduler-stopped", what: "one of two schedulers hangs", bound: time.Second, during: each(pause, 1)},
		{name: "scheduler-partitioned", what: "the cable of one of two schedulers is pulled", bound: time.Second, during: each(unplug, 1)},
		{name: "schedulers-killed", what: "both schedulers are killed", bound: 2 * time.Second, during: each(kill, 2)},
		{name: "schedulers-stopped", what: "both schedulers hang", bound: 2 * time.Second, during: each(pause, 2)},
		{name: "schedulers-partitioned", what: "the cables of both schedulers are pulled", bound: 2 * time.Second, during: each(unplug, 2)},
		{name: "schedulers-dead-before", what: "both schedulers are dead when the reading begins", bound: 2 * time.Second, before: each(kill, 2)},
	}
}

func nodeMishaps() []mishap {
	return []mishap{
		{name: "half-gone", what: "half of the nodes are killed at once", bound: 1500 * time.Millisecond,
			during: func(_ context.Context, t *trial) error {
				gone := t.nodes[:len(t.nodes)/2]
				t.lose(gone...)
				for _, n := range gone {
					n.Kill()
				}
				return nil
			}},
		{name: "node-restarted", what: "a node's daemon is killed and started again, and goes on from what it has", bound: 1500 * time.Millisecond,
			during: func(ctx context.Context, t *trial) error { return t.restart(ctx, t.nodes[0]) },
			after:  resumed},
		{name: "disk-eio", what: "a node's disk fails in the midst", bound: 4 * time.Second, before: diskOfFile, during: breakDisk},
	}
}

// restart kills a node's daemon and starts it again; its reader waits.
func (t *trial) restart(ctx context.Context, n *cluster.Node) error {
	t.setAway(n, true)
	defer t.setAway(n, false)
	n.Kill()
	return n.Start(ctx)
}

// resumed checks that the restarted node fetched less than the whole blob since.
func resumed(ctx context.Context, t *trial) error {
	m, err := t.nodes[0].Metrics(ctx)
	if err != nil {
		return err
	}
	if got := int64(m.Sum("shoal_transfer_received_bytes_total") + m.Sum("shoal_source_fetched_bytes_total")); got >= trialSize {
		return fmt.Errorf("the restarted node fetched %d bytes of %d: it began anew", got, trialSize)
	}
	return nil
}

// disk is the file that holds the first node's file system in the case disk-eio.
func (t *trial) disk() string { return filepath.Join(t.nodes[0].Host().Dir, "disk") }

// diskOfFile moves the first node's data to a file system in a file.
func diskOfFile(ctx context.Context, t *trial) error {
	n, host := t.nodes[0], t.nodes[0].Host()
	n.Kill()
	if err := errors.Join(os.RemoveAll(n.DataDir()), os.MkdirAll(n.DataDir(), 0o700)); err != nil {
		return err
	}
	f, err := os.Create(t.disk())
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(256<<20), f.Close()); err != nil {
		return err
	}
	if _, err := host.Run(ctx, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", t.disk()); err != nil {
		return err
	}
	loop, err := cluster.AttachLoop(ctx, t.disk())
	if err != nil {
		return err
	}
	if err := unix.Mount(loop, n.DataDir(), "ext4", 0, "errors=continue"); err != nil {
		return fmt.Errorf("mount %s: %w", loop, err)
	}
	t.undo = append(t.undo, func() error {
		n.Kill()
		return unix.Unmount(n.DataDir(), unix.MNT_DETACH)
	})
	return n.Start(ctx)
}

// ext4Shutdown is EXT4_IOC_SHUTDOWN of Linux's include/uapi/linux/ext4.h: after it every access to the disk fails with EIO.
const (
	ext4Shutdown   = 0x8004587d
	ext4NoLogFlush = 2
)

// breakDisk has the first node's file system fail with EIO from now on, and the kernel forget what it had read.
func breakDisk(_ context.Context, t *trial) error {
	dir, err := os.Open(t.nodes[0].DataDir())
	if err != nil {
		return err
	}
	defer dir.Close()
	unix.Sync() // what is dirty could not be forgotten
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), ext4Shutdown, ext4NoLogFlush); err != nil {
		return fmt.Errorf("shut the file system down: %w", err)
	}
	return dropCache(t.nodes[0].DataDir())
}

// dropCache has the kernel forget the contents of all files below dir.
func dropCache(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil //nolint:nilerr // the disk fails, which is the point
		}
		f, err := os.Open(path)
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		defer f.Close()
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // as above
		return nil
	})
}

// measured is what a mishap did, over some runs.
type measured struct {
	Case           string    `json:"case"`
	What           string    `json:"what"`
	Converted      bool      `json:"converted"`
	OK             bool      `json:"ok"` // everybody had the right bytes in every run
	Error          string    `json:"error,omitempty"`
	AddedSeconds   float64   `json:"added_seconds"` // median
	BoundSeconds   float64   `json:"bound_seconds"`
	WithinBound    bool      `json:"within_bound"`
	OriginCopies   float64   `json:"origin_copies"` // median
	AllAdded       []float64 `json:"all_added_seconds"`
	CalmSeconds    float64   `json:"calm_seconds"` // median without the mishap
	RejectedPieces float64   `json:"rejected_pieces"`
	Fallbacks      int       `json:"fallbacks"` // readers that went to the registry because their mirror failed
	ReadAgain      int       `json:"read_again"`
}

// measure runs a mishap f.runs times, each in a cluster of its own, in which another blob was read in peace before.
func (f faults) measure(ctx context.Context, m mishap) measured {
	r := measured{Case: m.name, What: m.what, Converted: f.converted, OK: true, BoundSeconds: m.bound.Seconds()}
	var calm, copies []float64
	for range f.runs {
		err := withTrial(ctx, f.shoal, f.log, f.converted, func(t *trial) error {
			one, err := t.suffer(ctx, m)
			if err != nil {
				return err
			}
			r.AllAdded = append(r.AllAdded, (one.took - one.calm).Seconds())
			calm, copies = append(calm, one.calm.Seconds()), append(copies, one.copies)
			r.RejectedPieces += one.rejected
			r.Fallbacks, r.ReadAgain = r.Fallbacks+one.turned.fallbacks, r.ReadAgain+one.turned.again
			return nil
		})
		if err != nil {
			r.OK, r.Error = false, err.Error()
			return r
		}
	}
	r.AddedSeconds, r.CalmSeconds, r.OriginCopies = median(r.AllAdded), median(calm), median(copies)
	r.WithinBound = r.AddedSeconds <= r.BoundSeconds
	return r
}

type suffered struct {
	calm, took       time.Duration
	copies, rejected float64
	turned           turned
}

// suffer reads one blob in peace and another with the mishap.
func (t *trial) suffer(ctx context.Context, m mishap) (s suffered, err error) {
	first, err := t.image(ctx)
	if err != nil {
		return s, err
	}
	second, err := t.image(ctx)
	if err != nil {
		return s, err
	}
	if s.calm, err = t.readAll(ctx, first); err != nil {
		return s, fmt.Errorf("before anything happened: %w", err)
	}
	if m.before != nil {
		if err := m.before(ctx, t); err != nil {
			return s, err
		}
	}
	act := func() error {
		if m.during == nil {
			return nil
		}
		return m.during(ctx, t)
	}
	if s.took, err = t.during(ctx, second, act); err != nil {
		return s, err
	}
	if m.after != nil {
		if err := m.after(ctx, t); err != nil {
			return s, err
		}
	}
	for _, n := range t.living() {
		if m, err := n.Metrics(ctx); err == nil {
			s.rejected += m.Sum("shoal_peer_verify_failures_total")
		}
	}
	served, err := t.registry.WaitServed(ctx, second.digest, second.size)
	s.copies = float64(served) / float64(second.size)
	t.count(func(c *turned) { s.turned = *c })
	t.Logf("  in peace %.2f s, with the mishap %.2f s, %.2f copies from the origin, %.0f pieces rejected, %d readers went to the registry, %d read again",
		s.calm.Seconds(), s.took.Seconds(), s.copies, s.rejected, s.turned.fallbacks, s.turned.again)
	return s, err
}
