package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/shoal-project/shoal/converter"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

const convertHelp = `Pushes one image with two variants under one tag: a plain one that any runtime pulls and runs, and a Nydus one that
is mounted without being unpacked. Both hold the model's bytes in the same blobs, one for each large file.

The model lies in /models/NAME of the image, owned by root, readable by all; of permissions only "executable" is kept, of
times nothing. The same content gives the same digests, on any machine at any time.

Credentials are those of docker login, podman login or skopeo login. Registries on loopback addresses are spoken to in plain HTTP.

EXAMPLES:
   shoal convert --model ./llama --base docker.io/library/python:3.12-slim --target registry.example.com/ml/llama:v1
   shoal convert --model ./llama --base oci:./base:latest --target 127.0.0.1:5000/llama:v1 --output json
   shoal convert --model ./llama --base oci:./base --target x.example.com/llama:v1 --dry-run`

func convertCommand() *cli.Command {
	return command(&cli.Command{
		Name:        "convert",
		Usage:       "make an image of a model and a base image, and push it",
		Description: convertHelp,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "model", Usage: "`FOLDER` with the model's files (required)"},
			&cli.StringFlag{Name: "base", Usage: "base image with the framework: a `REFERENCE`, or oci:FOLDER[:TAG] for an OCI layout (required)"},
			&cli.StringFlag{Name: "target", Usage: "where to push, `REGISTRY/NAME:TAG` (required)"},
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the model (default: that of its folder)"},
			&cli.StringFlag{Name: "model-path", Usage: "`PATH` of the model in the image (default: /models/NAME)"},
			&cli.StringFlag{Name: "platform", Usage: "`OS/ARCH` to take from the base image (default: what it has, linux/amd64 if it has several)"},
			&cli.StringFlag{Name: "entrypoint", Usage: "replace the base image's entrypoint: one `COMMAND`, or a JSON list; drops its arguments too"},
			&cli.StringFlag{Name: "cmd", Usage: "replace the base image's arguments: one `ARGUMENT`, or a JSON list"},
			&cli.StringSliceFlag{Name: "env", Usage: "set `NAME=VALUE` in the image (may be repeated)"},
			&cli.BoolFlag{Name: "plain-http", Usage: "speak plain HTTP to the registries"},
			&cli.BoolFlag{Name: "dry-run", Usage: "compute everything, push nothing"},
			&cli.StringFlag{Name: "output", Value: "text", Usage: "`FORMAT` of the summary on standard output: text or json"},
			&cli.BoolFlag{Name: "quiet", Usage: "no progress"},
		},
		Action: convertAction,
	})
}

func convertAction(ctx *cli.Context) error {
	cfg := converter.Config{
		Model: ctx.String("model"), Base: ctx.String("base"), Target: ctx.String("target"),
		Name: ctx.String("name"), ModelPath: ctx.String("model-path"), Platform: ctx.String("platform"),
		PlainHTTP: ctx.Bool("plain-http"), Env: ctx.StringSlice("env"), DryRun: ctx.Bool("dry-run"),
	}
	var err error
	if cfg.Entrypoint, err = words(ctx, "entrypoint"); err != nil {
		return usageError(err)
	}
	if cfg.Cmd, err = words(ctx, "cmd"); err != nil {
		return usageError(err)
	}
	output := ctx.String("output")
	if output != "text" && output != "json" {
		return usageError(fmt.Errorf("--output %q: want text or json", output))
	}
	start := time.Now()
	var bar *progress
	if !ctx.Bool("quiet") {
		bar = newProgress(ctx.App.ErrWriter)
		cfg.Progress = bar
	}
	result, err := converter.Convert(ctx.Context, cfg)
	if bar != nil {
		bar.end()
	}
	if err != nil {
		return convertError(ctx.Context, "convert", err)
	}
	if output == "json" {
		enc := json.NewEncoder(ctx.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(result)
	}
	return printResult(ctx.App.Writer, result, time.Since(start))
}

// convertError chooses the exit code for the errors of package converter.
func convertError(ctx context.Context, command string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: interrupted; run it again", command)
	}
	for class, code := range map[error]int{
		converter.ErrConfig: exitUsage, converter.ErrSource: exitSource,
		converter.ErrRegistry: exitRegistry, converter.ErrVerify: exitVerify,
	} {
		if errors.Is(err, class) {
			if !errors.Is(err, converter.ErrConfig) { // whose faults have a line each
				err = errors.New(printable(err.Error()))
			}
			return &exitError{code, fmt.Errorf("%s: %w", command, err)}
		}
	}
	return fmt.Errorf("%s: %w", command, err)
}

