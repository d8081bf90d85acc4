package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// nydusdRig has three nodes and an image in the registry that none has.
type nydusdRig struct {
	*swarm

	t      *testing.T
	source string // folder of the model
	image  pushedImage
}

func newNydusdRig(t *testing.T) (context.Context, *nydusdRig) {
	t.Helper()
	ctx, shoal := prepare(t, "ip", "tc", "docker-registry", "nydusd")
	c, err := cluster.New(ctx, cluster.Config{Shoal: shoal, Link: faultLink, Log: t.Output()})
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	r := &nydusdRig{t: t}
	r.swarm, err = newSwarm(ctx, c, swarmConfig{nodes: 3})
	check(t, err)
	base, err := cluster.RandomImage(c.Dir(), 1, faultLayer2)
	check(t, err)
	_, err = r.convert(ctx, shoal, r.registry.Addr()+"/"+repository+":1", base, lazyModel)
	check(t, err)
	r.image, err = inspect(ctx, r.registry, repository, "1")
	check(t, err)
	models, err := filepath.Glob(filepath.Join(c.Dir(), "convert-*", "model"))
	check(t, err)
	r.source = models[0]
	return ctx, r
}

// ways are those in which nydusd can be told of a node: each on a node of its own.
func (r *nydusdRig) ways() map[string]nydusVariant {
	v := func(i int, server, repository, mirror string) nydusVariant {
		return nydusVariant{host: r.nodes[i].Host(), server: server, repository: repository, manifest: r.image.nydus, mirror: mirror}
	}
	mirror := func(i int) string { return strings.TrimPrefix(r.nodes[i].MirrorURL(), "http://") }
	return map[string]nydusVariant{
		"the mirror as host, which takes its default registry": v(0, mirror(0), repository, ""),
		"the mirror as host, with the registry in the name":    v(1, mirror(1), r.registry.Addr()+"/"+repository, ""),
		"the registry as host, with a mirror before it":        v(2, r.registry.Addr(), repository, r.nodes[2].MirrorURL()),
	}
}

// served returns how many bytes of the Nydus variant's data the registry has sent, and how many it has.
func (r *nydusdRig) served() (sent, size int64) {
	r.t.Helper()
	served, err := r.registry.Served()
	check(r.t, err)
	for _, l := range r.image.nydus.Layers[:len(r.image.nydus.Layers)-1] {
		sent, size = sent+served[l.Digest], size+l.Size
	}
	return sent, size
}

// Three nydusds, each told of its node in another way, read all of an image at once, and one copy leaves the registry.
func TestRootNydusdReadsThroughTheMirror(t *testing.T) {
	ctx, r := newNydusdRig(t)
	group, groupCtx := errgroup.WithContext(ctx)
	for way, v := range r.ways() {
		group.Go(func() error { return r.reads(groupCtx, way, v) })
	}
	check(t, group.Wait())
	sent, size := r.served()
	if sent != size {
		t.Errorf("the registry sent %d bytes of data to three nodes, want one copy: %d", sent, size)
	}
	for _, n := range r.nodes {
		if m, err := n.Metrics(ctx); err != nil || m.Sum("shoal_mirror_sent_bytes_total") < lazyModel {
			t.Errorf("%s: its mirror sent %v bytes (%v), want all of the model", n.Name(), m.Sum("shoal_mirror_sent_bytes_total"), err)
		}
	}

	last := r.nodes[2]
	last.Kill()
	v := r.ways()["the registry as host, with a mirror before it"]
	v.name = "alone"
	v.server = r.registry.Addr()
	check(t, r.reads(ctx, "the node's daemon is down", v))
	if now, _ := r.served(); now < sent+lazyModel {
		t.Errorf("without its node nydusd read %d bytes at the registry, want %d at the least", now-sent, int64(lazyModel))
	}
}

// reads mounts the variant and reads every file of it.
func (r *nydusdRig) reads(ctx context.Context, way string, v nydusVariant) error {
	root, err := v.mountNydusd(ctx)
	if err != nil {
		return err
	}
	if _, err := sameFiles(r.source, filepath.Join(root, "models", "model")); err != nil {
		return err
	}
	base, err := filepath.Glob(filepath.Join(root, "data-*"))
	if err != nil {
		return err
	}
	for _, file := range base {
		if _, err := os.ReadFile(file); err != nil {
			return err
		}
	}
	r.Logf("%s: nydusd shows the right bytes", way)
	return nil
}
