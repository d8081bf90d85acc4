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

const (
	mountPoll = time.Millisecond // how often it is looked whether a mount is there
	fillGrace = 5 * time.Second  // for daemons to end in order
	wholeWait = 2 * time.Minute  // for the bytes that readers did not wait for
	wholePoll = 20 * time.Millisecond
)

// fillRun is one first fill.
type fillRun struct {
	rate    float64 // bytes a second
	peakRSS int64   // of the daemon that mounted, in bytes
}

// bySnapshotter fills through a new node, and calls then with the mount point while all is there. Nothing of it stays.
func (b *fillBench) bySnapshotter(ctx context.Context, way string, then func(root string) error) (run fillRun, err error) {
	host, driver := b.registry.Host(), way
	if way == "unread" {
		driver = "erofs"
	}
	node, err := b.StartNode(ctx, cluster.NodeConfig{Name: "node", Host: host, Registries: []*cluster.Registry{b.registry}, Schedulers: b.planned, Driver: driver})
	if err != nil {
		return run, err
	}
	containerd, err := node.StartContainerd(ctx, b.registry, cluster.ContainerdConfig{})
	if err != nil {
		return run, err
	}
	defer func() {
		_, removed := containerd.Ctr(ctx, "images", "remove", "--sync", b.ref)
		containerd.Stop(fillGrace)
		node.Stop(fillGrace)
		err = errors.Join(err, removed, os.RemoveAll(filepath.Join(host.Dir, "containerd")), os.RemoveAll(node.DataDir()))
	}()
	pulled := make(chan error, 1)
	go func() { // ends with ctx at the latest
		defer close(pulled) // so that who asks a second time hears of no error
		pulled <- containerd.Pull(ctx, b.ref)
	}()
	root, rate, err := b.firstRead(ctx, way, node.DataDir(), pulled)
	if err != nil {
		return run, fmt.Errorf("%w\n--- %s\n%s", err, node.Log(), node.Tail())
	}
	run = fillRun{rate, node.PeakRSS()}
	if err := <-pulled; err != nil {
		return run, err
	}
	return run, then(root)
}

// byNydusd fills through a new nydusd, which reads the registry. Nothing of it stays.
func (b *fillBench) byNydusd(ctx context.Context, prefetch bool) (run fillRun, err error) {
	b.started++
	v := nydusVariant{host: b.registry.Host(), server: b.registry.Addr(), repository: repository, manifest: b.image.nydus,
		name: fmt.Sprintf("nydusd-%d", b.started), prefetch: prefetch}
	lower, nydusd, err := v.startNydusd(ctx)
	if err != nil {
		return run, err
	}
	defer func() {
		nydusd.Stop(fillGrace)
		if gone := unix.Unmount(lower, unix.MNT_DETACH); gone != nil && !errors.Is(gone, unix.EINVAL) {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", lower, gone))
		}
		err = errors.Join(err, os.RemoveAll(filepath.Dir(lower)))
	}()
	ended := make(chan error, 1)
	go func() { // ends with nydusd, which is stopped above
		<-nydusd.Done()
		ended <- errors.New("nydusd ended: " + nydusd.Tail())
	}()
	_, rate, err := b.firstRead(ctx, v.name, lower, ended)
	return fillRun{rate, nydusd.PeakRSS()}, err
}

// firstRead has a process read all of the model at the moment when a mount below dir shows it. The clock runs from then to the last byte. done tells that
// nothing will be mounted any more. Of the way "unread" nobody reads, and the clock runs until all is there.
func (b *fillBench) firstRead(ctx context.Context, way, dir string, done <-chan error) (root string, rate float64, err error) {
	if root, err = b.awaitMount(ctx, dir, done); err != nil {
		return "", 0, err
	}
	began := time.Now()
	if way == "unread" {
		err = b.awaitWhole(ctx, "erofs", root)
	} else {
		err = b.readAll(ctx, root)
	}
	return root, float64(b.cfg.size) / time.Since(began).Seconds(), err
}

// readAll has a process read the model of an image that is mounted at root.
func (b *fillBench) readAll(ctx context.Context, root string) error {
	files, err := b.files(modelOf(root))
	if err != nil {
		return err
	}
	_, err = readFiles(ctx, files, b.cfg.size)
	return err
}

// awaitMount waits for the mount below dir that shows the model.
func (b *fillBench) awaitMount(ctx context.Context, dir string, done <-chan error) (root string, err error) {
	tick := time.NewTicker(mountPoll)
	defer tick.Stop()
	for over := false; ; {
		if root, err = b.mountBelow(dir); root != "" || err != nil {
			return root, err
		}
		if over {
			return "", fmt.Errorf("nothing that shows the model was mounted in %s", dir)
		}
		select {
		case err := <-done:
			if err != nil {
				return "", err
			}
			over = true // and it may have been mounted just before
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// mountBelow returns the mount at or below dir that shows the model; "" without one.
func (b *fillBench) mountBelow(dir string) (string, error) {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if _, err := os.Stat(modelOf(m.point)); err == nil {
			return m.point, nil
		}
	}
	return "", nil
}

// syncFS waits until the file system that f is in has written all.
func syncFS(f *os.File) error { return unix.Syncfs(int(f.Fd())) }
