package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// repository is where random images are pushed.
const (
	repository = "lab/random"
	tag        = "1"
)

type broadcastConfig struct {
	shoal   string
	peers   int
	size    int64
	link    cluster.Rate
	zones   int
	border  cluster.Rate  // of zones but the first
	stagger time.Duration // between the first peer's start and the last one's
	bounds  cluster.Bounds
	// converted has the blob be the layer of a model that shoal converted, which has a chunk map.
	converted bool
	profiles  string // folder for CPU profiles; none when empty
	log       io.Writer
}

// broadcastResult is what the command prints. With several runs the figures are those of the run with the median
// makespan.
type broadcastResult struct {
	Peers               int     `json:"peers"`
	SizeBytes           int64   `json:"size_bytes"`
	LinkBitsPerSecond   int64   `json:"link_bits_per_second"`
	MakespanSeconds     float64 `json:"makespan_seconds"` // from the first request to the last peer's last byte
	Zones               int     `json:"zones"`
	BorderBitsPerSecond int64   `json:"border_bits_per_second"`
	StaggerSeconds      float64 `json:"stagger_seconds"`
	// LimitSeconds is what no way of spreading can beat: each peer's link, and each border, has to carry the blob once, TCP's and
	// Ethernet's headers included, and the last peer's not before it starts. 0 without a limit.
	LimitSeconds     float64            `json:"limit_seconds"`
	Ratio            float64            `json:"ratio"`           // makespan to limit
	OriginCopies     float64            `json:"origin_copies"`   // by the registry's access log
	BorderCopies     float64            `json:"border_copies"`   // bytes into a zone over its border, all headers and control included, in blobs; the mean of zones but the first
	BorderBytesIn    []int64            `json:"border_bytes_in"` // by zone but the first
	BorderBytesOut   []int64            `json:"border_bytes_out"`
	CPUSecondsPerGiB float64            `json:"cpu_seconds_per_gib"`         // of all daemons, for each GiB that reached a reader
	CPU              map[kind]cpuPerGiB `json:"cpu_seconds_per_gib_by_kind"` // the same by kind; lab is this process
	Traffic          traffic            `json:"traffic"`
	IdleRSSBytes     int64              `json:"idle_rss_bytes"`        // of the largest node before the first request
	PeakRSSBytes     int64              `json:"peak_rss_bytes"`        // of the largest daemon
	FirstByteSeconds float64            `json:"first_byte_seconds"`    // the slowest peer's
	Runs             int                `json:"runs"`                  //
	Makespans        []float64          `json:"all_makespans_seconds"` // of every run, in their order
}

func broadcastCommand() *cli.Command {
	return &cli.Command{
		Name:  "broadcast",
		Usage: "bring one random blob to many peers at once and compare with what the links allow",
		Description: "A registry, one seed, a scheduler and the peers, each on a link of the same rate. All peers ask their own\n" +
			"node's mirror for the blob at once, over HTTP, and check the digest of what they get.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "peers", Value: 8, Usage: "`NUMBER` of peers, the seed not counted"},
			&cli.StringFlag{Name: "size", Value: "256MiB", Usage: "`SIZE` of the blob"},
			linkFlag("200mbit"),
			&cli.IntFlag{Name: "zones", Value: 1, Usage: "spread the peers over `NUMBER` of zones; the registry, the scheduler and the seed are in the first"},
			&cli.StringFlag{Name: "border", Usage: "`RATE` of the link between each other zone and the first, in both directions; no limit when not given"},
			&cli.DurationFlag{Name: "stagger", Usage: "start the peers one after the other, the last one `DURATION` after the first"},
			&cli.StringFlag{Name: "memory", Usage: "bound the memory of each node to `SIZE`, its page cache included"},
			&cli.Float64Flag{Name: "cpus", Usage: "bound each node to `NUMBER` of processors"},
			&cli.IntFlag{Name: "runs", Value: 1, Usage: "`NUMBER` of runs, each from cold; the one with the median makespan is told"},
			&cli.BoolFlag{Name: "converted", Usage: "let the blob be a model's layer made by shoal convert, which has a chunk map"},
			&cli.PathFlag{Name: "profile", Usage: "leave CPU profiles of a node and the seed in `FOLDER`"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object"},
		},
		Action: func(ctx *cli.Context) error {
			cfg, err := broadcastConfigOf(ctx)
			if err != nil {
				return err
			}
			var result broadcastResult
			err = withShoal(ctx, func(shoal string) (err error) {
				cfg.shoal = shoal
				result, err = broadcasts(ctx.Context, cfg, ctx.Int("runs"))
				return err
			})
			if err != nil {
				return err
			}
			if ctx.Bool("json") {
				return json.NewEncoder(ctx.App.Writer).Encode(result)
			}
			_, err = fmt.Fprintf(ctx.App.Writer, "%d peers, %d MiB: %.2f s, limit %.2f s (%.2f×), origin copies %.3f, CPU %.2f s/GiB, peak RSS %d MiB\n",
				result.Peers, result.SizeBytes>>20, result.MakespanSeconds, result.LimitSeconds, result.Ratio,
				result.OriginCopies, result.CPUSecondsPerGiB, result.PeakRSSBytes>>20)
			return err
		},
	}
}

