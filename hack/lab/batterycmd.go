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

func containerdCommand() *cli.Command {
	var help strings.Builder
	help.WriteString("A containerd pulls an image over the kubelet's interface through its node, once in peace and once with a fault; told is what that adds.\n" +
		"Versions are 1.6 (Debian's), 1.7, 2.1 and 2.3; 2.1 and 2.3 also fetch layers in parallel chunks. CASE is one of:\n")
	for _, test := range batteryCases() {
		fmt.Fprintf(&help, "   %-22s %s (at most %v)\n", test.name, test.what, test.bound)
	}
	help.WriteString("\nIt fails when a pull fails or wrong bytes arrive; a bound that is passed is told and no failure, for machines are noisy.")
	return &cli.Command{
		Name:        "containerd",
		Usage:       "let something go wrong behind or in the mirror while containerds of several versions pull",
		Description: help.String(),
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "case", Usage: "only this `CASE`, or those whose names begin with it; all when not given; may be repeated"},
			&cli.StringSliceFlag{Name: "containerd", Usage: "only this `VERSION`; all when not given; may be repeated"},
			&cli.StringFlag{Name: "mode", Usage: "only `single` or parallel"},
			&cli.IntFlag{Name: "runs", Value: 1, Usage: "`NUMBER` of runs of each case; the median is told"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object for each case, and no table"},
		},
		Action: func(ctx *cli.Context) error {
			return withShoal(ctx, func(shoal string) error {
				b := battery{shoal: shoal, runs: max(ctx.Int("runs"), 1), log: ctx.App.ErrWriter, out: ctx.App.Writer, json: ctx.Bool("json")}
				who := slices.DeleteFunc(contestants(ctx.Path("cache")), func(c contestant) bool {
					only, mode := ctx.StringSlice("containerd"), ctx.String("mode")
					return len(only) > 0 && !slices.Contains(only, c.version) || mode != "" && mode != c.mode()
				})
				return b.run(ctx.Context, who, ctx.StringSlice("case"))
			})
		},
	}
}

// battery runs cases with containerds.
type battery struct {
	shoal    string
	runs     int
	out, log io.Writer
	json     bool
}

func batteryTools() []string { return []string{"ip", "tc", "docker-registry"} }

// run runs the cases whose names begin with one of only, or all, with all contestants. A case that fails does not keep the others from running.
func (b battery) run(ctx context.Context, who []contestant, only []string) error {
	cases := slices.DeleteFunc(batteryCases(), func(c batteryCase) bool {
		return len(only) > 0 && !slices.ContainsFunc(only, func(o string) bool { return strings.HasPrefix(c.name, o) })
	})
	if len(cases) == 0 || len(who) == 0 {
		return errors.New("nothing to run; see lab containerd --help")
	}
	tools := batteryTools()
	for _, c := range who {
		tools = append(tools, c.bin+"/containerd", c.bin+"/ctr")
	}
	if err := cluster.CheckTools(tools...); err != nil {
		return fmt.Errorf("%w containerds", err)
	}
	var results []batteryResult
	var failed []string
	for _, c := range who {
		for _, test := range cases {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			r := b.suffer(ctx, c, test)
			results = append(results, r)
			if !r.OK {
				failed = append(failed, c.String()+" "+test.name)
			}
			fmt.Fprintf(b.log, "containerd %s, %s: %s\n", c, test.name, r.cell()+"; "+r.Error)
			if b.json {
				if err := json.NewEncoder(b.out).Encode(r); err != nil {
					return err
				}
			}
		}
	}
	if !b.json {
		fmt.Fprint(b.out, batteryTable(cases, who, results))
	}
	if len(failed) > 0 {
		return errors.New("failed: " + strings.Join(failed, ", "))
	}
	return nil
}

// cell is a result in a table: the time added, bold when above the bound.
func (r batteryResult) cell() string {
	switch {
	case !r.OK:
		return "**FAILED**"
	case !r.WithinBound:
		return fmt.Sprintf("**%.2f**", r.AddedSeconds)
	}
	return fmt.Sprintf("%.2f", r.AddedSeconds)
}

// batteryTable is Markdown: a row for each case, a column for each contestant.
func batteryTable(cases []batteryCase, who []contestant, results []batteryResult) string {
	var b strings.Builder
	b.WriteString("| case | what happens | bound, s |")
	for _, c := range who {
		fmt.Fprintf(&b, " %s |", c)
	}
	b.WriteString("\n| --- | --- | --- |" + strings.Repeat(" --- |", len(who)) + "\n")
	for _, test := range cases {
		fmt.Fprintf(&b, "| %s | %s | %.2f |", test.name, test.what, test.bound.Seconds())
		for _, c := range who {
			at := slices.IndexFunc(results, func(r batteryResult) bool {
				return r.Case == test.name && r.Containerd == c.version && r.Mode == c.mode()
			})
			if at >= 0 {
				fmt.Fprintf(&b, " %s |", results[at].cell())
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}
