package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// playMounted runs pods whose images are mounted, kills the nodes' daemons under them, and removes pods and images.
func (r *kubeletRig) playMounted(ctx context.Context) error {
	if err := r.run(ctx, "first"); err != nil {
		return fmt.Errorf("with the nodes up: %w", err)
	}
	if err := r.eachMounts(ctx, func(mounted int) bool { return mounted >= 2 }); err != nil { // the pod's and the volume's
		return fmt.Errorf("images of the first pod: %w", err)
	}
	for _, n := range r.nodes {
		n.Kill()
	}
	for _, n := range r.nodes {
		if err := n.Start(ctx); err != nil {
			return err
		}
	}
	if err := r.run(ctx, "first", "second"); err != nil {
		return fmt.Errorf("with the nodes killed and up again: %w", err)
	}
	for i, k := range r.kubelets {
		if err := k.RemoveAll(ctx); err != nil {
			return err
		}
		if err := r.containerds[i].CollectCRI(ctx); err != nil {
			return err
		}
	}
	if err := r.eachMounts(ctx, func(mounted int) bool { return mounted <= 1 }); err != nil { // that of sandboxes, which is pinned
		return fmt.Errorf("images that Kubernetes removed: %w", err)
	}
	for _, c := range r.containerds {
		if err := c.ForgetAll(ctx); err != nil {
			return err
		}
	}
	if err := r.eachMounts(ctx, func(mounted int) bool { return mounted == 0 }); err != nil {
		return fmt.Errorf("images that were removed: %w", err)
	}
	if err := r.each(ctx, noSnapshots); err != nil {
		return err
	}
	r.Logf("all pods ran, and nothing of them is left")
	return nil
}

// eachMounts waits until every node has as many images mounted as wanted.
func (r *kubeletRig) eachMounts(ctx context.Context, wanted func(mounted int) bool) error {
	return r.each(ctx, func(ctx context.Context, n *cluster.Node) error {
		m, err := n.Metrics(ctx)
		if mounted := int(m.Sum("shoal_snapshotter_mounts")); err == nil && !wanted(mounted) {
			err = fmt.Errorf("%d are mounted", mounted)
		}
		return err
	})
}

// noSnapshots reports whether a node keeps no folder of a snapshot.
func noSnapshots(_ context.Context, n *cluster.Node) error {
	entries, err := os.ReadDir(filepath.Join(n.DataDir(), "snapshots", "snapshots"))
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%d snapshots are left", len(entries))
	}
	return err
}

// each waits until something holds on every node.
func (r *kubeletRig) each(ctx context.Context, holds func(context.Context, *cluster.Node) error) error {
	ctx, cancel := context.WithTimeout(ctx, kubeletPatience)
	defer cancel()
	for _, n := range r.nodes {
		for err := holds(ctx, n); err != nil; err = holds(ctx, n) {
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("%s: not within %v: %w", n.Name(), kubeletPatience, err)
			}
		}
	}
	return nil
}