// broadcastConfigOf reads the flags.
func broadcastConfigOf(ctx *cli.Context) (broadcastConfig, error) {
	size, link, errSize := sizeAndLink(ctx)
	border, errBorder := cluster.ParseRate(ctx.String("border"))
	cfg := broadcastConfig{peers: ctx.Int("peers"), size: size, link: link, zones: ctx.Int("zones"), border: border,
		stagger: ctx.Duration("stagger"), bounds: cluster.Bounds{CPUs: ctx.Float64("cpus")},
		converted: ctx.Bool("converted"), profiles: ctx.Path("profile"), log: ctx.App.ErrWriter}
	var errMemory, errShape error
	if ctx.IsSet("memory") {
		cfg.bounds.Memory, errMemory = cluster.ParseSize(ctx.String("memory"))
	}
	if cfg.peers < 1 || ctx.Int("runs") < 1 || cfg.zones < 1 || cfg.stagger < 0 {
		errShape = errors.New("--peers, --runs and --zones have to be at least 1, --stagger at least 0")
	}
	return cfg, errors.Join(errSize, errBorder, errMemory, errShape)
}

// limit returns the least time in seconds that the broadcast of a blob can take; 0 when nothing limits it.
func (cfg broadcastConfig) limit(size int64) float64 {
	limit := cfg.link.Seconds(size)
	if limit > 0 {
		limit += cfg.stagger.Seconds()
	}
	if cfg.zones > 1 {
		limit = max(limit, cfg.border.Seconds(size))
	}
	return limit
}

// startOf returns how long after the first one the i-th of n peers starts.
func startOf(i, n int, stagger time.Duration) time.Duration {
	return stagger * time.Duration(i) / time.Duration(max(n-1, 1))
}

// broadcasts runs broadcast several times and returns the run with the median makespan.
func broadcasts(ctx context.Context, cfg broadcastConfig, runs int) (broadcastResult, error) {
	if err := cluster.CheckTools("ip", "tc", "docker-registry"); err != nil {
		return broadcastResult{}, err
	}
	var results []broadcastResult
	var makespans []float64
	for i := range runs {
		r, err := broadcast(ctx, cfg)
		if err != nil {
			return broadcastResult{}, err
		}
		fmt.Fprintf(cfg.log, "run %d of %d: %.2f s, %.2f× the limit, %.3f origin copies\n", i+1, runs, r.MakespanSeconds, r.Ratio, r.OriginCopies)
		results = append(results, r)
		makespans = append(makespans, r.MakespanSeconds)
	}
	slices.SortFunc(results, func(a, b broadcastResult) int {
		return int((a.MakespanSeconds - b.MakespanSeconds) * 1e6)
	})
	median := results[(runs-1)/2]
	median.Runs, median.Makespans = runs, makespans
	return median, nil
}

// broadcast makes a cluster, moves the blob and removes the cluster.
func broadcast(ctx context.Context, cfg broadcastConfig) (result broadcastResult, err error) {
	c, err := cluster.New(ctx, cluster.Config{Shoal: cfg.shoal, Link: cfg.link, Log: cfg.log})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	s, err := newSwarm(ctx, c, swarmConfig{nodes: cfg.peers, zones: cfg.zones, border: cfg.border, bounds: cfg.bounds})
	if err != nil {
		return result, err
	}
	blob, err := s.pushRandom(ctx, cfg)
	if err != nil {
		return result, err
	}

	if err := s.resolveAll(ctx); err != nil {
		return result, err
	}
	borderBefore, err := s.borders(ctx, cfg.zones)
	if err != nil {
		return result, err
	}
	before := s.usage()
	pull, err := s.fetchProfiled(ctx, blob, cfg)
	if err != nil {
		return result, err
	}
	after := s.usage()
	border, err := s.borders(ctx, cfg.zones)
	if err != nil {
		return result, err
	}
	served, err := s.registry.WaitServed(ctx, blob.digest, 0)
	if err != nil {
		return result, err
	}
	limit := cfg.limit(blob.size)
	result = broadcastResult{
		Peers: cfg.peers, SizeBytes: blob.size, LinkBitsPerSecond: int64(cfg.link),
		MakespanSeconds: pull.makespan.Seconds(), FirstByteSeconds: pull.firstByte.Seconds(), LimitSeconds: limit,
		OriginCopies: float64(served) / float64(blob.size),
		Traffic:      s.traffic(ctx), IdleRSSBytes: before.rss, PeakRSSBytes: after.peakRSS,
	}
	result.Zones, result.BorderBitsPerSecond, result.StaggerSeconds = cfg.zones, int64(cfg.border), cfg.stagger.Seconds()
	result.BorderBytesIn, result.BorderBytesOut, result.BorderCopies = border.since(borderBefore, blob.size)
	result.CPU, result.CPUSecondsPerGiB = perGiB(before, after, blob.size*int64(cfg.peers))
	if limit > 0 {
		result.Ratio = result.MakespanSeconds / limit
	}
	return result, nil
}

