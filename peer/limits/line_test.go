package limits

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// sim drives a line by a clock of its own: each stream asks for its next step as soon as it got the one before, and timers are late.
type sim struct {
	line   line
	now    time.Time
	rng    *rand.Rand
	passed map[string]int64
}

type stream struct {
	task string
	t    *ticket
}

func newSim(total, perTask Rate) *sim {
	s := &sim{line: line{flows: map[string]*flow{}}, now: time.Unix(1000, 0), passed: map[string]int64{}, rng: rand.New(rand.NewPCG(1, 2))}
	s.line.set(s.now, total, perTask)
	return s
}

// run lets the streams of the tasks flow for d, in steps of n bytes.
func (s *sim) run(d time.Duration, n int, streams map[string]int) {
	var all []*stream
	for _, task := range []string{"a", "b", "c"} {
		for range streams[task] {
			all = append(all, &stream{task: task})
		}
	}
	for end := s.now.Add(d); s.now.Before(end); {
		for _, st := range all {
			if st.t == nil {
				st.t = &ticket{n: n, ready: make(chan struct{})}
				s.line.join(s.now, st.task, st.t)
			}
		}
		wait := s.line.serve(s.now)
		moved := false
		for _, st := range all {
			select {
			case <-st.t.ready:
				s.passed[st.task] += int64(n)
				st.t, moved = nil, true
			default:
			}
		}
		if !moved {
			s.now = s.now.Add(wait + time.Duration(s.rng.IntN(3000))*time.Microsecond) // a timer up to 3 ms late
		}
	}
	for _, st := range all {
		if st.t != nil {
			s.line.leave(st.task, st.t)
		}
	}
}

func near(got, want, tolerance float64) bool { return math.Abs(got-want) <= tolerance*want }

func TestRateIsKeptWithinFivePercentOverFiveSeconds(t *testing.T) {
	for _, r := range []Rate{MinRate, 3 << 20, 50 << 20, 1 << 30, 10 << 30} {
		for _, streams := range []int{1, 16} {
			s := newSim(r, 0)
			s.run(5*time.Second, stepFor(r), map[string]int{"a": streams})
			if got, want := float64(s.passed["a"]), 5*float64(r); r < 1<<30 && !near(got, want, 0.05) || got > 1.05*want {
				t.Errorf("%s/s, %d streams: %.3f of the rate", r, streams, got/want)
			}
		}
	}
}

func TestTasksShareEquallyWhateverTheirNumberOfStreams(t *testing.T) {
	s := newSim(20<<20, 0)
	s.run(5*time.Second, stepFor(20<<20), map[string]int{"a": 1, "b": 10, "c": 3})
	for task, got := range s.passed {
		if !near(float64(got), 5*20/3.0*(1<<20), 0.05) {
			t.Errorf("task %s got %d bytes of a third of %d", task, got, 100<<20)
		}
	}
}

func TestTaskLimitLeavesTheRestToOthers(t *testing.T) {
	s := newSim(20<<20, 4<<20)
	s.run(5*time.Second, stepFor(4<<20), map[string]int{"a": 5, "b": 1})
	for task, got := range s.passed {
		if !near(float64(got), 5*(4<<20), 0.05) {
			t.Errorf("task %s got %d bytes, want %d", task, got, 5*4<<20)
		}
	}
}

func TestWhoWasAwayHasSavedNothingUp(t *testing.T) {
	s := newSim(8<<20, 0)
	n := stepFor(8 << 20)
	s.run(10*time.Second, n, map[string]int{"a": 1})
	clear(s.passed)
	s.run(2*time.Second, n, map[string]int{"a": 1, "b": 1})
	if !near(float64(s.passed["a"]), float64(s.passed["b"]), 0.1) {
		t.Errorf("a got %d bytes, the newcomer %d", s.passed["a"], s.passed["b"])
	}
}

func TestNewRateHoldsForWhoWaitsAlready(t *testing.T) {
	s := newSim(MinRate, 0)
	waiting := &ticket{n: maxStep, ready: make(chan struct{})} // more than the bucket holds
	s.line.join(s.now, "a", waiting)
	s.line.join(s.now, "a", &ticket{n: maxStep, ready: make(chan struct{})})
	if wait := s.line.serve(s.now); wait <= 0 {
		t.Fatalf("nobody waits: %v", wait)
	}
	s.line.set(s.now, 0, 0)
	if wait := s.line.serve(s.now); wait != 0 {
		t.Errorf("without a limit somebody waits %v", wait)
	}
	if len(s.line.flows) != 0 {
		t.Errorf("flows are kept: %v", s.line.flows)
	}
}

// TestLineServesEverybodyInTurn checks, for any mixture of streams and rates, that nobody is passed over for long and that the rate holds.
func TestLineServesEverybodyInTurn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		// Above 64 MiB/s more than one step passes at a late timer, and a task with one stream asks for one only.
		total := Rate(rapid.Int64Range(int64(MinRate), 64<<20).Draw(rt, "total"))
		perTask := Rate(rapid.SampledFrom([]int64{0, int64(MinRate), 1 << 24}).Draw(rt, "per task"))
		s := newSim(total, perTask)
		streams := map[string]int{"a": rapid.IntRange(1, 8).Draw(rt, "a"), "b": rapid.IntRange(1, 8).Draw(rt, "b")}
		s.run(3*time.Second, stepFor(lower(total, perTask)), streams)
		share := float64(total) / 2
		if perTask > 0 {
			share = min(share, float64(perTask))
		}
		for _, task := range []string{"a", "b"} {
			if got := float64(s.passed[task]) / 3; !near(got, share, 0.08) {
				rt.Fatalf("task %s got %.0f bytes/s, its share is %.0f: %s", task, got, share, fmt.Sprint(streams))
			}
		}
	})
}
