package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/shoal-project/shoal/converter"
	"golang.org/x/sys/unix"
)

func TestBarFitsTheTerminal(t *testing.T) {
	state := progressState{step: "read sha256:7f1b and what is long behind it", plan: stages[int64]{4 << 30}, done: stages[int64]{1 << 30}, rate: 256 << 20}
	for _, tc := range []struct {
		width int
		want  string
	}{
		{120, "[#######.....................]  25%  1.0 GiB of 4.0 GiB  256.0 MiB/s  12s left  read sha256:7f1b and what is long behind"},
		{70, "[##.......]  25%  1.0 GiB of 4.0 GiB  256.0 MiB/s  12s left  read sha2"},
		{40, "25%  1.0 GiB of 4.0 GiB  256.0 MiB/s  12"},
		{3, "25%"},
		{0, ""},
	} {
		got := state.bar(time.Time{}, tc.width)
		if utf8.RuneCountInString(got) > tc.width || !strings.HasPrefix(got+strings.Repeat(" ", 200), tc.want) {
			t.Errorf("%d columns:\nwant %q\ngot  %q", tc.width, tc.want, got)
		}
	}
}

func TestStateWithoutAPlanIsItsStep(t *testing.T) {
	state := progressState{step: "read manifests"}
	if got := state.bar(time.Time{}, 10) + "|" + state.line(time.Time{}); got != "read manif|read manifests" {
		t.Error(got)
	}
}

func TestTimeLeftIsSaidWhenItIsKnown(t *testing.T) {
	for _, tc := range []struct {
		name  string
		state progressState
		want  string
	}{
		{"stands still", progressState{plan: stages[int64]{100}}, ""},
		{"done", progressState{plan: stages[int64]{100}, done: stages[int64]{100}, rate: 10}, ""},
		{"reading", progressState{plan: stages[int64]{100}, done: stages[int64]{40}, rate: 10}, "6s left"},
		{"what is read will be pushed", progressState{plan: stages[int64]{60, 40, 50}, done: stages[int64]{50, 0, 50}, rate: 10}, "10s left"},
		{"for ever", progressState{plan: stages[int64]{1 << 50}, rate: 1}, ""},
		{"minutes", progressState{plan: stages[int64]{converter.Push: 1250}, rate: 10}, "2m5s left"},
	} {
		if got := tc.state.left(); got != tc.want {
			t.Errorf("%s: want %q, got %q", tc.name, tc.want, got)
		}
	}
}

// guarded is a buffer that may be read while it is written to.
type guarded struct {
	mu sync.Mutex
	bytes.Buffer
}

func (g *guarded) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.Buffer.Write(p)
}
func (g *guarded) String() string { g.mu.Lock(); defer g.mu.Unlock(); return g.Buffer.String() }

// In a log there is a line every 5 s, with the rate of the last 5 s and not that since the start.
func TestLogHasALineEveryFewSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out guarded
		p := newProgress(&out)
		p.run()
		p.Step(converter.Push, "copy a\nb")
		p.Plan(converter.Push, 100<<20)
		p.Done(converter.Push, 50<<20)
		time.Sleep(12500 * time.Millisecond) // of the bubble's clock
		p.Done(converter.Push, 10<<20)
		time.Sleep(3 * time.Second)
		p.end()
		want := []string{
			"pushed 50.0 MiB of 100.0 MiB, 50%, 10.0 MiB/s, 5s left: copy a\\nb",
			"pushed 50.0 MiB of 100.0 MiB, 50%, 0 B/s: copy a\\nb",
			"pushed 60.0 MiB of 100.0 MiB, 60%, 2.0 MiB/s, 20s left: copy a\\nb",
		}
		if got := strings.Split(strings.TrimSpace(out.String()), "\n"); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("want\n%s\ngot\n%s", strings.Join(want, "\n"), out.String())
		}
	})
}

// What goes on at once is told with numbers of its own, and called by what has most left.
func TestBaseAndModelAreBothTold(t *testing.T) {
	now := time.Unix(0, 0)
	state := progressState{plan: stages[int64]{4 << 30, 300 << 20}, done: stages[int64]{1 << 30, 290 << 20}, rate: 100 << 20}
	state.steps = stages[[]string]{{"hash weights"}, {"read base layer 2 of 3"}}
	state.step = "read base layer 2 of 3"
	if want, got := "model 1.0 GiB of 4.0 GiB, base 290.0 MiB of 300.0 MiB, 29%, 100.0 MiB/s, 30s left: hash weights", state.line(now); got != want {
		t.Errorf("want %q\ngot  %q", want, got)
	}
	if got := state.bar(now, 120); !strings.HasSuffix(got, "left  hash weights") {
		t.Error(got)
	}
	state.done[converter.Read] = 4 << 30
	if got := state.line(now); !strings.HasSuffix(got, ": read base layer 2 of 3") {
		t.Error(got)
	}
	state.done[converter.Base] = 300 << 20
	state.step = "write manifests"
	if got := state.line(now); !strings.HasSuffix(got, ": write manifests") {
		t.Error(got)
	}
}

