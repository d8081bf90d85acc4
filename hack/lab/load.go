package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/hack/lab/cluster"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/scheduler/api"
)

// loadConfig is a broadcast as the scheduler sees it.
type loadConfig struct {
	shoal               string
	hosts, seeds, zones int
	size                int64
	link                cluster.Rate
	within              time.Duration
	log                 io.Writer
}

// loadResult is what the command prints.
type loadResult struct {
	Hosts             int     `json:"hosts"`
	Pieces            int     `json:"pieces"`
	PieceBytes        int64   `json:"piece_bytes"`
	LimitSeconds      float64 `json:"limit_seconds"` // the blob on one link
	Seconds           float64 `json:"seconds"`       // until the last host said that it has everything
	SchedulerCPU      float64 `json:"scheduler_cpu_seconds"`
	SchedulerCores    float64 `json:"scheduler_cores"` // processors in use, on the average
	SchedulerPeakRSS  int64   `json:"scheduler_peak_rss_bytes"`
	Events            int64   `json:"events"`             // from hosts, signs of life not counted
	Commands          int64   `json:"commands"`           // to hosts, signs of life not counted
	MessagesPerPiece  float64 `json:"messages_per_piece"` // both ways
	StepP50           float64 `json:"step_p50_seconds"`   // upper bounds, by the scheduler's histogram
	StepP99           float64 `json:"step_p99_seconds"`
	LeaseP50          float64 `json:"lease_p50_seconds"` // from the report of what was read to the next lease, batching included
	LeaseP99          float64 `json:"lease_p99_seconds"`
	SessionsLost      int     `json:"sessions_lost"`
	OriginCopies      float64 `json:"origin_copies"` // pieces leased, to those there are
	GeneratorCPUShare float64 `json:"generator_cores"`
}

func loadCommand() *cli.Command {
	return &cli.Command{
		Name:  "load",
		Usage: "put the scheduler under the traffic of a broadcast to thousands of hosts",
		Description: "A real scheduler and the sessions of many hosts, which speak as nodes do: they join, seeds read what they are leased, everybody reports\n" +
			"pieces as often as a node does. No bytes of a blob move: a host has pieces, at random among those that were read, as fast as its\n" +
			"link would bring them. Told are the scheduler's processor time, memory, and how long it takes over an event and over a lease.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "hosts", Value: 2000, Usage: "`NUMBER` of hosts, the seeds not counted"},
			&cli.IntFlag{Name: "seeds", Value: 4, Usage: "`NUMBER` of seeds"},
			&cli.IntFlag{Name: "zones", Value: 1, Usage: "`NUMBER` of zones the hosts are in"},
			&cli.StringFlag{Name: "size", Value: "100GiB", Usage: "`SIZE` of the blob"},
			linkFlag("10gbit"),
			&cli.DurationFlag{Name: "within", Value: 5 * time.Minute, Usage: "give up after this `DURATION`"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object"},
		},
		Action: func(ctx *cli.Context) error {
			size, link, err := sizeAndLink(ctx)
			if err != nil {
				return err
			}
			cfg := loadConfig{hosts: ctx.Int("hosts"), seeds: ctx.Int("seeds"), zones: ctx.Int("zones"), size: size, link: link,
				within: ctx.Duration("within"), log: ctx.App.ErrWriter}
			if cfg.hosts < 1 || cfg.seeds < 1 || cfg.zones < 1 || size < 1 || link <= 0 {
				return errors.New("--hosts, --seeds, --zones, --size and --link have to be above 0")
			}
			var result loadResult
			err = withShoal(ctx, func(shoal string) (err error) {
				cfg.shoal = shoal
				result, err = load(ctx.Context, cfg)
				return err
			})
			if err != nil {
				return err
			}
			return tellResult(ctx, result)
		},
	}
}

func (r loadResult) print(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%d hosts, %d pieces of %d KiB: %.1f s (link %.1f s), origin copies %.3f\n"+
		"scheduler: %.2f processors, peak RSS %d MiB, %d events, %d commands, %.1f messages a piece, %d sessions lost\n"+
		"a step: half below %s, 99 %% below %s; a lease: half below %s, 99 %% below %s; the hosts' side took %.2f processors\n",
		r.Hosts, r.Pieces, r.PieceBytes>>10, r.Seconds, r.LimitSeconds, r.OriginCopies,
		r.SchedulerCores, r.SchedulerPeakRSS>>20, r.Events, r.Commands, r.MessagesPerPiece, r.SessionsLost,
		inSeconds(r.StepP50), inSeconds(r.StepP99), inSeconds(r.LeaseP50), inSeconds(r.LeaseP99), r.GeneratorCPUShare)
	return err
}

func inSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// load runs a scheduler in one network namespace and all hosts in another.
func load(ctx context.Context, cfg loadConfig) (result loadResult, err error) {
	if err := cluster.CheckTools("ip", "tc"); err != nil {
		return result, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.within, fmt.Errorf("not every host was done within %v; see --within", cfg.within))
	defer cancel()
	c, err := cluster.New(ctx, cluster.Config{Shoal: cfg.shoal, Log: cfg.log, LogLevel: "warn"})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	s, err := c.StartScheduler(ctx, "scheduler")
	if err != nil {
		return result, err
	}
	from, err := c.AddHost(ctx, "hosts")
	if err != nil {
		return result, err
	}
	token, err := c.Token()
	if err != nil {
		return result, err
	}
	client := api.NewClient(s.URL(), token, func(t *http.Transport) {
		t.DialContext = from.Client().Transport.(*http.Transport).DialContext
		t.MaxIdleConnsPerHost = 2 * cfg.hosts
		t.ResponseHeaderTimeout = 30 * time.Second // what is late is measured, not given up
	})
	crowd := newCrowd(cfg)
	cpu, own := s.CPU(), ownCPU()
	began := time.Now()
	if err := crowd.run(ctx, client); err != nil {
		return result, errors.Join(err, fmt.Errorf("the scheduler said: %s", s.Tail()))
	}
	took := time.Since(began).Seconds()
	metrics, err := s.Metrics(ctx)
	if err != nil {
		return result, err
	}
	result = crowd.result(metrics)
	result.LimitSeconds, result.Seconds = cfg.link.Seconds(cfg.size), took
	result.SchedulerCPU, result.SchedulerPeakRSS = s.CPU().Sub(cpu).Total().Seconds(), s.PeakRSS()
	result.SchedulerCores, result.GeneratorCPUShare = result.SchedulerCPU/took, ownCPU().Sub(own).Total().Seconds()/took
	return result, nil
}

// crowd is all hosts of a load: how the blob spreads among them, and their sessions.
type crowd struct {
	cfg    loadConfig
	task   api.Task
	layout piece.Layout
	began  time.Time

	mu     sync.Mutex // guards all below
	born   []int      // pieces in the order they were read
	seen   *piece.Set // pieces that were read
	origin time.Time  // when the origin's link is free
	leased int        // pieces, each as often as it was leased
	waits  []float64  // for leases, in seconds
	lost   int        // sessions
}

func newCrowd(cfg loadConfig) *crowd {
	layout := piece.NewLayout(cfg.size)
	return &crowd{cfg: cfg, layout: layout, seen: piece.NewSet(layout.Count()), began: time.Now(), task: api.Task{
		ID: digest.FromString("load").String(), Pieces: layout.Count(), PieceSize: layout.PieceSize, Origin: json.RawMessage(`{}`)}}
}

// run returns when every host has everything.
func (c *crowd) run(ctx context.Context, client *api.Client) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var done sync.WaitGroup
	var sessions errgroup.Group
	rng := rand.New(rand.NewPCG(1, uint64(c.cfg.hosts)))
	for i := range c.cfg.seeds + c.cfg.hosts {
		zone := fmt.Sprintf("zone-%d", i%c.cfg.zones)
		h := &loadHost{crowd: c, seed: i < c.cfg.seeds, leases: make(chan api.Run, 64), have: piece.NewSet(c.layout.Count()),
			rng: rand.New(rand.NewPCG(2, rng.Uint64()))}
		host := api.Host{ID: fmt.Sprintf("host-%04d", i), Addr: fmt.Sprintf("10.1.%d.%d:7702", i/250, i%250), Zone: zone, Seed: h.seed}
		sessions.Go(func() error {
			for ctx.Err() == nil {
				if err := client.Run(ctx, host, h); ctx.Err() == nil {
					c.sessionLost(host, err)
					_ = sleep(ctx, 100*time.Millisecond)
				}
			}
			return nil
		})
		if h.seed {
			sessions.Go(func() error { return h.read(ctx) })
			continue
		}
		done.Add(1)
		sessions.Go(func() error { defer done.Done(); return h.gain(ctx) })
	}
	go func() { done.Wait(); stop(errLoaded) }() // ends at the latest with ctx
	_ = sessions.Wait()                          // hosts end with ctx alone
	if err := context.Cause(ctx); !errors.Is(err, errLoaded) || c.incomplete() {
		return err
	}
	return nil
}

var errLoaded = errors.New("every host has everything")

func (c *crowd) incomplete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.born) < c.layout.Count()
}

func (c *crowd) sessionLost(host api.Host, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost++; c.lost <= 3 {
		fmt.Fprintf(c.cfg.log, "session of %s lost: %v\n", host.ID, err)
	}
}

