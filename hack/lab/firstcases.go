package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

const (
	firstRange  = 64 << 10 // of the first range of a huge blob
	sharedRange = 1 << 20  // of the ranges that several nodes read
	sharedCount = 8
	// settle is how long after the ranges were read the registry is still watched: what is fetched ahead counts too.
	settle = 2 * time.Second
)

// firstBench measures in one cluster. Its huge blobs are pushed once and read from cold by emptying the stores.
type firstBench struct {
	*swarm

	cfg    firstConfig
	images int
	mapped trialImage // a huge blob with a chunk map
	plain  trialImage // and one without
	result firstResult
}

// image pushes another image with one blob of the size.
func (m *firstBench) image(ctx context.Context, size int64, converted bool) (trialImage, error) {
	m.images++
	i := trialImage{tag: fmt.Sprintf("first-%d", m.images)}
	base := size
	if converted {
		base = 4 << 10 // the model is what is read
	}
	img, err := cluster.RandomImage(m.Dir(), uint64(time.Now().UnixNano()), base)
	if err != nil {
		return i, err
	}
	var blobs []blob
	if converted {
		blobs, err = m.convert(ctx, m.cfg.shoal, m.registry.Addr()+"/"+repository+":"+i.tag, img, size)
	} else if err = m.registry.Push(ctx, repository, i.tag, img); err == nil {
		blobs, err = layersOf(img)
	}
	if err != nil {
		return i, err
	}
	i.blob = slices.MaxFunc(blobs, func(a, b blob) int { return int(a.size - b.size) })
	return i, nil
}

// span is a part of a blob, in bytes.
type span struct{ off, length int64 }

// errRefused is an answer that is none.
var errRefused = errors.New("refused")

// readSpan reads a part of a blob on a node's host, from its mirror or from the registry, and returns how long that took.
func (m *firstBench) readSpan(ctx context.Context, n *cluster.Node, base string, b blob, s span) (time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v2/"+repository+"/blobs/"+b.digest.String()+"?ns="+m.registry.Addr(), nil)
	if err != nil {
		return 0, err
	}
	if s.length != b.size {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", s.off, s.off+s.length-1))
	}
	start := time.Now()
	resp, err := n.Host().Client().Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		return 0, fmt.Errorf("%w: %s", errRefused, resp.Status)
	}
	got, err := io.Copy(io.Discard, resp.Body)
	if ctx.Err() == nil && (err == nil && got != s.length || errors.Is(err, io.ErrUnexpectedEOF)) {
		err = fmt.Errorf("%w after %d of %d bytes", errRefused, got, s.length) // cut: containerd goes on at the registry
	}
	return time.Since(start), err
}

func (m *firstBench) origin() string { return "http://" + m.registry.Addr() }

// learn has a node's mirror read the manifests of an image, as a pull does first.
func (m *firstBench) learn(ctx context.Context, n *cluster.Node, i trialImage) error {
	return (&puller{trial: &trial{swarm: m.swarm}, node: n, image: i}).learn(ctx)
}

// empty restarts nodes with nothing in their stores.
func (m *firstBench) empty(ctx context.Context, nodes ...*cluster.Node) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range nodes {
		group.Go(func() error {
			n.Kill()
			if err := os.RemoveAll(n.DataDir()); err != nil {
				return err
			}
			return n.Start(ctx)
		})
	}
	return group.Wait()
}

// samples gathers what reads of several kinds took, in the order the kinds were seen first.
type samples struct {
	kinds  []string
	took   map[string][]float64
	failed map[string]int
}

func newSamples() *samples { return &samples{took: map[string][]float64{}, failed: map[string]int{}} }

