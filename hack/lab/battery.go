package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

const (
	// batteryPatience is when a pull is given up: containerd's own is longer than anybody waits.
	batteryPatience = 90 * time.Second
	// batteryChunk is the chunk size of containerd's parallel mode: several for the large layer, one for the small one.
	batteryChunk = 4 << 20
)

// A puller program of the battery: a containerd of some version, and how it fetches layers.
type contestant struct {
	version  string // 1.6, …
	bin      string // folder of its programs
	parallel bool   // layers in parallel chunks
}

func (c contestant) mode() string {
	if c.parallel {
		return "parallel"
	}
	return "single"
}

func (c contestant) String() string { return c.version + " " + c.mode() }

// contestants are all versions in all their modes: Debian's, the pinned one, and those that hack/setup containerds builds.
func contestants(cache string) []contestant {
	of := func(version string) string { return filepath.Join(cache, "containerd-"+version, "bin") }
	pinned := filepath.Join(cache, "bin")
	return []contestant{
		{version: "1.6", bin: "/usr/bin"},
		{version: "1.7", bin: of("1.7")},
		{version: "2.1", bin: of("2.1")}, {version: "2.1", bin: of("2.1"), parallel: true},
		{version: "2.3", bin: pinned}, {version: "2.3", bin: pinned, parallel: true},
	}
}

// A batteryCase is a fault that a pull by containerd meets.
type batteryCase struct {
	name, what string
	// bound is what the fault may add to the pull.
	bound time.Duration
	// held has another node read the image before, so that there is a peer that holds it.
	held bool
	// before happens before the pull, during in its midst. Either may be nil.
	before, during func(context.Context, *rig) error
}

// A rig is where a case runs: the first node is under test, with a containerd; the second one is its peer.
type rig struct {
	*swarm

	containerd *cluster.Containerd
	images     int
	undo       []func() error // what to take back before the cluster is removed
}

// rigImage is an image in the registry.
type rigImage struct {
	tag   string
	blobs []blob
	size  int64 // of all layers
}

