package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// Sizes of the image that the cases pull, and the links they pull it over: a pull takes a few seconds, so that what is
// to happen in its midst does.
const (
	faultLayer  = 20 << 20
	faultLayer2 = 4 << 20
	faultModel  = 8 << 20
	faultLink   = cluster.Rate(100e6)
	// fallbackBound is what containerd may take to find out that the node is dead, with a tiny image pulled besides.
	fallbackBound = 3 * time.Second
)

// A faultCase is a pull by real containerds that something happens to. It fails when a pull fails or wrong bytes arrive.
type faultCase struct {
	name string
	what string
	run  func(context.Context, *faultRun) error
}

// faultRun is the cluster of one case: three nodes with containerds, and an image in the registry that none has.
type faultRun struct {
	*swarm

	ref   string
	blobs []blob
	size  int64          // of all layers
	undo  []func() error // what to take back before the cluster is removed
}

func faultCases() []faultCase {
	return []faultCase{
		{"none", "nothing happens: what the others are compared with", func(ctx context.Context, r *faultRun) error {
			return r.pull(ctx)
		}},
		{"scheduler-before", "the scheduler is killed before the pull", func(ctx context.Context, r *faultRun) error {
			r.schedulers[0].Kill()
			return r.pull(ctx)
		}},
		{"scheduler-during", "the scheduler is killed in the midst of the pull", func(ctx context.Context, r *faultRun) error {
			return r.pullWith(ctx, func() error { r.schedulers[0].Kill(); return nil })
		}},
		{"node-before", "a node's daemon is killed before the pull: its containerd goes to the registry", nodeBefore},
		{"node-during", "a node's daemon is killed in the midst of the pull", func(ctx context.Context, r *faultRun) error {
			return r.pullWith(ctx, func() error { r.nodes[0].Kill(); return nil })
		}},
		{"seed-during", "the seed is killed in the midst of the pull", func(ctx context.Context, r *faultRun) error {
			return r.pullWith(ctx, func() error { r.seeds[0].Kill(); return nil })
		}},
		{"seed-hung", "the seed hangs in the midst of the pull", func(ctx context.Context, r *faultRun) error {
			return r.pullWith(ctx, r.seeds[0].Pause)
		}},
		{"registry-down", "the registry is down while the cluster holds the image", registryDown},
		{"disk-full-before", "a node's disk has no room for the image", func(ctx context.Context, r *faultRun) error {
			_, err := r.onSmallDisk(ctx, 8<<20)
			if err != nil {
				return err
			}
			return r.pull(ctx)
		}},
		{"disk-full-during", "a node's disk fills up in the midst of the pull", func(ctx context.Context, r *faultRun) error {
			fill, err := r.onSmallDisk(ctx, 96<<20)
			if err != nil {
				return err
			}
			return r.pullWith(ctx, fill)
		}},
		{"chunk-flipped", "a byte is flipped on the disk of all who hold the image", chunkFlipped},
	}
}

func nodeBefore(ctx context.Context, r *faultRun) error {
	img, err := cluster.RandomImage(r.Dir(), 2, 64<<10)
	if err != nil {
		return err
	}
	if err := r.registry.Push(ctx, "lab/tiny", "1", img); err != nil {
		return err
	}
	r.nodes[0].Kill()
	start := time.Now()
	if err := r.containerds[0].Pull(ctx, r.registry.Addr()+"/lab/tiny:1"); err != nil {
		return err
	}
	took := time.Since(start)
	r.Logf("  with its node dead, containerd pulled a tiny image in %d ms", took.Milliseconds())
	if took > fallbackBound {
		return fmt.Errorf("with its node dead, containerd took %.1f s for a tiny image, want at most %v", took.Seconds(), fallbackBound)
	}
	return r.pull(ctx)
}

func registryDown(ctx context.Context, r *faultRun) error {
	if err := r.containerds[0].Pull(ctx, r.ref); err != nil {
		return err
	}
	r.registry.Kill()
	return r.pull(ctx)
}

func chunkFlipped(ctx context.Context, r *faultRun) error {
	if err := r.containerds[0].Pull(ctx, r.ref); err != nil {
		return err
	}
	for _, n := range []*cluster.Node{r.seeds[0], r.nodes[0]} {
		if err := flipByte(n.DataDir(), r.blobs[0].size); err != nil {
			return fmt.Errorf("%s: %w", n.Name(), err)
		}
	}
	if err := r.pull(ctx); err != nil {
		return err
	}
	var rejected float64
	for _, n := range append(r.nodes[1:], r.seeds[0]) {
		m, err := n.Metrics(ctx)
		if err != nil {
			return err
		}
		rejected += m.Sum("shoal_peer_verify_failures_total")
	}
	if rejected == 0 {
		return errors.New("the flipped byte was counted by nobody in shoal_peer_verify_failures_total")
	}
	return nil
}

// onSmallDisk restarts the first node with its data on a disk of that size, and returns what fills it.
func (r *faultRun) onSmallDisk(ctx context.Context, size int64) (fill func() error, err error) {
	n := r.nodes[0]
	n.Kill()
	if err := os.RemoveAll(n.DataDir()); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(n.DataDir(), 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", n.DataDir(), "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		return nil, fmt.Errorf("a small disk for %s: %w", n.Name(), err)
	}
	r.undo = append(r.undo, func() error { return unix.Unmount(n.DataDir(), unix.MNT_DETACH) })
	return func() error {
		f, err := os.Create(filepath.Join(n.DataDir(), "ballast"))
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, io.LimitReader(zeros{}, size)); !errors.Is(err, unix.ENOSPC) {
			return errors.Join(fmt.Errorf("the disk of %s did not fill up", n.Name()), err, f.Close())
		}
		return f.Close()
	}, n.Start(ctx)
}

