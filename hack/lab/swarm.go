package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// A swarm is the usual cluster: a registry, a scheduler, one seed, and nodes.
type swarm struct {
	*cluster.Cluster

	registry    *cluster.Registry
	scheduler   *cluster.Scheduler
	seed        *cluster.Node
	nodes       []*cluster.Node
	containerds []*cluster.Containerd // one for each node, after addContainerds
}

// blob is a layer by its digest and size.
type blob struct {
	digest digest.Digest
	size   int64
}

func newSwarm(ctx context.Context, c *cluster.Cluster, nodes int) (*swarm, error) {
	s := &swarm{Cluster: c, nodes: make([]*cluster.Node, nodes)}
	var err error
	if s.registry, err = c.StartRegistry(ctx); err != nil {
		return nil, err
	}
	if s.scheduler, err = c.StartScheduler(ctx, "scheduler"); err != nil {
		return nil, err
	}
	config := func(name string, seed bool) cluster.NodeConfig {
		return cluster.NodeConfig{
			Name: name, Seed: seed, Zone: "lab",
			Schedulers: []*cluster.Scheduler{s.scheduler}, Registries: []*cluster.Registry{s.registry},
		}
	}
	if s.seed, err = c.StartNode(ctx, config("seed", true)); err != nil {
		return nil, err
	}
	group, ctx := errgroup.WithContext(ctx)
	for i := range s.nodes {
		group.Go(func() (err error) {
			s.nodes[i], err = c.StartNode(ctx, config(fmt.Sprintf("node-%d", i+1), false))
			return err
		})
	}
	return s, group.Wait()
}

// addContainerds gives each node a containerd that pulls through it.
func (s *swarm) addContainerds(ctx context.Context) error {
	s.containerds = make([]*cluster.Containerd, len(s.nodes))
	group, ctx := errgroup.WithContext(ctx)
	for i, n := range s.nodes {
		group.Go(func() (err error) {
			if s.containerds[i], err = n.Host().StartContainerd(ctx); err != nil {
				return err
			}
			return n.ConfigureMirror(ctx, s.containerds[i], s.registry)
		})
	}
	return group.Wait()
}

// pullAll has all containerds pull at once and returns how long each took.
func (s *swarm) pullAll(ctx context.Context, ref string) ([]time.Duration, error) {
	took := make([]time.Duration, len(s.containerds))
	errs := make([]error, len(s.containerds))
	start := time.Now()
	var group errgroup.Group
	for i, c := range s.containerds {
		group.Go(func() error {
			errs[i] = c.Pull(ctx, ref)
			took[i] = time.Since(start)
			return errs[i]
		})
	}
	_ = group.Wait() // all of them are in errs
	return took, errors.Join(errs...)
}

type usage struct {
	cpu     time.Duration // of all daemons of ours
	peakRSS int64         // of the largest
}

func (s *swarm) usage() usage {
	u := usage{}
	procs := []*cluster.Process{s.scheduler.Process, s.seed.Process}
	for _, n := range s.nodes {
		procs = append(procs, n.Process)
	}
	for _, p := range procs {
		u.cpu += p.CPU()
		u.peakRSS = max(u.peakRSS, p.PeakRSS())
	}
	return u
}

// read adds up what the nodes' readers got so far, over all nodes and origins. Nodes that do not answer count nothing.
func (s *swarm) read(ctx context.Context) int64 {
	var sum int64
	for _, n := range s.nodes {
		read, err := n.Read(ctx)
		if err != nil {
			continue
		}
		for _, bytes := range read {
			sum += bytes
		}
	}
	return sum
}

func layersOf(img v1.Image) ([]blob, error) {
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	var blobs []blob
	for _, l := range layers {
		hash, err := l.Digest()
		if err != nil {
			return nil, err
		}
		size, err := l.Size()
		if err != nil {
			return nil, err
		}
		blobs = append(blobs, blob{digest.Digest(hash.String()), size})
	}
	return blobs, nil
}
