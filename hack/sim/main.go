// Command sim runs a whole swarm in one process and without a clock: the real scheduler (scheduler.Machine), the real planner of every host
// (peer/dispatch.Planner) and the real upload slots (peer/transfer.Slots), over links that share their bytes fairly. The same seed gives the
// same run. It prints how near to the fluid lower bound a broadcast comes in each scenario, and what it costs.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime/pprof"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/shoal-project/shoal/peer/transfer"
)

func main() { os.Exit(main1(os.Args[1:], os.Stdout, os.Stderr)) }

func main1(args []string, stdout, stderr io.Writer) int {
	err := simulate(args, stdout, stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	default:
		fmt.Fprintf(stderr, "sim: %v\n", err)
		return 1
	}
}

// result is one run, as printed.
type result struct {
	Scenario string `json:"scenario"`
	Peers    int    `json:"peers"`
	Pieces   int    `json:"pieces"`
	Seeds    int    `json:"seeds"`
	Seed     uint64 `json:"seed"`
	// Ratio is the time until the last host had everything to the fluid lower bound of that.
	Ratio        float64  `json:"ratio"`
	Median       float64  `json:"median_ratio"` // of the host in the middle
	Makespan     float64  `json:"makespan_seconds"`
	Bound        float64  `json:"bound_seconds"`
	OriginDone   float64  `json:"origin_done_ratio"` // when the origin had sent its last byte, to the bound
	OriginCopies float64  `json:"origin_copies"`
	ZoneCopies   float64  `json:"zone_copies"`                  // what crossed the border
	Messages     float64  `json:"scheduler_messages_per_piece"` // both ways, without signs of life
	Requests     float64  `json:"requests_per_piece_and_host"`
	Busy         float64  `json:"busy_per_request"`
	Shared       float64  `json:"shared_per_request"`
	Wrong        int      `json:"wrong_pieces"`
	LateRatio    float64  `json:"late_ratio,omitempty"` // of the late host alone
	Seconds      float64  `json:"cpu_seconds"`
	Faults       []string `json:"faults,omitempty"`
}

func (s *sim) result() result {
	size := float64(s.cfg.pieces) * float64(s.cfg.pieceSize)
	r := result{Scenario: s.sc.name, Peers: s.cfg.peers, Pieces: s.cfg.pieces, Seeds: s.cfg.seeds, Seed: s.cfg.seed, Bound: s.bound(),
		OriginCopies: s.net.originBytes / size, ZoneCopies: s.net.crossedBytes / size, Wrong: s.wrong,
		Messages: float64(s.messages) / float64(s.cfg.pieces), Requests: float64(s.requests) / float64(s.cfg.pieces*s.cfg.peers),
		Busy: float64(s.busy) / float64(max(s.requests, 1)), Shared: float64(s.shared) / float64(max(s.requests, 1))}
	var ends []float64
	for _, h := range s.hosts {
		if h.doomed || h.seed && !h.begun { // a seed that was given nothing to read wants nothing
			continue
		}
		if h.finishAt == 0 && len(s.faults) == 0 {
			s.fault("%s has %d of %d pieces", h.name, h.have.Count(), s.cfg.pieces)
		}
		end := (h.finishAt - s.sc.idle).Seconds()
		ends = append(ends, end)
		r.Makespan = max(r.Makespan, end)
	}
	if s.sc.late {
		last := s.hosts[len(s.hosts)-1]
		r.LateRatio = (last.finishAt - last.joinAt).Seconds() / (size / last.down)
	}
	slices.Sort(ends)
	r.Median = ends[len(ends)/2] / r.Bound
	r.OriginDone = (s.originDone - s.sc.idle).Seconds() / r.Bound
	r.Ratio, r.Faults = r.Makespan/r.Bound, s.faults
	return r
}

func newRand(a, b uint64) *rand.Rand { return rand.New(rand.NewPCG(a, b)) }