// fetch has a run read from the origin, whose link is as fast as a host's; it returns when that is done.
func (c *crowd) fetch(ctx context.Context, r api.Run) error {
	c.mu.Lock()
	now := time.Now()
	if c.origin.Before(now) {
		c.origin = now
	}
	c.origin = c.origin.Add(inSeconds(c.cfg.link.Seconds(int64(r[1]-r[0]) * c.layout.PieceSize)))
	until := c.origin
	c.leased += r[1] - r[0]
	c.mu.Unlock()
	if err := sleep(ctx, time.Until(until)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := r[0]; i < r[1]; i++ {
		if !c.seen.Has(piece.Index(i)) {
			c.seen.Add(piece.Index(i))
			c.born = append(c.born, i)
		}
	}
	return nil
}

func (c *crowd) waited(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits = append(c.waits, d.Seconds())
}

// bornSince returns the pieces that were read after the first n.
func (c *crowd) bornSince(n int) []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.born[n:])
}

func (c *crowd) result(m cluster.Metrics) loadResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	events, commands := m.Sum("shoal_scheduler_events_total"), m.Sum("shoal_scheduler_commands_total")
	pieces := c.layout.Count()
	return loadResult{
		Hosts: c.cfg.hosts, Pieces: pieces, PieceBytes: c.layout.PieceSize, Events: int64(events), Commands: int64(commands),
		MessagesPerPiece: (events + commands) / float64(pieces), SessionsLost: c.lost, OriginCopies: float64(c.leased) / float64(pieces),
		StepP50: m.Quantile("shoal_scheduler_step_seconds", 0.5), StepP99: m.Quantile("shoal_scheduler_step_seconds", 0.99),
		LeaseP50: quantile(c.waits, 0.5), LeaseP99: quantile(c.waits, 0.99),
	}
}

// quantile returns the least value that a share q of the values does not exceed; 0 of none. It sorts them.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[min(int(q*float64(len(values))), len(values)-1)]
}

// loadHost is one host of a crowd.
type loadHost struct {
	crowd  *crowd
	seed   bool
	leases chan api.Run
	rng    *rand.Rand // of gain alone

	mu      sync.Mutex // guards all below
	session *api.Session
	have    *piece.Set
	free    time.Time // when what was read last was reported
}

// Opened implements api.Handler.
func (h *loadHost) Opened(s *api.Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.session = s
	if !h.seed {
		s.Send(api.Event{Join: &api.Join{Task: h.crowd.task, Have: runsOf(h.have), Wants: true}})
	}
}

// Command implements api.Handler. Neighbours and the like are what the host would work with; here they only cost their transport.
func (h *loadHost) Command(_ *api.Session, cmd api.Command) {
	if cmd.Lease == nil {
		return
	}
	h.mu.Lock()
	if !h.free.IsZero() {
		h.crowd.waited(time.Since(h.free))
		h.free = time.Time{}
	}
	h.mu.Unlock()
	select {
	case h.leases <- cmd.Lease.Run:
	default: // more than a host is ever given; the scheduler will lease it anew
	}
}

func (h *loadHost) send(gained *piece.Set, reading bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range gained.All() {
		h.have.Add(i)
	}
	if reading {
		h.free = time.Now()
	}
	if h.session != nil {
		h.session.Send(api.Event{Progress: &api.Progress{Task: h.crowd.task.ID, Gained: runsOf(gained), Reading: reading, Done: h.have.Full()}})
	}
}

// read reads what the seed is leased, and reports it at once.
func (h *loadHost) read(ctx context.Context) error {
	for {
		select {
		case r := <-h.leases:
			if err := h.crowd.fetch(ctx, r); err != nil {
				return err
			}
			gained := piece.NewSet(h.crowd.layout.Count())
			for i := r[0]; i < r[1]; i++ {
				gained.Add(piece.Index(i))
			}
			h.send(gained, true)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// gain has the host get pieces as fast as its link would bring them, and reports them as often as a node does. It returns when the host
// has everything.
func (h *loadHost) gain(ctx context.Context) error {
	c := h.crowd
	count, known := c.layout.Count(), 0
	var open []int // read, and not held here
	for held := 0; held < count; {
		if err := sleep(ctx, loadReport-loadReport/8+time.Duration(h.rng.Int64N(int64(loadReport/4)))); err != nil {
			return err
		}
		fresh := c.bornSince(known)
		known += len(fresh)
		open = append(open, fresh...)
		h.rng.Shuffle(len(open), func(i, j int) { open[i], open[j] = open[j], open[i] })
		arrived := int(time.Since(c.began).Seconds() / c.cfg.link.Seconds(c.layout.PieceSize))
		n := min(len(open), max(arrived-held, 0))
		gained := piece.NewSet(count)
		for _, i := range open[:n] {
			gained.Add(piece.Index(i))
		}
		open, held = open[n:], held+n
		if n > 0 {
			h.send(gained, false)
		}
	}
	return nil
}

// loadReport is how often a node that does not read the origin reports.
const loadReport = 3500 * time.Millisecond // as in package dispatch

func runsOf(s *piece.Set) []api.Run {
	var runs []api.Run
	for i := range s.All() {
		if n := len(runs); n > 0 && runs[n-1][1] == int(i) {
			runs[n-1][1]++
			continue
		}
		runs = append(runs, api.Run{int(i), int(i) + 1})
	}
	return runs
}
