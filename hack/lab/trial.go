package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// What a trial moves over which links, so that reading takes some two seconds.
const (
	trialSize  = 24 << 20
	trialLink  = cluster.Rate(100e6)
	trialNodes = 4
	// trialPatience is when a reader gives up for good.
	trialPatience = time.Minute
)

// A trial is a swarm in which all nodes read a blob at once while something happens to it.
type trial struct {
	*swarm

	shoal     string
	converted bool // the blobs have chunk maps
	images    int
	undo      []func() error // what to take back before the cluster is removed

	mu      sync.Mutex // guards what follows
	lost    map[*cluster.Node]bool
	cancels map[*cluster.Node]context.CancelFunc // of the running readers
	away    map[*cluster.Node]bool
	turned  turned
}

// turned counts what readers of a trial had to do themselves.
type turned struct {
	fallbacks int // times that one went to the registry, because the mirror failed
	again     int // times that one had wrong bytes, of the registry among them, and read all anew
}

// trialImage is an image of one layer that matters.
type trialImage struct {
	tag string
	blob
}

// withTrial makes a cluster, calls fn and removes the cluster.
func withTrial(ctx context.Context, shoal string, log io.Writer, converted bool, fn func(*trial) error) (err error) {
	c, err := cluster.New(ctx, cluster.Config{Shoal: shoal, Link: trialLink, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	t := &trial{shoal: shoal, converted: converted, lost: map[*cluster.Node]bool{}, away: map[*cluster.Node]bool{},
		cancels: map[*cluster.Node]context.CancelFunc{}}
	defer func() {
		for _, undo := range slices.Backward(t.undo) {
			err = errors.Join(err, undo())
		}
	}()
	t.swarm, err = newSwarm(ctx, c, swarmConfig{nodes: trialNodes, seeds: 2, schedulers: 2, proxied: true})
	if err != nil {
		return err
	}
	return fn(t)
}

// image pushes another image.
func (t *trial) image(ctx context.Context) (trialImage, error) {
	t.images++
	i := trialImage{tag: fmt.Sprint(t.images)}
	size := int64(trialSize)
	if t.converted {
		size = 4 << 10 // the model is what is read
	}
	img, err := cluster.RandomImage(t.Dir(), uint64(time.Now().UnixNano()), size)
	if err != nil {
		return i, err
	}
	var blobs []blob
	if t.converted {
		blobs, err = t.convert(ctx, t.shoal, t.registry.Addr()+"/"+repository+":"+i.tag, img, trialSize)
	} else if err = t.registry.Push(ctx, repository, i.tag, img); err == nil {
		blobs, err = layersOf(img)
	}
	if err != nil {
		return i, err
	}
	i.blob = slices.MaxFunc(blobs, func(a, b blob) int { return int(a.size - b.size) })
	return i, nil
}

// lose says that a node is gone for good: its reader is called off and need not succeed.
func (t *trial) lose(nodes ...*cluster.Node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range nodes {
		t.lost[n] = true
		if cancel := t.cancels[n]; cancel != nil {
			cancel()
		}
	}
}

func (t *trial) isLost(n *cluster.Node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost[n]
}

// setAway says that a node's daemon is down and comes back: its reader waits for it.
func (t *trial) setAway(n *cluster.Node, away bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.away[n] = away
}

func (t *trial) isAway(n *cluster.Node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.away[n]
}

// living returns the nodes that are not lost.
func (t *trial) living() []*cluster.Node {
	return slices.DeleteFunc(slices.Clone(t.nodes), t.isLost)
}

// readAll has all nodes read the image's blob and returns when the last one had it that is not lost.
func (t *trial) readAll(ctx context.Context, i trialImage) (time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, trialPatience, fmt.Errorf("not done in %v", trialPatience))
	defer cancel()
	start := time.Now()
	var group errgroup.Group // all of them are told, not only the first
	errs := make([]error, len(t.nodes))
	for at, n := range t.nodes {
		if t.isLost(n) {
			continue
		}
		mine, cancel := context.WithCancel(ctx)
		t.mu.Lock()
		t.cancels[n] = cancel
		t.mu.Unlock()
		group.Go(func() error {
			defer cancel()
			if err := (&puller{trial: t, node: n, image: i}).run(mine); err != nil && !t.isLost(n) {
				errs[at] = fmt.Errorf("%s: %w; the end of its log:\n%s", n.Name(), err, n.Tail())
			}
			return nil
		})
	}
	_ = group.Wait() // they are in errs
	return time.Since(start), errors.Join(errs...)
}

// during has all nodes read the blob and calls act when a quarter of the bytes has moved.
func (t *trial) during(ctx context.Context, i trialImage, act func() error) (time.Duration, error) {
	before := t.swarm.read(ctx)
	var took time.Duration
	var group errgroup.Group
	over := make(chan struct{})
	group.Go(func() (err error) {
		defer close(over)
		took, err = t.readAll(ctx, i)
		return err
	})
	group.Go(func() error {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for t.swarm.read(ctx)-before < i.size*int64(len(t.nodes))/4 {
			select {
			case <-over:
				return nil // slow as this machine is, the act comes after the last byte; or the readers failed, who say so
			case <-tick.C:
			}
		}
		return act()
	})
	err := group.Wait()
	return took, err
}

// A puller reads one blob as containerd does: from its node's mirror, after a cut from where it stands, and from the registry when the
// mirror refuses. What it got is hashed at the end; wrong bytes are read anew from the registry, as further pulls would.
type puller struct {
	*trial

	node   *cluster.Node
	image  trialImage
	hash   hash.Hash
	off    int64
	parts  int  // answers that it is made of
	direct bool // some of it came from the registry
	mapped bool // its mirror has been shown the chunk map
	wrong  int  // times that the digest was not right
}

// vouched reports whether the mirror stands for all that the puller has: it gives nothing out that it has not checked by a chunk map, and of
// other blobs not the end before it has checked the whole, of which an earlier answer's part may not be one.
func (p *puller) vouched() bool { return !p.direct && (p.mapped || p.parts == 1) }

// pause between two tries of the registry, which containerd leaves to the kubelet.
const pullPause = 200 * time.Millisecond

func (p *puller) run(ctx context.Context) error {
	p.hash = sha256.New()
	if err := p.learn(ctx); err != nil {
		p.Logf("  %s: the manifest: %v", p.node.Name(), err)
	} else {
		p.mapped = p.converted
	}
	mirror := true
	for {
		base := p.node.MirrorURL()
		if !mirror {
			base = "http://" + p.registry.Addr()
		}
		before := p.off
		err := p.part(ctx, base)
		if p.off > before {
			p.parts, p.direct = p.parts+1, p.direct || !mirror
		}
		switch {
		case p.off == p.image.size:
			got := digest.NewDigest(digest.SHA256, p.hash)
			if got == p.image.digest {
				return nil
			}
			if p.vouched() || !mirror && p.wrong > 3 {
				return fmt.Errorf("got the digest %s, last from %s, want %s", got, base, p.image.digest)
			}
			p.Logf("  %s: wrong bytes, last from %s, pulled again", p.node.Name(), base)
			p.count(func(t *turned) { t.again++ })
			p.hash, p.off, p.parts, p.direct, mirror, p.wrong = sha256.New(), 0, 0, false, false, p.wrong+1
		case ctx.Err() != nil:
			return fmt.Errorf("%w after %d bytes: %w", context.Cause(ctx), p.off, err)
		case mirror && p.isAway(p.node):
		case mirror && p.off == before:
			p.Logf("  %s: goes to the registry at %d of %d bytes: %v", p.node.Name(), p.off, p.image.size, err)
			p.count(func(t *turned) { t.fallbacks++ })
			mirror = false
		}
		if err := sleep(ctx, pullPause); err != nil {
			return err
		}
	}
}

func (t *trial) count(add func(*turned)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	add(&t.turned)
}

// learn reads the tag's manifest through the mirror, of an index the first one too, as containerd does before it asks for a layer. So the
// mirror learns the blobs' sizes and chunk maps.
func (p *puller) learn(ctx context.Context) error {
	index, err := p.manifest(ctx, p.image.tag)
	if err != nil || len(index.Manifests) == 0 {
		return err
	}
	_, err = p.manifest(ctx, index.Manifests[0].Digest.String())
	return err
}

func (p *puller) manifest(ctx context.Context, reference string) (index ocispec.Index, err error) {
	resp, err := p.get(ctx, p.node.MirrorURL(), "manifests/"+reference)
	if err != nil {
		return index, err
	}
	defer resp.Body.Close()
	return index, json.NewDecoder(resp.Body).Decode(&index)
}

// part reads on from where the puller stands, as far as it gets.
func (p *puller) part(ctx context.Context, base string) error {
	resp, err := p.get(ctx, base, "blobs/"+p.image.digest.String())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if p.off > 0 && resp.StatusCode == http.StatusOK {
		return errors.New("the range was ignored")
	}
	n, err := io.Copy(p.hash, io.LimitReader(resp.Body, p.image.size-p.off))
	p.off += n
	return err
}

func (p *puller) get(ctx context.Context, base, part string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v2/"+repository+"/"+part+"?ns="+p.registry.Addr(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, */*")
	if p.off > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", p.off))
	}
	resp, err := p.node.Host().Client().Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		resp.Body.Close()
		return nil, errors.New(resp.Status)
	}
	return resp, nil
}

// sleep waits for a while, or less when ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
