package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

const (
	// pullsTagTTL is longer than a run's first rounds, so that each manifest is asked for once.
	pullsTagTTL = "10m"
	pullsAgent  = "pulls" // by which the registry's log tells them from pushes
	pullsAtOnce = 3       // layers of one pull, as containerd does
	// What may be left of a round when its callers have gone: idle connections and the like.
	pullsSlackGoroutines, pullsSlackFiles = 30, 30
	pullsSettle                           = 30 * time.Second
)

type pullsConfig struct {
	shoal         string
	pulls, images int
	size          int64
	soak          time.Duration
	memory        int64
	log           io.Writer
}

// pullsResult is what the command prints.
type pullsResult struct {
	Pulls            int     `json:"pulls"` // at once
	Images           int     `json:"images"`
	OneSeconds       float64 `json:"one_seconds"`    // all pulls of one image nobody had
	ManySeconds      float64 `json:"many_seconds"`   // of different images nobody had
	MostManifests    int     `json:"most_manifests"` // requests for one manifest that reached the registry until then
	Rounds           int     `json:"rounds"`         // of the soak
	PullsDone        int     `json:"pulls_done"`     // in all
	Fallbacks        int64   `json:"fallbacks"`      // requests that the mirror sent to the registry
	GoroutinesBefore int     `json:"goroutines_before"`
	GoroutinesAfter  int     `json:"goroutines_after"`
	FilesBefore      int     `json:"files_before"`
	FilesAfter       int     `json:"files_after"`
	PeakRSS          int64   `json:"peak_rss_bytes"`
}

func pullsCommand() *cli.Command {
	return &cli.Command{
		Name:  "pulls",
		Usage: "pull through one mirror from many clients at once, for a while",
		Description: "A registry and one node. Clients that ask as containerd does pull one image at once, then different ones, then both in turns. It fails when\n" +
			"bytes are wrong, when one manifest was asked of the registry twice, when the node needs more memory than --memory, or when goroutines\n" +
			"or open files are left behind.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "pulls", Value: 200, Usage: "`NUMBER` of pulls at once"},
			&cli.IntFlag{Name: "images", Value: 50, Usage: "`NUMBER` of different images"},
			&cli.StringFlag{Name: "size", Value: "4MiB", Usage: "`SIZE` of an image's large layer"},
			&cli.StringFlag{Name: "memory", Value: "256MiB", Usage: "the most `MEMORY` the node may have resident"},
			&cli.DurationFlag{Name: "for", Value: 10 * time.Minute, Usage: "go on for this `DURATION`"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object"},
		},
		Action: func(ctx *cli.Context) error {
			size, err := cluster.ParseSize(ctx.String("size"))
			memory, errMemory := cluster.ParseSize(ctx.String("memory"))
			if err := errors.Join(err, errMemory); err != nil {
				return err
			}
			cfg := pullsConfig{pulls: ctx.Int("pulls"), images: ctx.Int("images"), size: size, soak: ctx.Duration("for"), memory: memory, log: ctx.App.ErrWriter}
			if cfg.pulls < 1 || cfg.images < 1 {
				return errors.New("--pulls and --images have to be above 0")
			}
			var result pullsResult
			err = withShoal(ctx, func(shoal string) (err error) {
				cfg.shoal = shoal
				result, err = pulls(ctx.Context, cfg)
				return err
			})
			return errors.Join(tellResult(ctx, result), err)
		},
	}
}

func (r pullsResult) print(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%d pulls of one image: %.1f s; of %d images: %.1f s; at most %d requests for one manifest reached the registry\n"+
		"%d pulls in all, %d requests sent to the registry; goroutines %d, then %d; open files %d, then %d; peak RSS %d MiB\n", r.Pulls, r.OneSeconds, r.Images, r.ManySeconds, r.MostManifests,
		r.PullsDone, r.Fallbacks, r.GoroutinesBefore, r.GoroutinesAfter, r.FilesBefore, r.FilesAfter, r.PeakRSS>>20)
	return err
}

