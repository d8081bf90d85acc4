package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

func chaosCommand() *cli.Command {
	return &cli.Command{
		Name:  "chaos",
		Usage: "read through many swarms to which random things happen, and check that everybody gets the right bytes",
		Description: "Each run makes a cluster of two schedulers, two seeds and four nodes, which read one blob at once. One to four random\n" +
			"mishaps happen meanwhile: daemons are killed, hang and come back, cables are pulled, hosts lie, the registry fails in all ways it can.\n" +
			"A seed decides all of that; --first SEED --runs 1 does one run again, though not to the millisecond. It fails when a node that\n" +
			"is not gone for good does not get the right bytes.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "runs", Value: 100, Usage: "`NUMBER` of runs"},
			&cli.Uint64Flag{Name: "first", Value: 1, Usage: "`SEED` of the first run; the others follow by one"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object at the end"},
		},
		Action: func(ctx *cli.Context) error {
			if ctx.Int("runs") < 1 {
				return fmt.Errorf("--runs %d: want at least 1", ctx.Int("runs"))
			}
			if err := cluster.CheckTools("ip", "tc", "docker-registry"); err != nil {
				return err
			}
			return withShoal(ctx, func(shoal string) error {
				r := chaos(ctx.Context, shoal, ctx.App.ErrWriter, ctx.Uint64("first"), ctx.Int("runs"))
				if ctx.Context.Err() != nil {
					return context.Cause(ctx.Context)
				}
				var err error
				if ctx.Bool("json") {
					err = json.NewEncoder(ctx.App.Writer).Encode(r)
				} else {
					_, err = fmt.Fprintf(ctx.App.Writer, "%d runs, %d failed; added seconds: median %.2f, most %.2f; origin copies: median %.2f, most %.2f; "+
						"%d readers went to the registry, %d read again\n",
						r.Runs, len(r.Failed), r.AddedMedian, r.AddedMost, r.CopiesMedian, r.CopiesMost, r.Fallbacks, r.ReadAgain)
				}
				if err == nil && len(r.Failed) > 0 {
					err = fmt.Errorf("failed: seeds %v", r.Failed)
				}
				return err
			})
		},
	}
}

// chaosResult is what the command prints. The figures are over the runs that did not fail.
type chaosResult struct {
	Runs         int      `json:"runs"`
	Failed       []uint64 `json:"failed_seeds"`
	AddedMedian  float64  `json:"added_seconds_median"`
	AddedMost    float64  `json:"added_seconds_most"`
	CopiesMedian float64  `json:"origin_copies_median"`
	CopiesMost   float64  `json:"origin_copies_most"`
	Fallbacks    int      `json:"fallbacks"` // readers that went to the registry because their mirror failed, of four in each run
	ReadAgain    int      `json:"read_again"`
}

// chaos makes the runs, odd ones with chunk maps and even ones without.
func chaos(ctx context.Context, shoal string, log io.Writer, first uint64, runs int) chaosResult {
	r := chaosResult{Runs: runs, Failed: []uint64{}}
	var added, copies []float64
	for seed := first; seed < first+uint64(runs) && ctx.Err() == nil; seed++ {
		m := randomMishap(rand.New(rand.NewPCG(seed, 0)))
		fmt.Fprintf(log, "seed %d: %s\n", seed, m.what)
		err := withTrial(ctx, shoal, log, seed%2 == 1, func(t *trial) error {
			s, err := t.suffer(ctx, m)
			if err == nil {
				added, copies = append(added, (s.took-s.calm).Seconds()), append(copies, s.copies)
				r.Fallbacks, r.ReadAgain = r.Fallbacks+s.turned.fallbacks, r.ReadAgain+s.turned.again
			}
			return err
		})
		if err != nil {
			fmt.Fprintf(log, "seed %d: FAILED: %v\n", seed, err)
			r.Failed = append(r.Failed, seed)
		}
	}
	if len(added) > 0 {
		r.AddedMedian, r.AddedMost = median(added), slices.Max(added)
		r.CopiesMedian, r.CopiesMost = median(copies), slices.Max(copies)
	}
	return r
}

// An incident is one random thing with who it happens to and when already chosen.
type incident struct {
	what string
	at   time.Duration // after a quarter of the bytes has moved
	do   func(context.Context, *trial) error
}

// randomMishap draws one to four incidents. Never do all nodes vanish for good, and what fails at the registry fails a few times
// only: with it down for good there is nothing to check.
func randomMishap(rng *rand.Rand) mishap {
	m := mishap{name: "chaos"}
	var incidents []incident
	for range 1 + rng.IntN(4) {
		i := randomIncident(rng)
		i.at = time.Duration(rng.IntN(1000)) * time.Millisecond
		incidents = append(incidents, i)
		m.what += fmt.Sprintf("%s after %v; ", i.what, i.at)
	}
	slices.SortFunc(incidents, func(a, b incident) int { return int(a.at - b.at) })
	m.during = func(ctx context.Context, t *trial) error {
		start := time.Now()
		for _, i := range incidents {
			if err := sleep(ctx, time.Until(start.Add(i.at))); err != nil {
				return err
			}
			if err := i.do(ctx, t); err != nil && !errors.Is(err, os.ErrProcessDone) { // it was killed before
				return fmt.Errorf("%s: %w", i.what, err)
			}
		}
		return nil
	}
	return m
}

