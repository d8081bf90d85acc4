package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shoal-project/shoal/converter"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/cmd/internal/local"
)

// bytesText is a size for people.
func bytesText(n int64) string { return local.SizeText(n) }

const (
	// onTerminal and inLog are how often the state is shown.
	onTerminal = 200 * time.Millisecond
	inLog      = 5 * time.Second
	// rateWindow is how far back the rate looks: long enough to be calm, short enough to be of now.
	rateWindow = 5 * time.Second
	// maxSteps is how many steps of a stage are remembered.
	maxSteps = 64
)

// progress shows what takes time: a bar that changes on a terminal, a line every few seconds elsewhere. It is safe for concurrent
// use.
type progress struct {
	w        io.Writer
	terminal bool
	now      func() time.Time
	width    func() int

	mu      sync.Mutex
	state   progressState
	samples []sample // of the last rateWindow, oldest first
	shown   bool     // a bar is on the screen

	stop    chan struct{}
	stopped sync.WaitGroup
}

// progressState is what is to be shown.
type progressState struct {
	steps      stages[[]string] // that have begun and are not known to be over, the last one last
	step       string           // the last one of all
	plan, done stages[int64]
	rate       float64 // bytes a second
	wait       waiting
}

// stages has something of each converter.Stage.
type stages[T any] [converter.Push + 1]T

// waiting is why nothing moves until then.
type waiting struct {
	why   string
	until time.Time
}

func (w waiting) text(now time.Time) string {
	left := w.until.Sub(now)
	unit := time.Second
	if left < 10*time.Second {
		unit = 100 * time.Millisecond
	}
	return fmt.Sprintf("%s, trying again in %v s", w.why, left.Round(unit).Seconds())
}

// sample is how much was done at a time.
type sample struct {
	at   time.Time
	done int64
}

func newProgress(w io.Writer) *progress {
	return &progress{
		w: w, terminal: isTerminal(w), now: time.Now, width: func() int { return terminalWidth(w) }, stop: make(chan struct{}),
	}
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("TERM") != "dumb"
}

// terminalWidth returns the columns of the terminal, which may change.
func terminalWidth(w io.Writer) int {
	const usual = 80
	if file, ok := w.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
			return int(size.Col)
		}
	}
	return usual
}

// run shows the state from time to time until end.
func (p *progress) run() {
	p.mu.Lock()
	p.measureLocked() // so that the first rate is one since the start
	p.mu.Unlock()
	every := inLog
	if p.terminal {
		every = onTerminal
	}
	p.stopped.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.show()
			case <-p.stop:
				return
			}
		}
	})
}

// Step announces what begins in a stage.
func (p *progress) Step(s converter.Stage, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.step = printable(text)
	steps := append(p.state.steps[s], p.state.step)
	p.state.steps[s] = steps[max(0, len(steps)-maxSteps):]
}

// Ended forgets a step.
func (p *progress) Ended(s converter.Stage, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.state.steps[s], printable(text)); i >= 0 {
		p.state.steps[s] = slices.Delete(p.state.steps[s], i, i+1)
	}
}

// Wait says why nothing moves for a while. In a log that is a line of its own, but for what waits for the same meanwhile.
func (p *progress) Wait(why string, pause time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, before := p.now(), p.state.wait
	p.state.wait = waiting{printable(why), now.Add(pause)}
	if !p.terminal && (before.why != p.state.wait.why || !now.Before(before.until)) {
		fmt.Fprintln(p.w, p.state.wait.text(now))
	}
}

// Plan adds to what is to be done.
func (p *progress) Plan(s converter.Stage, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.plan[s] += n
}

// Done adds to what is done.
func (p *progress) Done(s converter.Stage, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.done[s] += n
}

func (p *progress) show() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.measureLocked()
	if !p.terminal {
		fmt.Fprintln(p.w, p.state.line(p.now()))
		return
	}
	p.shown = true
	fmt.Fprintf(p.w, "\r\x1b[K%s", p.state.bar(p.now(), p.width()-1))
}

// measureLocked computes the rate of the last seconds.
func (p *progress) measureLocked() {
	s := sample{p.now(), sum(p.state.done)}
	p.samples = append(p.samples, s)
	for len(p.samples) > 2 && s.at.Sub(p.samples[1].at) >= rateWindow {
		p.samples = p.samples[1:]
	}
	first := p.samples[0]
	if seconds := s.at.Sub(first.at).Seconds(); seconds > 0 {
		p.state.rate = max(0, float64(s.done-first.done)/seconds) // an upload that begins anew goes back
	}
}