// crowdRig is one node before a registry.
type crowdRig struct {
	*cluster.Cluster

	registry *cluster.Registry
	node     *cluster.Node
	tags     []string
	done     int

	fallbacks atomic.Int64
}

// pulls makes a cluster, has it pull and removes it.
func pulls(ctx context.Context, cfg pullsConfig) (result pullsResult, err error) {
	if err := cluster.CheckTools("ip", "tc", "docker-registry"); err != nil {
		return result, err
	}
	c, err := cluster.New(ctx, cluster.Config{Shoal: cfg.shoal, Log: cfg.log, LogLevel: "warn"})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	r := &crowdRig{Cluster: c}
	if r.registry, err = c.StartRegistry(ctx); err != nil {
		return result, err
	}
	if r.node, err = c.StartNode(ctx, cluster.NodeConfig{Name: "node", Registries: []*cluster.Registry{r.registry}, TagTTL: pullsTagTTL}); err != nil {
		return result, err
	}
	for i := range cfg.images {
		img, err := cluster.RandomImage(c.Dir(), uint64(i+1), cfg.size, 64<<10)
		if err != nil {
			return result, err
		}
		r.tags = append(r.tags, fmt.Sprint(i))
		if err := r.registry.Push(ctx, repository, r.tags[i], img); err != nil {
			return result, err
		}
	}
	return r.measure(ctx, cfg)
}

func (r *crowdRig) measure(ctx context.Context, cfg pullsConfig) (result pullsResult, err error) {
	result.Pulls, result.Images = cfg.pulls, cfg.images
	began := time.Now()
	if result.OneSeconds, err = r.round(ctx, cfg.pulls, r.tags[:1]); err != nil {
		return result, err
	}
	if result.ManySeconds, err = r.round(ctx, cfg.pulls, r.tags); err != nil {
		return result, err
	}
	if result.MostManifests, err = r.mostManifests(); err != nil {
		return result, err
	}
	if result.GoroutinesBefore, result.FilesBefore, err = r.settled(ctx, 0, 0); err != nil {
		return result, err
	}
	for time.Since(began) < cfg.soak {
		for _, tags := range [][]string{r.tags[:1], r.tags} {
			if _, err := r.round(ctx, cfg.pulls, tags); err != nil {
				return result, err
			}
		}
		result.Rounds++
	}
	result.GoroutinesAfter, result.FilesAfter, err = r.settled(ctx, result.GoroutinesBefore+pullsSlackGoroutines, result.FilesBefore+pullsSlackFiles)
	result.PullsDone, result.PeakRSS, result.Fallbacks = r.done, r.node.PeakRSS(), r.fallbacks.Load()
	if result.Fallbacks > 0 {
		r.Logf("the mirror sent callers to the registry:\n%s", r.node.Tail())
	}
	switch {
	case err != nil:
	case result.MostManifests > 1:
		err = fmt.Errorf("a manifest was asked of the registry %d times", result.MostManifests)
	case result.PeakRSS > cfg.memory:
		err = fmt.Errorf("the node had %d MiB resident, at most %d are allowed", result.PeakRSS>>20, cfg.memory>>20)
	}
	return result, err
}

// round has n clients pull at once, each one of the tags by turns, and returns how many seconds the last one took.
func (r *crowdRig) round(ctx context.Context, n int, tags []string) (float64, error) {
	began := time.Now()
	client := &http.Client{Transport: r.node.Host().Client().Transport.(*http.Transport).Clone()}
	defer client.CloseIdleConnections()
	var group errgroup.Group
	for i := range n {
		group.Go(func() error { return r.pull(ctx, client, tags[i%len(tags)]) })
	}
	err := group.Wait()
	r.done += n
	return time.Since(began).Seconds(), err
}

