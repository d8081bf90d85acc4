package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// batteryCases are the faults behind the mirror and those of the mirror itself. The bounds are what they may cost according to the design.
func batteryCases() []batteryCase {
	all := []batteryCase{{name: "none", what: "nothing happens: what the noise of the machine is", bound: 200 * time.Millisecond}}
	all = append(all, batteryPeers()...)
	all = append(all, batteryOrigins()...)
	return append(all, batteryMirrors()...)
}

func batteryPeers() []batteryCase {
	flip := func(nodes func(*rig) []*cluster.Node) func(context.Context, *rig) error {
		return func(_ context.Context, r *rig) error {
			for _, n := range nodes(r) {
				n.Proxy.Set(cluster.Fault{Kind: cluster.Flip, Path: blobPaths, At: faultLayer / 2})
			}
			return nil
		}
	}
	peer := func(r *rig) []*cluster.Node { return []*cluster.Node{r.peer()} }
	both := func(r *rig) []*cluster.Node { return []*cluster.Node{r.peer(), r.seed()} }
	return []batteryCase{
		{name: "peer-killed", what: "a peer that holds the image is killed", bound: 200 * time.Millisecond, held: true,
			during: func(_ context.Context, r *rig) error { r.peer().Kill(); return nil }},
		{name: "peer-hung", what: "a peer that holds the image hangs, its sockets open", bound: 1500 * time.Millisecond, held: true,
			during: func(_ context.Context, r *rig) error { return r.peer().Pause() }},
		{name: "peer-lies", what: "a peer that holds the image changes a byte", bound: 200 * time.Millisecond, held: true, before: flip(peer)},
		{name: "peers-hung", what: "all that hold the image hang, the seed too", bound: 4 * time.Second, held: true,
			during: func(_ context.Context, r *rig) error { return errors.Join(r.peer().Pause(), r.seed().Pause()) }},
		{name: "peers-lie", what: "all that hold the image change a byte, the seed too", bound: 4 * time.Second, held: true, before: flip(both)},
		{name: "seed-killed", what: "the seed is killed while it reads the registry", bound: 1500 * time.Millisecond,
			during: func(_ context.Context, r *rig) error { r.seed().Kill(); return nil }},
		{name: "seed-hung", what: "the seed hangs while it reads the registry", bound: 1500 * time.Millisecond,
			during: func(_ context.Context, r *rig) error { return r.seed().Pause() }},
	}
}

func batteryOrigins() []batteryCase {
	set := func(f cluster.Fault) func(context.Context, *rig) error {
		return func(_ context.Context, r *rig) error {
			f.Path = "/blobs/"
			r.registry.Proxy.Set(f)
			return nil
		}
	}
	return []batteryCase{
		{name: "origin-hung", what: "the registry takes two requests and never answers them", bound: 4 * time.Second,
			before: set(cluster.Fault{Kind: cluster.Hang, Times: 2})},
		{name: "origin-cut", what: "the registry breaks four answers off in their middle", bound: 2 * time.Second,
			before: set(cluster.Fault{Kind: cluster.Cut, Times: 4})},
		{name: "origin-short", what: "the registry sends half of the range four times", bound: 2 * time.Second,
			before: set(cluster.Fault{Kind: cluster.Short, Times: 4})},
		{name: "origin-slow", what: "the registry sends four answers at half of the rate", bound: 4 * time.Second,
			before: set(cluster.Fault{Kind: cluster.Slow, BytesPerSecond: int(faultLink) / 16, Times: 4})},
		{name: "origin-5xx", what: "the registry answers four times with 503", bound: 2 * time.Second,
			before: set(cluster.Fault{Kind: cluster.Unavailable, Times: 4})},
	}
}

func batteryMirrors() []batteryCase {
	return []batteryCase{
		{name: "mirror-dead", what: "the node's daemon was killed before the pull", bound: 50 * time.Millisecond, held: true,
			before: func(_ context.Context, r *rig) error { r.node().Kill(); return nil }},
		{name: "mirror-killed", what: "the node's daemon is killed; what it had read ahead is read again", bound: time.Second, held: true,
			during: func(_ context.Context, r *rig) error { r.node().Kill(); return nil }},
		{name: "mirror-frozen", what: "the node's daemon hangs before the pull, until the watchdog kills it", bound: 4 * time.Second, held: true,
			before: func(_ context.Context, r *rig) error { return r.node().Pause() }},
		{name: "mirror-hung", what: "the node's daemon hangs; the watchdog kills it, and it is started again", bound: 4 * time.Second, held: true,
			during: func(ctx context.Context, r *rig) error {
				if err := r.node().Pause(); err != nil {
					return err
				}
				return r.restart(ctx)
			}},
		{name: "mirror-restarted", what: "the node's daemon is killed and started again", bound: time.Second, held: true,
			during: func(ctx context.Context, r *rig) error { r.node().Kill(); return r.restart(ctx) }},
		{name: "mirror-stopped", what: "the node's daemon is told to stop", bound: time.Second, held: true,
			during: func(_ context.Context, r *rig) error { r.node().Stop(20 * time.Second); return nil }},
		{name: "mirror-disk-full", what: "the node's disk has no room for the image", bound: time.Second, held: true,
			before: func(ctx context.Context, r *rig) error { return r.smallDisk(ctx, 8<<20) }},
		{name: "mirror-disk-fills", what: "the node's disk fills up", bound: time.Second, held: true,
			before: func(ctx context.Context, r *rig) error { return r.smallDisk(ctx, 96<<20) },
			during: func(_ context.Context, r *rig) error { return r.fillDisk() }},
		{name: "mirror-no-files", what: "the node's daemon may open no more files before the pull", bound: 4 * time.Second, held: true,
			before: func(_ context.Context, r *rig) error { return r.node().LimitFiles(3) }},
		{name: "mirror-few-files", what: "the node's daemon may open three more files before the pull", bound: 4 * time.Second, held: true,
			before: func(_ context.Context, r *rig) error { return r.node().LimitFiles(r.node().OpenFiles() + 3) }},
		{name: "mirror-files-used-up", what: "the node's daemon may open no more files", bound: 4 * time.Second, held: true,
			during: func(_ context.Context, r *rig) error { return r.node().LimitFiles(3) }},
	}
}

// restart waits until the node's daemon has ended and starts it as the service manager would.
func (r *rig) restart(ctx context.Context) error {
	select {
	case <-r.node().Done():
	case <-ctx.Done():
		return fmt.Errorf("the daemon hangs and is not killed: %w", context.Cause(ctx))
	}
	if err := sleep(ctx, cluster.UnitSupervision().Restart); err != nil {
		return err
	}
	return r.node().Start(ctx)
}

// smallDisk restarts the node with its data on a disk of that size.
func (r *rig) smallDisk(ctx context.Context, size int64) error {
	n := r.node()
	n.Kill()
	if err := errors.Join(os.RemoveAll(n.DataDir()), os.MkdirAll(n.DataDir(), 0o700)); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", n.DataDir(), "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		return fmt.Errorf("a small disk for %s: %w", n.Name(), err)
	}
	r.undo = append(r.undo, func() error { n.Kill(); return unix.Unmount(n.DataDir(), unix.MNT_DETACH) })
	return n.Start(ctx)
}

// fillDisk writes to the node's disk until there is no room.
func (r *rig) fillDisk() error {
	f, err := os.Create(filepath.Join(r.node().DataDir(), "ballast"))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, zeros{}); !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("the disk of %s did not fill up: %w", r.node().Name(), err)
	}
	return nil
}