// end removes the bar.
func (p *progress) end() {
	close(p.stop)
	p.stopped.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

// total returns what is done and to be done in all. What is read by convert will be pushed too, which is not planned before.
func (s *progressState) total() (done, plan int64) {
	plan = sum(s.plan)
	if pushed := s.plan[converter.Push]; pushed > 0 {
		read := plan - pushed
		plan += max(read-pushed, 0)
	}
	return max(sum(s.done), 0), plan
}

func sum(list stages[int64]) (n int64) {
	for _, v := range list {
		n += v
	}
	return n
}

// label is why nothing moves or, of the stages under way, the step of the one that has most left to do.
func (s *progressState) label(now time.Time) string {
	if now.Before(s.wait.until) {
		return s.wait.text(now)
	}
	label, most := s.step, int64(0)
	for stage, steps := range s.steps {
		if left := s.plan[stage] - s.done[stage]; len(steps) > 0 && left > most {
			label, most = steps[len(steps)-1], left
		}
	}
	return label
}

// left says how long the rest takes at this rate; "" if that cannot be said.
func (s *progressState) left() string {
	done, plan := s.total()
	if s.rate < 1 || plan <= done {
		return ""
	}
	seconds := float64(plan-done) / s.rate
	if seconds > 99*3600 {
		return ""
	}
	return (time.Duration(seconds) * time.Second).String() + " left"
}

// line is the state in a log.
func (s *progressState) line(now time.Time) string {
	names := stages[string]{converter.Read: "read", converter.Base: "read", converter.Push: "pushed"}
	if s.plan[converter.Read] > 0 && s.plan[converter.Base] > 0 { // at once
		names[converter.Read], names[converter.Base] = "model", "base"
	}
	var parts []string
	for stage, name := range names {
		if s.plan[stage] > 0 {
			parts = append(parts, fmt.Sprintf("%s %s of %s", name, bytesText(s.done[stage]), bytesText(s.plan[stage])))
		}
	}
	done, plan := s.total()
	if plan == 0 {
		return s.label(now)
	}
	parts = append(parts, fmt.Sprintf("%d%%", percentDone(done, plan)))
	parts = append(parts, bytesText(int64(s.rate))+"/s")
	if left := s.left(); left != "" {
		parts = append(parts, left)
	}
	return strings.Join(parts, ", ") + ": " + s.label(now)
}

func percentDone(done, plan int64) int64 { return min(100, int64(100*float64(done)/float64(plan))) }

// bar is the state on a terminal, in no more than width columns: [####....]  42%  1.2 GiB of 2.9 GiB  310.0 MiB/s  5s left  step
// While nothing moves, why that is stands in the place of all but the share.
func (s *progressState) bar(now time.Time, width int) string {
	done, plan := s.total()
	if plan == 0 {
		return cutText(s.label(now), width)
	}
	text, widest := fmt.Sprintf(" %3d%%", percentDone(done, plan)), 12
	if !now.Before(s.wait.until) {
		text += fmt.Sprintf("  %s of %s  %s/s", bytesText(done), bytesText(plan), bytesText(int64(s.rate)))
		if left := s.left(); left != "" {
			text += "  " + left
		}
		widest = 30
	}
	room := min(widest, (width-len(text))/2)
	if room < 8 {
		return cutText(strings.TrimSpace(text), width)
	}
	full := int(percentDone(done, plan)) * (room - 2) / 100
	line := "[" + strings.Repeat("#", full) + strings.Repeat(".", room-2-full) + "]" + text
	return cutText(line+"  "+s.label(now), width)
}

// cutText cuts to columns; texts here are mostly ASCII, wide letters at worst wrap the line.
func cutText(s string, width int) string {
	r := []rune(s)
	return strings.TrimRight(string(r[:max(0, min(len(r), width))]), " ")
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

// display is who shows what happens.
type display struct {
	converter.Progress                                       // nil if nobody wants to see it
	wait               func(why string, pause time.Duration) // nil too then
	warn               *slog.Logger
	end                func()
}

// startProgress shows what happens until end is called, unless nobody wants to see it, and what is worth a warning in any case.
func startProgress(ctx *cli.Context) display {
	if ctx.Bool("quiet") {
		return display{warn: newWarnings(ctx.App.ErrWriter), end: func() {}}
	}
	bar := newProgress(ctx.App.ErrWriter)
	bar.run()
	return display{bar, bar.Wait, newWarnings(bar), bar.end}
}

// newWarnings returns a logger for people: a line for each warning, without a clock.
func newWarnings(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{
		Level: slog.LevelWarn,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// Write prints a line of the log where the bar stands, which comes back below it.
func (p *progress) Write(line []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	return p.w.Write(line)
}