// pushRandom pushes an image of random bytes and returns the layer that matters.
func (s *swarm) pushRandom(ctx context.Context, cfg broadcastConfig) (blob, error) {
	size := cfg.size
	if cfg.converted {
		size = 4 << 10 // of the base; the model is what is read
	}
	img, err := cluster.RandomImage(s.Dir(), uint64(time.Now().UnixNano()), size)
	if err != nil {
		return blob{}, err
	}
	var blobs []blob
	if cfg.converted {
		blobs, err = s.convert(ctx, cfg.shoal, s.registry.Addr()+"/"+repository+":"+tag, img, cfg.size)
	} else if err = s.registry.Push(ctx, repository, tag, img); err == nil {
		blobs, err = layersOf(img)
	}
	if err != nil {
		return blob{}, err
	}
	return slices.MaxFunc(blobs, func(a, b blob) int { return cmp.Compare(a.size, b.size) }), nil
}

// fetchProfiled is fetchAll, with profiles taken meanwhile if they are asked for.
func (s *swarm) fetchProfiled(ctx context.Context, b blob, cfg broadcastConfig) (pull fetched, err error) {
	group, ctx := errgroup.WithContext(ctx)
	if cfg.profiles != "" {
		group.Go(func() error {
			return s.profile(ctx, cfg.profiles, max(time.Duration(cfg.limit(b.size)*float64(time.Second)), time.Second))
		})
	}
	group.Go(func() (err error) {
		pull, err = s.fetchAll(ctx, b, cfg.stagger)
		return err
	})
	return pull, group.Wait()
}

type fetched struct{ makespan, firstByte time.Duration }

// fetchAll has every node read the blob through its mirror, all at once or one after the other, and checks the digests.
func (s *swarm) fetchAll(ctx context.Context, b blob, stagger time.Duration) (fetched, error) {
	firsts := make([]time.Duration, len(s.nodes))
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for i, n := range s.nodes {
		group.Go(func() (err error) {
			if err := sleep(ctx, startOf(i, len(s.nodes), stagger)); err != nil {
				return err
			}
			firsts[i], err = s.fetch(ctx, n, b)
			return err
		})
	}
	err := group.Wait()
	return fetched{time.Since(start), slices.Max(firsts)}, err
}

// fetch reads a blob through a node's mirror, checks it, and returns when the first byte came.
func (s *swarm) fetch(ctx context.Context, n *cluster.Node, b blob) (time.Duration, error) {
	start := time.Now()
	body, err := s.open(ctx, n, "blobs/"+b.digest.String())
	if err != nil {
		return 0, err
	}
	defer body.Close()
	hash := sha256.New()
	if _, err := io.CopyN(hash, body, 1); err != nil {
		return 0, fmt.Errorf("%s: first byte of %s: %w", n.Name(), b.digest, err)
	}
	first := time.Since(start)
	size, err := io.Copy(hash, body)
	if err != nil {
		return 0, fmt.Errorf("%s: %s after %d bytes: %w", n.Name(), b.digest, size, err)
	}
	if got := digest.NewDigest(digest.SHA256, hash); got != b.digest {
		return 0, fmt.Errorf("%s: got %d bytes with the digest %s, want %s", n.Name(), size+1, got, b.digest)
	}
	return first, nil
}

// resolveAll resolves the image at every node.
func (s *swarm) resolveAll(ctx context.Context) error {
	for _, n := range s.nodes {
		if err := s.resolve(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// resolve asks a node's mirror for the image's manifests, as containerd does before it asks for a layer: so the node learns of chunk maps.
func (s *swarm) resolve(ctx context.Context, n *cluster.Node) error {
	index, err := s.manifest(ctx, n, tag)
	if err == nil && len(index.Manifests) > 0 {
		_, err = s.manifest(ctx, n, index.Manifests[0].Digest.String())
	}
	return err
}

// manifest asks a node's mirror for a manifest or an index; of a manifest only what an index has too is returned.
func (s *swarm) manifest(ctx context.Context, n *cluster.Node, reference string) (index ocispec.Index, err error) {
	body, err := s.open(ctx, n, "manifests/"+reference)
	if err != nil {
		return index, err
	}
	defer body.Close()
	return index, json.NewDecoder(body).Decode(&index)
}

// open asks a node's mirror for a part of the lab's repository, as containerd does.
func (s *swarm) open(ctx context.Context, n *cluster.Node, part string) (io.ReadCloser, error) {
	url := n.MirrorURL() + "/v2/" + repository + "/" + part + "?ns=" + s.registry.Addr()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", strings.Join([]string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, "*/*"}, ", "))
	resp, err := n.Host().Client().Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.Name(), err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s: %s; the end of %s:\n%s", n.Name(), url, resp.Status, n.Log(), n.Tail())
	}
	return resp.Body, nil
}