func simulate(args []string, stdout, stderr io.Writer) error {
	var (
		cfg    = config{latency: 500 * time.Microsecond, crossing: 2 * time.Millisecond}
		flags  = flag.NewFlagSet("sim", flag.ContinueOnError)
		names  = flags.String("scenario", "every", "comma-separated `NAMES` of scenarios, or every")
		nruns  = flags.Int("runs", 1, "runs of each scenario, with seeds counted up from --seed; the table has the medians")
		rate   = flags.Float64("rate", 200, "rate of a host's link in `MBIT/S`")
		kib    = flags.Int64("piece", 256, "size of a piece in `KIB`")
		list   = flags.Bool("list", false, "list the scenarios")
		asJSON = flags.Bool("json", false, "print JSON only, one line a run, no table")
	)
	flags.IntVar(&cfg.peers, "peers", 256, "hosts, the seeds among them")
	flags.IntVar(&cfg.pieces, "pieces", 512, "pieces of the blob")
	flags.IntVar(&cfg.seeds, "seeds", 4, "hosts that are seeds; they are never grey, liars or crash, but for seedloss")
	flags.Uint64Var(&cfg.seed, "seed", 1, "seed of all that is random")
	flags.BoolVar(&cfg.stream, "stream", false, "hosts read the blob in order instead of prefetching it")
	profile := flags.String("cpuprofile", "", "write a profile of the simulator's CPU time to `FILE`")
	flags.DurationVar(&cfg.spacing, "spacing", -1, "how long a host that is no seed sends a piece to nobody else after it began to")
	flags.DurationVar(&cfg.seedSpacing, "seed-spacing", transfer.DefaultSpacing, "the same of seeds")
	flags.DurationVar(&cfg.firstByte, "first-byte", 5*time.Millisecond, "time to the first byte of what is read from the origin")
	flags.IntVar(&cfg.machine.Neighbours, "neighbours", 0, "neighbours a host; 0 is the scheduler's default")
	flags.IntVar(&cfg.machine.Crossings, "crossings", 0, "pieces on their way into a zone, at least; 0 is the scheduler's default")
	flags.Int64Var(&cfg.machine.CrossingBytes, "crossing-bytes", 0, "bytes on their way into a zone; 0 is the scheduler's default")
	flags.IntVar(&cfg.planner.InFlight, "in-flight", 0, "requests a host has out; 0 is the planner's default")
	flags.IntVar(&cfg.slots, "slots", transfer.DefaultUploadSlots, "uploads of a host at a time")
	flags.DurationVar(&cfg.haves, "haves", transfer.DefaultHavesInterval, "the interval of what a host tells of its pieces")
	flags.DurationVar(&cfg.planner.BusyPause, "busy-pause", 0, "pause after a busy answer; 0 is the planner's default")
	flags.DurationVar(&cfg.planner.SharedPause, "shared-pause", 0, "pause of a piece that is sent to another; 0 is the planner's default")
	flags.IntVar(&cfg.machine.Leases, "all-leases", 0, "leases at a time; 0 is the scheduler's default")
	flags.IntVar(&cfg.planner.Beside, "beside", 0, "requests while the origin is read; 0 is the planner's default")
	flags.IntVar(&cfg.machine.LeasesPerHost, "leases", 0, "leases of a seed at a time; 0 is the scheduler's default")
	flags.IntVar(&cfg.planner.SourceRuns, "source-runs", 0, "reads of the origin at a time; 0 is the planner's default")
	flags.Int64Var(&cfg.machine.LeaseBytes, "lease-bytes", 0, "length of a lease; 0 is the scheduler's default")
	flags.SetOutput(stderr)
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return cmp.Or(err, fmt.Errorf("%q is no flag; see -h", flags.Arg(0)))
	}
	if *list {
		for _, sc := range scenarios() {
			fmt.Fprintf(stdout, "%-9s %s\n", sc.name, sc.about)
		}
		return nil
	}
	scs, err := pick(*names)
	if err != nil {
		return err
	}
	if cfg.peers < 2 || cfg.pieces < 1 || cfg.seeds < 0 || cfg.seeds >= cfg.peers || *nruns < 1 || *rate <= 0 || *kib < 1 {
		return errors.New("want at least 2 peers, 1 piece and 1 run, fewer seeds than peers, and a rate and a piece above 0")
	}
	cfg.rate, cfg.pieceSize = *rate*1e6/8, *kib<<10
	stop, err := profiled(*profile)
	if err != nil {
		return err
	}
	defer stop()
	return all(cfg, scs, *nruns, printer{stdout, *asJSON})
}

// profiled writes a CPU profile to a file, if one is named, until stop is called.
func profiled(path string) (stop func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		_ = file.Close() // a profile is no result
	}, pprof.StartCPUProfile(file)
}

type printer struct {
	io.Writer
	json bool
}

// all runs every scenario and prints a line of JSON a run, and the table of medians.
func all(cfg config, scs []scenario, nruns int, out printer) error {
	var faulty bool
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "scenario\tmedian host\tratio\tmin\tmax\torigin done\torigin copies\tzone copies\tmessages/piece\trequests\tbusy\tshared\tlate\t")
	for _, sc := range scs {
		var rs []result
		for run := range nruns {
			c := cfg
			c.seed += uint64(run)
			began := time.Now()
			r := newSim(c, sc).run()
			r.Seconds = time.Since(began).Seconds()
			rs = append(rs, r)
			faulty = faulty || len(r.Faults) > 0
			line, err := json.Marshal(r)
			if err != nil {
				return err
			}
			fmt.Fprintln(out, string(line))
		}
		of := func(f func(result) float64) []float64 {
			var v []float64
			for _, r := range rs {
				v = append(v, f(r))
			}
			slices.Sort(v)
			return v
		}
		mid := func(f func(result) float64) float64 { return of(f)[len(rs)/2] }
		ratios := of(func(r result) float64 { return r.Ratio })
		fmt.Fprintf(table, "%s\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.1f\t%.2f\t%.2f\t%.2f\t%.3f\t\n", sc.name, mid(func(r result) float64 { return r.Median }), ratios[len(rs)/2], ratios[0], ratios[len(rs)-1], mid(func(r result) float64 { return r.OriginDone }),
			mid(func(r result) float64 { return r.OriginCopies }), mid(func(r result) float64 { return r.ZoneCopies }),
			mid(func(r result) float64 { return r.Messages }), mid(func(r result) float64 { return r.Requests }),
			mid(func(r result) float64 { return r.Busy }), mid(func(r result) float64 { return r.Shared }),
			mid(func(r result) float64 { return r.LateRatio }))
	}
	if !out.json {
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if faulty {
		return errors.New("something that must always hold did not; see faults")
	}
	return nil
}