// pull asks for all of an image as containerd does, and checks it.
func (r *crowdRig) pull(ctx context.Context, client *http.Client, tag string) error {
	head, err := r.ask(ctx, client, http.MethodHead, "manifests/"+tag)
	if err != nil {
		return err
	}
	_ = head.Body.Close() // has none
	body, err := r.content(ctx, client, "manifests/", digest.Digest(head.Header.Get("Docker-Content-Digest")))
	if err != nil {
		return err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(body, &manifest); err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(pullsAtOnce)
	for _, d := range append(manifest.Layers, manifest.Config) {
		group.Go(func() error {
			_, err := r.content(ctx, client, "blobs/", d.Digest)
			return err
		})
	}
	return group.Wait()
}

// content reads something by its digest, which it checks.
func (r *crowdRig) content(ctx context.Context, client *http.Client, kind string, d digest.Digest) ([]byte, error) {
	resp, err := r.ask(ctx, client, http.MethodGet, kind+d.String())
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && digest.FromBytes(body) != d {
		err = fmt.Errorf("%s%s came with other bytes", kind, d)
	}
	return body, err
}

// ask asks the mirror, and the registry when that refuses, as containerd does.
func (r *crowdRig) ask(ctx context.Context, client *http.Client, method, path string) (*http.Response, error) {
	for _, base := range []string{r.node.MirrorURL(), "http://" + r.registry.Addr()} {
		req, err := http.NewRequestWithContext(ctx, method, base+"/v2/"+repository+"/"+path+"?ns="+r.registry.Addr(), nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Accept", ocispec.MediaTypeImageManifest+", */*")
		req.Header.Set("User-Agent", pullsAgent)
		resp, err := client.Do(req)
		if err != nil || resp.StatusCode == http.StatusOK {
			return resp, err
		}
		_ = resp.Body.Close() // says what the status says
		r.fallbacks.Add(1)
	}
	return nil, fmt.Errorf("neither the mirror nor the registry answers for %s", path)
}

// mostManifests returns how often the manifest that was asked for most was asked of the registry, by tag or digest.
func (r *crowdRig) mostManifests() (int, error) {
	log, err := os.ReadFile(r.registry.Log())
	if err != nil {
		return 0, err
	}
	asked := map[string]int{}
	for line := range strings.Lines(string(log)) {
		_, rest, ok := strings.Cut(line, "/manifests/")
		if ok && (strings.Contains(line, `"GET `) || strings.Contains(line, `"HEAD `)) && strings.Contains(line, pullsAgent) {
			reference, _, _ := strings.Cut(rest, " ")
			asked[reference]++
		}
	}
	most := 0
	for _, n := range asked {
		most = max(most, n)
	}
	return most, nil
}

// settled waits until the node has no more goroutines and open files than it may; without bounds until they do not change any more.
func (r *crowdRig) settled(ctx context.Context, maxGoroutines, maxFiles int) (goroutines, files int, err error) {
	var last []int
	for began := time.Now(); ; {
		m, err := r.node.Metrics(ctx)
		if err != nil {
			return 0, 0, err
		}
		now := []int{int(m.Sum("go_goroutines")), int(m.Sum("process_open_fds"))}
		goroutines, files = now[0], now[1]
		switch {
		case maxGoroutines > 0 && goroutines <= maxGoroutines && files <= maxFiles:
			return goroutines, files, nil
		case maxGoroutines == 0 && slices.Equal(now, last):
			return goroutines, files, nil
		case time.Since(began) > pullsSettle && maxGoroutines > 0:
			return goroutines, files, fmt.Errorf("left behind: %d goroutines and %d open files, at most %d and %d are allowed", goroutines, files, maxGoroutines, maxFiles)
		case time.Since(began) > pullsSettle:
			return goroutines, files, nil
		}
		last = now
		if err := sleep(ctx, time.Second); err != nil {
			return 0, 0, err
		}
	}
}