// Of what goes on at once, that which is over is not told any more.
func TestStepThatEndedIsNotShown(t *testing.T) {
	p := newProgress(&bytes.Buffer{})
	p.Plan(converter.Read, 100)
	for _, step := range []string{"open x", "hash weights\n", "hash small files"} {
		p.Step(converter.Read, step)
	}
	p.Ended(converter.Read, "hash small files")
	if got := p.state.label(time.Now()); got != "hash weights\\n" {
		t.Errorf("got %q", got)
	}
	p.Ended(converter.Read, "hash weights\n")
	p.Ended(converter.Read, "hash weights\n")
	for range 100 {
		p.Step(converter.Read, "again")
	}
	if n := len(p.state.steps[converter.Read]); n > maxSteps {
		t.Errorf("%d steps are remembered", n)
	}
}

// Who waits is told why, once for all that waits for the same, and on a terminal for how long still.
func TestWaitIsExplained(t *testing.T) {
	var log, screen bytes.Buffer
	at := time.Unix(0, 0)
	clock := func() time.Time { return at }
	p := newProgress(&log)
	p.now = clock
	p.Plan(converter.Push, 100)
	p.Wait("r.example.com answered 503", 4*time.Second)
	at = at.Add(time.Second)
	p.Wait("r.example.com answered 503", 4*time.Second)
	p.show()
	at = at.Add(5 * time.Second)
	p.Wait("r.example.com answered 503", 16*time.Second)
	want := "r.example.com answered 503, trying again in 4 s\n" +
		"pushed 0 B of 100 B, 0%, 0 B/s: r.example.com answered 503, trying again in 4 s\n" +
		"r.example.com answered 503, trying again in 16 s\n"
	if log.String() != want {
		t.Errorf("want\n%sgot\n%s", want, log.String())
	}
	bar := newProgress(&screen)
	bar.now, bar.terminal, bar.width = clock, true, func() int { return 80 }
	bar.Plan(converter.Push, 100)
	bar.Step(converter.Push, "push blobs")
	bar.Wait("r.example.com answered 503", 4*time.Second)
	at = at.Add(2500 * time.Millisecond)
	bar.show()
	at = at.Add(2 * time.Second)
	bar.show()
	shown := strings.Split(screen.String(), "\r\x1b[K")
	if len(shown) != 3 || !strings.HasSuffix(shown[1], "%  r.example.com answered 503, trying again in 1.5 s") || !strings.HasSuffix(shown[2], "push blobs") {
		t.Errorf("%q", shown)
	}
}

func TestUploadThatBeginsAnewHasNoNegativeRate(t *testing.T) {
	p := newProgress(&bytes.Buffer{})
	at := time.Unix(0, 0)
	p.now = func() time.Time { return at }
	p.Plan(converter.Push, 100)
	p.Done(converter.Push, 90)
	p.show()
	at = at.Add(time.Second)
	p.Done(converter.Push, -90)
	p.show()
	if p.state.rate != 0 {
		t.Errorf("rate %f", p.state.rate)
	}
}

// openTerminal returns both ends of a pseudo terminal of 100 columns.
func openTerminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("SKIPPED: no pseudo terminals here: %v", err)
	}
	t.Cleanup(func() { _ = ours.Close() })
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = theirs.Close() })
	if err := unix.IoctlSetWinsize(int(theirs.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}); err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

func TestTerminalHasABarThatGoesAway(t *testing.T) {
	t.Setenv("TERM", "xterm")
	ours, theirs := openTerminal(t)
	p := newProgress(theirs)
	if !p.terminal || p.width() != 100 {
		t.Fatalf("terminal %v, %d columns", p.terminal, p.width())
	}
	p.run()
	p.Step(converter.Read, "read blobs")
	p.Plan(converter.Read, 1000)
	p.Done(converter.Read, 500)
	read := func(until string) string {
		var seen string
		buf := make([]byte, 4096)
		for !strings.Contains(seen, until) {
			n, err := ours.Read(buf)
			if err != nil {
				t.Fatalf("%v after %q", err, seen)
			}
			seen += string(buf[:n])
		}
		return seen
	}
	if got := read("read blobs"); !strings.Contains(got, "\r\x1b[K[#####") || !strings.Contains(got, " 50%  500 B of 1000 B") {
		t.Errorf("%q", got)
	}
	p.end()
	if _, err := theirs.WriteString("done"); err != nil {
		t.Fatal(err)
	}
	if got := read("done"); !strings.HasSuffix(got, "\r\x1b[Kdone") {
		t.Errorf("%q", got)
	}
}

func TestDumbTerminalHasNoBar(t *testing.T) {
	_, theirs := openTerminal(t)
	t.Setenv("TERM", "dumb")
	if newProgress(theirs).terminal {
		t.Error("it has")
	}
}

func TestWarningsAreALineEach(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	newWarnings(p).Warn("upload begins anew", "error", "two\nlines \x1b[31m")
	newWarnings(p).Info("of no interest")
	if want := "level=WARN msg=\"upload begins anew\" error=\"two\\nlines \\x1b[31m\"\n"; out.String() != want {
		t.Errorf("want %q, got %q", want, out.String())
	}
}
