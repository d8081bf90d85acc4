package scheduler

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// shares runs events and returns what hosts were told, the last word of each.
func shares(m *Machine, now time.Time, events ...Event) map[HostID]int64 {
	told := map[HostID]int64{}
	for _, ev := range events {
		for _, cmd := range m.Step(now, ev) {
			if s, ok := cmd.Body.(Share); ok {
				told[cmd.To] = s.Rate
			}
		}
	}
	return told
}

func TestOriginRateIsSharedOutAmongThoseWhoRead(t *testing.T) {
	m := New(Config{OriginRate: 100}, rand.New(rand.NewPCG(1, 2)))
	now := time.Unix(0, 0)
	want := func(when string, got, want map[HostID]int64) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	got := shares(m, now, hostJoins("s1", true, ""), hostJoins("n1", false, ""), join("n1", blob(400)))
	want("one reads", got, map[HostID]int64{"s1": 100})
	got = shares(m, now.Add(10*time.Millisecond), hostJoins("s2", true, ""), Progress{Host: "s1", Task: "blob", Gained: []Run{{0, 4}}})
	want("the second is told at once", got, map[HostID]int64{"s2": 50})
	got = shares(m, now.Add(200*time.Millisecond), Tick{})
	want("and the first at the next tick", got, map[HostID]int64{"s1": 50})
	got = shares(m, now.Add(300*time.Millisecond), HostLeft{"s2"}, Tick{})
	want("who is gone leaves its part", got, map[HostID]int64{"s1": 100})
	got = shares(m, now.Add(400*time.Millisecond), OriginRate{60})
	want("a new rate holds at once", got, map[HostID]int64{"s1": 60})
	got = shares(m, now.Add(500*time.Millisecond), OriginRate{0}, Tick{})
	want("and so does none", got, map[HostID]int64{"s1": 0})
}

func TestBetweenTwoLeasesAHostKeepsItsShare(t *testing.T) {
	m := New(Config{OriginRate: 100}, rand.New(rand.NewPCG(1, 2)))
	now := time.Unix(0, 0)
	shares(m, now, hostJoins("s1", true, ""), hostJoins("s2", true, ""), hostJoins("n1", false, ""), join("n1", blob(16)))
	shares(m, now, Tick{})
	all := []Run{{0, 16}}
	got := shares(m, now.Add(500*time.Millisecond), Progress{Host: "s1", Task: "blob", Gained: all, Done: true}, Tick{})
	if len(got) != 0 {
		t.Errorf("half a second after the last lease shares change: %v", got)
	}
}

func TestWithoutAnOriginRateNobodyIsToldAShare(t *testing.T) {
	m := New(Config{}, rand.New(rand.NewPCG(1, 2)))
	got := shares(m, time.Unix(0, 0), hostJoins("s1", true, ""), hostJoins("n1", false, ""), join("n1", blob(16)), Tick{}, HostLeft{"s1"}, Tick{})
	if len(got) != 0 {
		t.Errorf("told %v", got)
	}
}