// add notes how a read ended; only errors that are no refusal are returned.
func (s *samples) add(kind string, took time.Duration, err error) error {
	if !slices.Contains(s.kinds, kind) {
		s.kinds = append(s.kinds, kind)
	}
	if errors.Is(err, errRefused) {
		s.failed[kind]++
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	s.took[kind] = append(s.took[kind], took.Seconds())
	return nil
}

func (s *samples) latencies() []latency {
	var out []latency
	for _, kind := range s.kinds {
		took := s.took[kind]
		out = append(out, latency{What: kind, Samples: len(took), Failed: s.failed[kind],
			MedianSeconds: quantile(took, 0.5), P99Seconds: quantile(took, 0.99)})
	}
	return out
}

// smallBlobs reads cold small blobs whole: through a mirror, by shoal get, and from the registry.
func (m *firstBench) smallBlobs(ctx context.Context) error {
	m.Logf("small blobs, cold")
	all := newSamples()
	for round := range m.cfg.rounds {
		n := m.nodes[round%len(m.nodes)]
		mirrored, err := m.image(ctx, m.cfg.small, false)
		if err != nil {
			return err
		}
		got, err := m.image(ctx, m.cfg.small, false)
		if err != nil {
			return err
		}
		whole := func(i trialImage) span { return span{0, i.size} }
		took, err := m.readSpan(ctx, n, m.origin(), mirrored.blob, whole(mirrored))
		if err := all.add("small blob, registry", took, err); err != nil {
			return err
		}
		took, err = m.readSpan(ctx, n, n.MirrorURL(), mirrored.blob, whole(mirrored))
		if err := all.add("small blob, mirror", took, err); err != nil {
			return err
		}
		took, err = m.get(ctx, n, got)
		if err := all.add("small blob, shoal get", took, err); err != nil {
			return err
		}
	}
	m.result.Latencies = append(m.result.Latencies, all.latencies()...)
	return nil
}

// get runs shoal get on a node's host and returns what it says that it took, without the start of the program.
func (m *firstBench) get(ctx context.Context, n *cluster.Node, i trialImage) (time.Duration, error) {
	out, err := n.Host().Run(ctx, m.cfg.shoal, "get", "--plain-http", "--no-fallback", "--quiet", "--output", "json", "--out", "/dev/null",
		m.registry.Addr()+"/"+repository+"@"+i.digest.String())
	if err != nil {
		return 0, err
	}
	var result struct{ Seconds float64 }
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return 0, err
	}
	return time.Duration(result.Seconds * float64(time.Second)), nil
}

// hugeBlobs reads the first ranges of huge blobs that no host holds anything of.
func (m *firstBench) hugeBlobs(ctx context.Context) (err error) {
	m.Logf("ranges of huge blobs, cold")
	if m.mapped, err = m.image(ctx, m.cfg.huge, true); err != nil {
		return err
	}
	if m.plain, err = m.image(ctx, m.cfg.huge, false); err != nil {
		return err
	}
	all := newSamples()
	for range m.cfg.rounds {
		for _, kind := range []struct {
			name string
			trialImage
		}{{"chunk map", m.mapped}, {"none", m.plain}} {
			if err := m.firstRanges(ctx, all, kind.name, kind.trialImage); err != nil {
				return err
			}
		}
	}
	m.result.Latencies = append(m.result.Latencies, all.latencies()...)
	return nil
}

// firstRanges reads two ranges of a blob, one after the other, from a cold cluster.
func (m *firstBench) firstRanges(ctx context.Context, all *samples, name string, i trialImage) error {
	n := m.nodes[0]
	if err := m.empty(ctx, n, m.seeds[0]); err != nil {
		return err
	}
	if err := m.learn(ctx, n, i); err != nil {
		return err
	}
	for _, which := range []string{"first", "next"} {
		s := span{rand.Int64N(i.size - firstRange), firstRange}
		took, err := m.readSpan(ctx, n, m.origin(), i.blob, s)
		if err := all.add("64 KiB range, registry", took, err); err != nil {
			return err
		}
		took, err = m.readSpan(ctx, n, n.MirrorURL(), i.blob, s)
		if err := all.add(fmt.Sprintf("64 KiB range, %s, map: %s", which, name), took, err); err != nil {
			return err
		}
	}
	return nil
}

// sharedRanges has all nodes read the same ranges of a cold blob at once.
func (m *firstBench) sharedRanges(ctx context.Context) error {
	m.Logf("the same ranges on %d nodes, cold", len(m.nodes))
	for _, kind := range []struct {
		name string
		trialImage
	}{{"map: chunk map", m.mapped}, {"map: none", m.plain}} {
		if err := m.empty(ctx, append(slices.Clone(m.nodes), m.seeds...)...); err != nil {
			return err
		}
		r, err := m.share(ctx, kind.trialImage)
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
		r.What = fmt.Sprintf("%d of 1 MiB, %s", sharedCount, kind.name)
		m.result.Ranges = append(m.result.Ranges, r)
	}
	return nil
}

