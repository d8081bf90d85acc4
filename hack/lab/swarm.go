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

// A swarm is the usual cluster: a registry, schedulers, seeds, and nodes.
type swarm struct {
	*cluster.Cluster

	registry    *cluster.Registry
	schedulers  []*cluster.Scheduler
	seeds       []*cluster.Node
	nodes       []*cluster.Node
	containerds []*cluster.Containerd // one for each node, after addContainerds
}

// swarmConfig says how large a swarm is. Zero schedulers, seeds and zones mean one.
type swarmConfig struct {
	nodes, seeds, schedulers int
	zones                    int            // that nodes are spread over; all else is in the first
	border                   cluster.Rate   // of the others' borders
	proxied                  bool           // proxies stand before the registry, the seeds and the nodes
	bounds                   cluster.Bounds // of each node and seed
	driver                   string         // of the nodes' snapshotters
	supervised               cluster.Supervision
	login                    cluster.Login // that the registry wants
}

// blob is a layer by its digest and size.
type blob struct {
	digest digest.Digest
	size   int64
}

func newSwarm(ctx context.Context, c *cluster.Cluster, cfg swarmConfig) (*swarm, error) {
	s := &swarm{Cluster: c}
	for i := 1; i < cfg.zones; i++ {
		if err := c.AddZone(ctx, zoneName(i), cfg.border); err != nil {
			return nil, err
		}
	}
	var err error
	switch {
	case cfg.login != (cluster.Login{}):
		s.registry, err = c.StartPasswordRegistry(ctx, cfg.login)
	case cfg.proxied:
		s.registry, err = c.StartProxiedRegistry(ctx)
	default:
		s.registry, err = c.StartRegistry(ctx)
	}
	if err != nil {
		return nil, err
	}
	for _, name := range numbered("scheduler", max(cfg.schedulers, 1)) {
		scheduler, err := c.StartScheduler(ctx, name)
		if err != nil {
			return nil, err
		}
		s.schedulers = append(s.schedulers, scheduler)
	}
	start := func(names []string, seed bool) ([]*cluster.Node, error) {
		started := make([]*cluster.Node, len(names))
		group, ctx := errgroup.WithContext(ctx)
		for i, name := range names {
			group.Go(func() (err error) {
				started[i], err = c.StartNode(ctx, cluster.NodeConfig{
					Name: name, Seed: seed, Zone: zoneOf(i, seed, cfg.zones), Proxied: cfg.proxied, Bounds: cfg.bounds, Supervised: cfg.supervised, Driver: cfg.driver,
					Schedulers: s.schedulers, Registries: []*cluster.Registry{s.registry},
				})
				return err
			})
		}
		return started, group.Wait()
	}
	if s.seeds, err = start(numbered("seed", max(cfg.seeds, 1)), true); err != nil {
		return nil, err
	}
	nodes := make([]string, cfg.nodes)
	for i := range nodes {
		nodes[i] = fmt.Sprintf("node-%d", i+1)
	}
	s.nodes, err = start(nodes, false)
	return s, err
}

// zoneOf returns the zone of the i-th node or seed: nodes take turns, seeds are in the first.
func zoneOf(i int, seed bool, zones int) string {
	if seed || zones < 2 {
		return zoneName(0)
	}
	return zoneName(i % zones)
}

// zoneName returns the name of a zone by its number from 0.
func zoneName(i int) string {
	if i == 0 {
		return "lab"
	}
	return fmt.Sprintf("lab-%d", i+1)
}

// numbered returns n names; a single thing needs no number.
func numbered(what string, n int) []string {
	if n == 1 {
		return []string{what}
	}
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", what, i+1)
	}
	return names
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
