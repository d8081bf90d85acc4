package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

func faultCommand() *cli.Command {
	var help strings.Builder
	help.WriteString("Three containerds pull an image at once through their nodes. CASE is one of:\n")
	for _, test := range faultCases() {
		fmt.Fprintf(&help, "   %-22s %s\n", test.name, test.what)
	}
	help.WriteString("\nOr four nodes read a blob as containerd does, once in peace and once with a mishap, and what that adds is measured:\n")
	for _, m := range mishaps() {
		only := ""
		if m.named {
			only = "; only when named, for it happens to all of this machine"
		}
		fmt.Fprintf(&help, "   %-22s %s (at most %v%s)\n", m.name, m.what, m.bound, only)
	}
	help.WriteString("\nIt fails when a reader does not get the right bytes; a bound that is passed is told and no failure, for machines are noisy.")
	return &cli.Command{
		Name:        "fault",
		Usage:       "let something go wrong before or during a pull, check what arrives and measure what it costs",
		Description: help.String(),
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "case", Usage: "only this `CASE`, or those whose names begin with it; all when not given; may be repeated"},
			&cli.BoolFlag{Name: "converted", Usage: "pull an image made by shoal convert, whose blobs have chunk maps, instead of an ordinary one"},
			&cli.IntFlag{Name: "runs", Value: 1, Usage: "`NUMBER` of runs of each measured case; the median is told"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object for each case"},
		},
		Action: func(ctx *cli.Context) error {
			if ctx.Int("runs") < 1 {
				return fmt.Errorf("--runs %d: want at least 1", ctx.Int("runs"))
			}
			if err := cluster.CheckTools(faultTools()...); err != nil {
				return err
			}
			return withShoal(ctx, func(shoal string) error {
				f := faults{shoal: shoal, converted: ctx.Bool("converted"), runs: ctx.Int("runs"), out: ctx.App.Writer,
					log: ctx.App.Writer, json: ctx.Bool("json")}
				if f.json {
					f.log = ctx.App.ErrWriter
				}
				return f.run(ctx.Context, ctx.StringSlice("case"))
			})
		},
	}
}

// faults runs cases one after another and tells how they went.
type faults struct {
	shoal     string
	converted bool
	runs      int
	out, log  io.Writer
	json      bool
}

// pulled is the result of a case that is not measured.
type pulled struct {
	Case      string `json:"case"`
	What      string `json:"what"`
	Converted bool   `json:"converted"`
	OK        bool   `json:"ok"`
	Error     string `json:"error,omitempty"`
}

// run runs all cases whose names begin with one of only, or all; a case that fails does not keep the others from running.
func (f faults) run(ctx context.Context, only []string) error {
	wanted := func(name string) bool {
		return len(only) == 0 || slices.ContainsFunc(only, func(o string) bool { return strings.HasPrefix(name, o) })
	}
	var failed []string
	found := 0
	for _, test := range faultCases() {
		if !wanted(test.name) || ctx.Err() != nil {
			continue
		}
		found++
		fmt.Fprintf(f.log, "%s: %s\n", test.name, test.what)
		r := pulled{Case: test.name, What: test.what, Converted: f.converted, OK: true}
		if err := runFault(ctx, f.shoal, f.log, test, f.converted); err != nil {
			r.OK, r.Error = false, err.Error()
			failed = append(failed, test.name)
		}
		if err := f.tell(r, r.Error, "right bytes everywhere"); err != nil {
			return err
		}
	}
	for _, m := range mishaps() {
		if !wanted(m.name) || m.named && len(only) == 0 || ctx.Err() != nil {
			continue
		}
		found++
		fmt.Fprintf(f.log, "%s: %s\n", m.name, m.what)
		r := f.measure(ctx, m)
		if !r.OK {
			failed = append(failed, m.name)
		}
		word := map[bool]string{true: "within", false: "above"}[r.WithinBound]
		if err := f.tell(r, r.Error, fmt.Sprintf("right bytes everywhere; added %.2f s, %s the bound of %.1f s", r.AddedSeconds, word, r.BoundSeconds)); err != nil {
			return err
		}
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case found == 0:
		return fmt.Errorf("no case %s; see lab fault --help", strings.Join(only, ", "))
	case len(failed) > 0:
		return errors.New("failed: " + strings.Join(failed, ", "))
	}
	return nil
}

func (f faults) tell(result any, failure, good string) error {
	if f.json {
		return json.NewEncoder(f.out).Encode(result)
	}
	if failure != "" {
		good = "FAILED: " + failure
	}
	_, err := fmt.Fprintf(f.out, "  %s\n", good)
	return err
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