func (m *firstBench) share(ctx context.Context, i trialImage) (r sharedRead, err error) {
	var spans []span
	for k := range int64(sharedCount) { // on borders of pieces, well apart
		spans = append(spans, span{(k*(i.size/sharedCount) + i.size/sharedCount/2) &^ (sharedRange - 1), sharedRange})
	}
	before, err := m.registry.Served()
	if err != nil {
		return r, err
	}
	for _, n := range m.nodes {
		if err := m.learn(ctx, n, i); err != nil {
			return r, err
		}
	}
	start := time.Now()
	group, gctx := errgroup.WithContext(ctx)
	for _, n := range m.nodes {
		group.Go(func() error {
			for _, s := range spans {
				if _, err := m.readSpan(gctx, n, n.MirrorURL(), i.blob, s); err != nil {
					return fmt.Errorf("%s: range at %d: %w", n.Name(), s.off, err)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil && !errors.Is(err, errRefused) {
		return r, err
	} else if err != nil {
		m.Logf("  %v", err)
	}
	r = sharedRead{Nodes: len(m.nodes), WantedBytes: sharedCount * sharedRange, Seconds: time.Since(start).Seconds()}
	if err := sleep(ctx, settle); err != nil {
		return r, err
	}
	if err := m.empty(ctx, m.seeds...); err != nil { // ends what is still being read, so that it is in the log
		return r, err
	}
	served, err := m.registry.WaitServed(ctx, i.digest, before[i.digest]+1)
	r.OriginBytes = served - before[i.digest]
	r.Copies = float64(r.OriginBytes) / float64(r.WantedBytes)
	return r, err
}

// busyLinks reads ranges on limited links: idle, while the same blob is fetched whole, and while another one is.
func (m *firstBench) busyLinks(ctx context.Context) error {
	m.Logf("ranges on links of %d bit/s, idle and while a blob is fetched", int64(m.cfg.link))
	other, err := m.image(ctx, m.cfg.huge, true)
	if err != nil {
		return err
	}
	for _, h := range m.Hosts() {
		if err := h.SetLink(ctx, m.cfg.link); err != nil {
			return err
		}
	}
	all := newSamples()
	for _, kind := range []meanwhile{{"idle", nil, nil}, {"same blob fetched", &m.mapped, m.nodes[:1]}, {"another blob fetched", &other, m.nodes[:1]},
		{"same blob fetched by all", &m.mapped, m.nodes}} {
		for _, from := range []string{"mirror", "registry"} {
			if err := m.empty(ctx, append(slices.Clone(m.nodes), m.seeds...)...); err != nil {
				return err
			}
			if err := m.busyReads(ctx, all, from, kind); err != nil {
				return err
			}
		}
	}
	m.result.Latencies = append(m.result.Latencies, all.latencies()...)
	return nil
}

// meanwhile is what is fetched while ranges are read.
type meanwhile struct {
	name string
	bulk *trialImage // nil: nothing
	on   []*cluster.Node
}

// begin has the nodes fetch the whole blob, from their mirrors or the registry, until ctx ends. wait waits for that, and tells how many had come
// to its end before.
func (m *firstBench) begin(ctx context.Context, l meanwhile, from string) (wait func() int, err error) {
	var readers sync.WaitGroup
	var ended atomic.Int32
	for _, n := range l.on {
		if err := m.learn(ctx, n, *l.bulk); err != nil {
			return nil, err
		}
		readers.Go(func() {
			if _, err := m.readSpan(ctx, n, m.base(n, from), l.bulk.blob, span{0, l.bulk.size}); err == nil {
				ended.Add(1) // others are cut off
			}
		})
	}
	return func() int { readers.Wait(); return int(ended.Load()) }, nil
}

// base is where a node's host reads from: "mirror" or "registry".
func (m *firstBench) base(n *cluster.Node, from string) string {
	if from == "mirror" {
		return n.MirrorURL()
	}
	return m.origin()
}

// busyReads reads ranges of 64 KiB to 1 MiB one after the other.
func (m *firstBench) busyReads(ctx context.Context, all *samples, from string, l meanwhile) error {
	n, name := m.nodes[0], from+" "+l.name
	bulkCtx, stop := context.WithCancel(ctx)
	defer stop()
	if err := m.learn(ctx, n, m.mapped); err != nil {
		return err
	}
	wait, err := m.begin(bulkCtx, l, from)
	if err != nil {
		return err
	}
	if l.bulk != nil {
		if err := sleep(ctx, time.Second); err != nil { // until the link is full
			return err
		}
	}
	rng := rand.New(rand.NewPCG(1, 1)) // the same ranges for every kind
	half := m.mapped.size / 2
	for i := range m.cfg.reads {
		length := firstRange + rng.Int64N(1<<20-firstRange)
		at := half + int64(i)*(half-2<<20)/int64(m.cfg.reads) // each from a place of its own, in the half the bulk comes to last
		took, err := m.readSpan(ctx, n, m.base(n, from), m.mapped.blob, span{at, length})
		if err := all.add("64 KiB to 1 MiB, "+name, took, err); err != nil {
			return err
		}
	}
	stop()
	if ended := wait(); ended > 0 {
		return fmt.Errorf("%s: %d whole reads ended before the ranges were read; take larger blobs or fewer reads", name, ended)
	}
	return nil
}
