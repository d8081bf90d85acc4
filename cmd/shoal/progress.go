package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/shoal-project/shoal/converter"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

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

// outputFlags are those of every command that takes its time and ends with a summary.
func outputFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "output", Value: "text", Usage: "`FORMAT` of the summary on standard output: text or json"},
		&cli.BoolFlag{Name: "quiet", Usage: "no progress"},
	}
}

// checkOutput returns whether the summary is JSON.
func checkOutput(ctx *cli.Context) (asJSON bool, err error) {
	switch output := ctx.String("output"); output {
	case "text":
		return false, nil
	case "json":
		return true, nil
	default:
		return false, usageError(fmt.Errorf("--output %q: want text or json", output))
	}
}

// startProgress shows what happens until end is called, unless nobody wants to see it.
func startProgress(ctx *cli.Context) (p converter.Progress, end func()) {
	if ctx.Bool("quiet") {
		return nil, func() {}
	}
	bar := newProgress(ctx.App.ErrWriter)
	return bar, bar.end
}