// withRig makes a cluster with a containerd, calls fn and removes the cluster.
func withRig(ctx context.Context, shoal string, who contestant, log io.Writer, fn func(*rig) error) (err error) {
	c, err := cluster.New(ctx, cluster.Config{Shoal: shoal, Link: faultLink, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	r := &rig{}
	defer func() {
		for _, undo := range slices.Backward(r.undo) {
			err = errors.Join(err, undo())
		}
	}()
	if r.swarm, err = newSwarm(ctx, c, swarmConfig{nodes: 2, proxied: true, supervised: cluster.UnitSupervision()}); err != nil {
		return err
	}
	cfg := cluster.ContainerdConfig{Bin: who.bin, CRI: true}
	if who.parallel {
		cfg.ChunkBytes = batteryChunk
	}
	if r.containerd, err = r.node().Host().StartContainerdAs(ctx, cfg); err != nil {
		return err
	}
	if err := r.node().ConfigureMirror(ctx, r.containerd, r.registry); err != nil {
		return err
	}
	return fn(r)
}

// node is the one under test, peer and seed are those it gets bytes from.
func (r *rig) node() *cluster.Node { return r.nodes[0] }
func (r *rig) peer() *cluster.Node { return r.nodes[1] }
func (r *rig) seed() *cluster.Node { return r.seeds[0] }

func (r *rig) ref(i rigImage) string { return r.registry.Addr() + "/" + repository + ":" + i.tag }

// image pushes another image.
func (r *rig) image(ctx context.Context) (i rigImage, err error) {
	r.images++
	i.tag = fmt.Sprint(r.images)
	img, err := cluster.RandomImage(r.Dir(), uint64(time.Now().UnixNano()), faultLayer, faultLayer2)
	if err != nil {
		return i, err
	}
	if err := r.registry.Push(ctx, repository, i.tag, img); err != nil {
		return i, err
	}
	i.blobs, err = layersOf(img)
	for _, b := range i.blobs {
		i.size += b.size
	}
	return i, err
}

// hold has a node read all of an image.
func (r *rig) hold(ctx context.Context, n *cluster.Node, i rigImage) error {
	var manifest ocispec.Manifest
	if err := r.get(ctx, n, "manifests/"+i.tag, func(body io.Reader) error { return json.NewDecoder(body).Decode(&manifest) }); err != nil {
		return err
	}
	for _, d := range append(manifest.Layers, manifest.Config) {
		drain := func(body io.Reader) error { _, err := io.Copy(io.Discard, body); return err }
		if err := r.get(ctx, n, "blobs/"+d.Digest.String(), drain); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) get(ctx context.Context, n *cluster.Node, path string, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.MirrorURL()+"/v2/"+repository+"/"+path+"?ns="+r.registry.Addr(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", ocispec.MediaTypeImageManifest+", */*")
	resp, err := n.Host().Client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s of %s: %s", path, n.Name(), resp.Status)
	}
	return read(resp.Body)
}

// pull has containerd pull an image and checks what it holds then. act happens when a quarter of the bytes has moved.
func (r *rig) pull(ctx context.Context, i rigImage, act func() error) (time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, batteryPatience, fmt.Errorf("not done in %v", batteryPatience))
	defer cancel()
	var before int64
	if act != nil {
		before = r.moved(ctx)
	}
	start, pulled := time.Now(), make(chan error, 1)
	go func() { pulled <- r.containerd.PullCRI(ctx, r.ref(i), cluster.Login{}) }() // ends with ctx
	acted := make(chan error, 1)
	go func() { // ends with what it waits for, or with the pull
		if act == nil {
			acted <- nil
			return
		}
		for r.moved(ctx)-before < i.size/4 {
			if err := sleep(ctx, 20*time.Millisecond); err != nil {
				acted <- err
				return
			}
		}
		acted <- act()
	}()
	err := <-pulled
	took := time.Since(start)
	if err != nil {
		cancel()
		return took, errors.Join(err, ignoreCanceled(<-acted))
	}
	if err := <-acted; err != nil {
		return took, err
	}
	for _, b := range i.blobs {
		got, err := r.containerd.ContentDigest(ctx, b.digest)
		if err != nil {
			return took, err
		}
		if got != b.digest {
			return took, fmt.Errorf("containerd holds %s with the bytes of %s", b.digest, got)
		}
	}
	return took, nil
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// moved is how much the node under test has given to its readers.
func (r *rig) moved(ctx context.Context) (sum int64) {
	read, err := r.node().Read(ctx)
	if err != nil {
		return 0
	}
	for _, bytes := range read {
		sum += bytes
	}
	return sum
}

// batteryResult is what one case did to one contestant, over some runs.
type batteryResult struct {
	Containerd   string    `json:"containerd"`
	Mode         string    `json:"mode"`
	Case         string    `json:"case"`
	What         string    `json:"what"`
	OK           bool      `json:"ok"` // every pull succeeded with the right bytes
	Error        string    `json:"error,omitempty"`
	CalmSeconds  float64   `json:"calm_seconds"`  // median of the pulls without the fault
	AddedSeconds float64   `json:"added_seconds"` // median
	BoundSeconds float64   `json:"bound_seconds"`
	WithinBound  bool      `json:"within_bound"`
	AllAdded     []float64 `json:"all_added_seconds"`
}

// suffer runs a case some times, each in a cluster of its own in which another image was pulled in peace before.
func (b battery) suffer(ctx context.Context, who contestant, test batteryCase) batteryResult {
	result := batteryResult{Containerd: who.version, Mode: who.mode(), Case: test.name, What: test.what, OK: true, BoundSeconds: test.bound.Seconds()}
	var calms []float64
	for range b.runs {
		err := withRig(ctx, b.shoal, who, b.log, func(r *rig) error {
			calm, took, err := r.sufferOnce(ctx, test)
			if err != nil {
				return r.withLogs(err)
			}
			calms, result.AllAdded = append(calms, calm.Seconds()), append(result.AllAdded, (took-calm).Seconds())
			return nil
		})
		if err != nil {
			result.OK, result.Error = false, err.Error()
			return result
		}
	}
	result.CalmSeconds, result.AddedSeconds = median(calms), median(result.AllAdded)
	result.WithinBound = result.AddedSeconds <= result.BoundSeconds
	return result
}

func (r *rig) sufferOnce(ctx context.Context, test batteryCase) (calm, took time.Duration, err error) {
	var images [2]rigImage
	for at := range images {
		if images[at], err = r.image(ctx); err != nil {
			return 0, 0, err
		}
		if test.held {
			if err := r.hold(ctx, r.peer(), images[at]); err != nil {
				return 0, 0, err
			}
		}
	}
	if calm, err = r.pull(ctx, images[0], nil); err != nil {
		return 0, 0, fmt.Errorf("before anything happened: %w", err)
	}
	if test.before != nil {
		if err := test.before(ctx, r); err != nil {
			return 0, 0, err
		}
	}
	var act func() error
	if test.during != nil {
		act = func() error { return test.during(ctx, r) }
	}
	took, err = r.pull(ctx, images[1], act)
	return calm, took, err
}

func (r *rig) withLogs(err error) error {
	for _, p := range []*cluster.Process{r.node().Process, r.containerd.Process} {
		err = fmt.Errorf("%w\n--- %s\n%s", err, p.Log(), strings.TrimSpace(p.Tail()))
	}
	return err
}