// printable replaces what would end a line or speak to the terminal: names of files and of servers are not ours.
func printable(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// words reads a flag that is one word or a JSON list of them, as in a Dockerfile. An unset flag is nil.
func words(ctx *cli.Context, flag string) ([]string, error) {
	value := ctx.String(flag)
	if !ctx.IsSet(flag) {
		return nil, nil
	}
	if !strings.HasPrefix(strings.TrimSpace(value), "[") {
		return []string{value}, nil
	}
	list := []string{}
	if err := json.Unmarshal([]byte(value), &list); err != nil {
		return nil, fmt.Errorf("--%s %s: want one word or a JSON list of strings: %w", flag, value, err)
	}
	return list, nil
}

func printResult(w io.Writer, r *converter.Result, took time.Duration) error {
	var b strings.Builder
	verb := "pushed"
	if !r.Pushed {
		verb = "would push"
	}
	fmt.Fprintf(&b, "%s %s\n", verb, r.Target)
	fmt.Fprintf(&b, "  index     %s  %s\n", r.Digest, r.Platform)
	fmt.Fprintf(&b, "  plain     %s\n  nydus     %s\n", r.Plain, r.Nydus)
	for _, l := range r.Layers {
		fmt.Fprintf(&b, "  %-9s %s  %10s  %s\n", l.Kind, l.Digest, bytesText(l.Size), printable(l.Of))
	}
	fmt.Fprintf(&b, "model: %d files, %s, in %s; took %s\n", r.ModelFiles, bytesText(r.ModelBytes), printable(r.ModelPath), took.Round(10*time.Millisecond))
	_, err := io.WriteString(w, b.String())
	return err
}

// bytesText is a size for people.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}

// progress shows what a conversion does: one line that changes on a terminal, a line for each step and every few seconds
// elsewhere. It is safe for concurrent use.
type progress struct {
	w        io.Writer
	terminal bool
	start    time.Time

	mu         sync.Mutex
	step       string
	plan, done [2]int64 // by converter.Stage
	last       time.Time
}

func newProgress(w io.Writer) *progress {
	return &progress{w: w, terminal: isTerminal(w), start: time.Now()}
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("TERM") != "dumb"
}

func (p *progress) Step(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text = printable(text)
	p.step = text
	if p.terminal {
		p.showLocked()
		return
	}
	fmt.Fprintf(p.w, "%s\n", text)
}

func (p *progress) Plan(s converter.Stage, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plan[s] += n
}

func (p *progress) Done(s converter.Stage, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done[s] += n
	every := 100 * time.Millisecond
	if !p.terminal {
		every = 5 * time.Second
	}
	if p.last.IsZero() {
		p.last = time.Now()
	}
	if time.Since(p.last) >= every {
		p.showLocked()
	}
}

func (p *progress) showLocked() {
	p.last = time.Now()
	seconds := max(time.Since(p.start).Seconds(), 0.001)
	done, plan := p.done[0]+p.done[1], p.plan[0]+p.plan[1]
	line := fmt.Sprintf("read %s of %s, pushed %s of %s, %s/s", bytesText(p.done[0]), bytesText(p.plan[0]),
		bytesText(p.done[1]), bytesText(p.plan[1]), bytesText(int64(float64(done)/seconds)))
	// What is read will be pushed too; that is all there is to say about the rest.
	if rest := plan + max(p.plan[0]-p.plan[1], 0) - done; done > 0 && rest > 0 {
		line += ", " + time.Duration(float64(rest)/float64(done)*seconds*float64(time.Second)).Round(time.Second).String() + " left"
	}
	if !p.terminal {
		fmt.Fprintf(p.w, "  %s\n", line)
		return
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s · %s", line, p.step)
}

// end removes the changing line.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