func randomIncident(rng *rand.Rand) incident {
	switch rng.IntN(11) {
	case 0, 1:
		return schedulerIncident(rng)
	case 2, 3:
		return originIncident(rng)
	case 4, 5:
		return hostIncident(rng, "seed", func(t *trial) []*cluster.Node { return t.seeds })
	case 6:
		return incident{what: "node-1 and node-2 are killed at once", do: func(_ context.Context, t *trial) error {
			t.lose(t.nodes[:2]...)
			for _, n := range t.nodes[:2] {
				n.Kill()
			}
			return nil
		}}
	default:
		return hostIncident(rng, "node", func(t *trial) []*cluster.Node { return t.nodes })
	}
}

// hostIncident happens to a seed or a node. One that does not come back is node-1 or node-2.
func hostIncident(rng *rand.Rand, kind string, of func(*trial) []*cluster.Node) incident {
	who, pause := rng.IntN(2), time.Duration(rng.IntN(1500))*time.Millisecond
	name := fmt.Sprintf("%s-%d", kind, who+1)
	gone := func(fn func(context.Context, *cluster.Node) error) func(context.Context, *trial) error {
		return func(ctx context.Context, t *trial) error {
			n := of(t)[who]
			t.lose(n)
			return fn(ctx, n)
		}
	}
	// passing breaks the host, waits and mends it; its own reader waits too.
	passing := func(spoil, mend func(context.Context, *cluster.Node) error) func(context.Context, *trial) error {
		return func(ctx context.Context, t *trial) error {
			n := of(t)[who]
			t.setAway(n, true)
			defer t.setAway(n, false)
			return errors.Join(spoil(ctx, n), sleep(ctx, pause), mend(ctx, n))
		}
	}
	kill := func(_ context.Context, n *cluster.Node) error { n.Kill(); return nil }
	start := func(ctx context.Context, n *cluster.Node) error { n.Kill(); return n.Start(ctx) }
	stop := func(_ context.Context, n *cluster.Node) error { return n.Pause() }
	plugged := func(on bool) func(context.Context, *cluster.Node) error {
		return func(ctx context.Context, n *cluster.Node) error { return n.Host().SetPlugged(ctx, on) }
	}
	link := func(rate cluster.Rate) func(context.Context, *cluster.Node) error {
		return func(ctx context.Context, n *cluster.Node) error { return n.Host().SetLink(ctx, rate) }
	}
	lie := rng.Int64N(trialSize)
	all := []incident{
		{what: name + " is killed", do: gone(kill)},
		{what: name + " hangs", do: gone(stop)},
		{what: name + " loses its cable", do: gone(plugged(false))},
		{what: name + " becomes slow", do: gone(link(trialLink / 100))},
		{what: fmt.Sprintf("%s is killed and comes back after %v", name, pause), do: passing(kill, start)},
		{what: fmt.Sprintf("%s hangs for %v", name, pause), do: passing(stop, func(_ context.Context, n *cluster.Node) error { return n.Resume() })},
		{what: fmt.Sprintf("%s is without its cable for %v", name, pause), do: passing(plugged(false), plugged(true))},
		{what: fmt.Sprintf("%s is slow for %v", name, pause), do: passing(link(trialLink/100), link(trialLink))},
		{what: fmt.Sprintf("%s lies at %d", name, lie), do: func(_ context.Context, t *trial) error {
			of(t)[who].Proxy.Set(cluster.Fault{Kind: cluster.Flip, Path: blobPaths, At: lie})
			return nil
		}},
	}
	return all[rng.IntN(len(all))]
}

func schedulerIncident(rng *rand.Rand) incident {
	who, pause := rng.IntN(2), time.Duration(rng.IntN(1500))*time.Millisecond
	name := fmt.Sprintf("scheduler-%d", who+1)
	all := []incident{
		{what: name + " is killed", do: func(_ context.Context, t *trial) error { t.schedulers[who].Kill(); return nil }},
		{what: name + " hangs", do: func(_ context.Context, t *trial) error { return t.schedulers[who].Pause() }},
		{what: name + " loses its cable", do: func(ctx context.Context, t *trial) error { return t.schedulers[who].Host().SetPlugged(ctx, false) }},
		{what: fmt.Sprintf("%s is killed and comes back after %v", name, pause), do: func(ctx context.Context, t *trial) error {
			t.schedulers[who].Kill()
			return errors.Join(sleep(ctx, pause), t.schedulers[who].Start(ctx))
		}},
	}
	return all[rng.IntN(len(all))]
}

func originIncident(rng *rand.Rand) incident {
	kinds := []struct {
		kind cluster.FaultKind
		what string
	}{
		{cluster.Hang, "hangs"},
		{cluster.Unavailable, "answers with 503"},
		{cluster.Cut, "breaks off"},
		{cluster.Short, "sends too little"},
		{cluster.WrongLength, "tells a wrong length"},
		{cluster.Slow, "is slow"},
		{cluster.Flip, "changes a byte"},
	}
	k, times, at := kinds[rng.IntN(len(kinds))], 1+rng.IntN(6), rng.Int64N(trialSize)
	return incident{what: fmt.Sprintf("the registry %s %d times", k.what, times), do: func(_ context.Context, t *trial) error {
		t.registry.Proxy.Set(cluster.Fault{Kind: k.kind, Path: "/blobs/", Times: times, BytesPerSecond: int(trialLink) / 80, At: at})
		return nil
	}}
}