// zeros reads as zeros without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// flipByte changes the middle byte of the blob that a node holds, known by its size.
func flipByte(dataDir string, size int64) error {
	flipped := 0
	err := filepath.WalkDir(dataDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil || info.Size() != size {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		var b [1]byte
		if _, err := f.ReadAt(b[:], size/2); err != nil {
			return err
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b[:], size/2); err != nil {
			return err
		}
		flipped++
		return f.Sync()
	})
	if err == nil && flipped == 0 {
		err = fmt.Errorf("no file of %d bytes in %s", size, dataDir)
	}
	return err
}

// pull has all containerds pull, and checks what they hold.
func (r *faultRun) pull(ctx context.Context) error {
	took, err := r.pullAll(ctx, r.ref)
	if err != nil {
		return r.withLogs(err)
	}
	r.Logf("  pulled in %s", seconds(took))
	return r.check(ctx)
}

// pullWith has all containerds pull, and when a quarter of the bytes has moved, act.
func (r *faultRun) pullWith(ctx context.Context, act func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pulled := make(chan error, 1)
	go func() { // ends with the pulls, which end with ctx
		took, err := r.pullAll(ctx, r.ref)
		if err == nil {
			r.Logf("  pulled in %s", seconds(took))
		}
		pulled <- err
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for r.read(ctx) < r.size*int64(len(r.nodes))/4 {
		select {
		case err := <-pulled:
			return r.withLogs(fmt.Errorf("the pull was over before anything could happen to it (%w)", err))
		case <-tick.C:
		}
	}
	if err := act(); err != nil {
		return err
	}
	if err := <-pulled; err != nil {
		return r.withLogs(err)
	}
	return r.check(ctx)
}

// check compares what the containerds hold with the digests of the image.
func (r *faultRun) check(ctx context.Context) error {
	for _, c := range r.containerds {
		for _, b := range r.blobs {
			got, err := c.ContentDigest(ctx, b.digest)
			if err != nil {
				return err
			}
			if got != b.digest {
				return fmt.Errorf("%s holds %s with the bytes of %s", c.Name(), b.digest, got)
			}
		}
	}
	return nil
}

func (r *faultRun) withLogs(err error) error {
	for _, n := range append(r.nodes, r.seeds[0]) {
		err = fmt.Errorf("%w\n--- %s\n%s", err, n.Log(), n.Tail())
	}
	return err
}

// runFault makes a cluster for the case, runs it and removes the cluster. The image is an ordinary one, whose blobs have no chunk
// map, or a converted one.
func runFault(ctx context.Context, shoal string, log io.Writer, test faultCase, converted bool) (err error) {
	c, err := cluster.New(ctx, cluster.Config{Shoal: shoal, Link: faultLink, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	r := &faultRun{}
	defer func() {
		for _, undo := range r.undo {
			err = errors.Join(err, undo())
		}
	}()
	if r.swarm, err = newSwarm(ctx, c, swarmConfig{nodes: 3}); err != nil {
		return err
	}
	if err := r.addContainerds(ctx); err != nil {
		return err
	}
	img, err := cluster.RandomImage(c.Dir(), 1, faultLayer, faultLayer2)
	if err != nil {
		return err
	}
	r.ref = r.registry.Addr() + "/" + repository + ":1"
	if converted {
		r.blobs, err = r.convert(ctx, shoal, r.ref, img, faultModel)
	} else if err = r.registry.Push(ctx, repository, "1", img); err == nil {
		r.blobs, err = layersOf(img)
	}
	if err != nil {
		return err
	}
	for _, b := range r.blobs {
		r.size += b.size
	}
	if err := test.run(ctx, r); err != nil {
		return err
	}
	served, err := r.registry.Served()
	if err != nil {
		return err
	}
	var sum int64
	for _, b := range r.blobs {
		sum += served[b.digest]
	}
	r.Logf("  the registry sent %.2f copies", float64(sum)/float64(r.size))
	return nil
}

// convert pushes the image as the base of a converted one with a model of random bytes, and returns its layers.
func (s *swarm) convert(ctx context.Context, shoal, ref string, img v1.Image, model int64) ([]blob, error) {
	dir, err := os.MkdirTemp(s.Dir(), "convert-")
	if err != nil {
		return nil, err
	}
	if err := writeBase(filepath.Join(dir, "base"), img); err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(dir, "model"), 0o755); err != nil {
		return nil, err
	}
	weights := make([]byte, model)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(ref))).Read(weights) // never fails
	if err := os.WriteFile(filepath.Join(dir, "model", "weights.bin"), weights, 0o644); err != nil {
		return nil, err
	}
	out, err := s.registry.Host().Run(ctx, shoal, "convert", "--plain-http", "--quiet", "--output", "json",
		"--model", filepath.Join(dir, "model"), "--base", "oci:"+filepath.Join(dir, "base"), "--target", ref)
	if err != nil {
		return nil, err
	}
	var result struct {
		Layers []struct {
			Kind   string
			Digest digest.Digest
			Size   int64
		}
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return nil, fmt.Errorf("summary of shoal convert: %w", err)
	}
	var blobs []blob
	for _, l := range result.Layers {
		if l.Kind == "base" || l.Kind == "model" {
			blobs = append(blobs, blob{l.Digest, l.Size})
		}
	}
	return blobs, nil
}

// writeBase makes the folder dir an OCI layout that has the image.
func writeBase(dir string, img v1.Image) error {
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return p.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
}

func faultTools() []string { return []string{"ip", "tc", "docker-registry", "containerd", "ctr"} }

func seconds(took []time.Duration) string {
	var words []string
	for _, d := range took {
		words = append(words, fmt.Sprintf("%.1f s", d.Seconds()))
	}
	return strings.Join(words, ", ")
}
