package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/converter"
	"github.com/urfave/cli/v2"
)

// tool is what the commands around convert have in common: a call of package converter whose result is shown as text or JSON.
type tool[R any] struct {
	run  func(converter.Access, converter.Progress) (*R, error)
	text func(*R) string
}

func runTool[R any](ctx *cli.Context, t tool[R]) error {
	asJSON, err := checkOutput(ctx)
	if err != nil {
		return err
	}
	a, err := access(ctx)
	if err != nil {
		return err
	}
	shown := startProgress(ctx)
	a.Logger, a.Waiting = shown.warn, shown.wait
	result, err := t.run(a, shown.Progress)
	shown.end()
	if err != nil {
		return convertError(ctx.Context, ctx.Command.Name, err)
	}
	if asJSON {
		return writeJSON(ctx.App.Writer, result)
	}
	_, err = io.WriteString(ctx.App.Writer, t.text(result))
	return err
}

// arguments returns the arguments of a command, one for each of wants; who leaves one out is told what it is.
func arguments(ctx *cli.Context, wants ...string) ([]string, error) {
	args := ctx.Args().Slice()
	if len(args) < len(wants) {
		return nil, usageError(fmt.Errorf("%s: give it %s; see %s --help", ctx.Command.Name, wants[len(args)], ctx.Command.HelpName))
	}
	for i, a := range args {
		if a == "" {
			return nil, usageError(fmt.Errorf("%s: an empty argument; give it %s", ctx.Command.Name, wants[i]))
		}
	}
	return args, nil
}

// table writes columns that are aligned.
func table(b *strings.Builder, rows [][]string) {
	var text strings.Builder
	tw := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, printable(cell))
		}
		fmt.Fprintln(tw)
	}
	_ = tw.Flush() // into memory
	for line := range strings.Lines(text.String()) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
}

// shortDigest is enough of a digest to find it again in a list.
func shortDigest(d digest.Digest) string {
	const digits = 12
	if d.Validate() != nil || len(d.Encoded()) < digits {
		return string(d)
	}
	return d.Encoded()[:digits]
}

// shorten cuts a text to n runes.
func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func percent(share float64) string { return fmt.Sprintf("%.1f%%", 100*share) }

// count is a number of things in words.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
