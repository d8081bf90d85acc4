package scheduler

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// prober is a cluster whose hosts measure 1 ms to hosts with the same first letter, and 30 ms to others.
func prober(t *testing.T) (c *cluster, join func(ids ...HostID)) {
	c = newCluster(t)
	c.Machine = New(Config{Near: 10 * time.Millisecond}, rand.New(rand.NewPCG(1, 2)))
	var answer func(ev Event)
	answer = func(ev Event) {
		for _, cmd := range c.Step(c.now, ev) {
			p, ok := cmd.Body.(Probe)
			if !ok {
				continue
			}
			out := Probed{Host: cmd.To}
			for _, h := range p.Hosts {
				rtt := time.Millisecond
				if h.ID[0] != cmd.To[0] {
					rtt *= 30
				}
				out.Trips = append(out.Trips, Trip{h.ID, rtt})
			}
			answer(out)
		}
	}
	return c, func(ids ...HostID) {
		for _, id := range ids {
			answer(hostJoins(string(id), false, ""))
		}
	}
}

func (c *cluster) zonesOf() map[HostID]string {
	out := map[HostID]string{}
	s := c.Snapshot()
	for i, h := range s.Hosts {
		out[h.ID] = s.Zones[i]
	}
	return out
}

func TestHostsWithoutAZoneArePlacedByTheirRoundTrips(t *testing.T) {
	c, come := prober(t)
	come("a1", "b1", "a2", "b2", "b3")
	c.do(hostJoins("c1", false, "named"))
	want := map[HostID]string{"a1": "", "a2": "", "b1": "~b1", "b2": "~b1", "b3": "~b1", "c1": "named"}
	if d := cmp.Diff(want, c.zonesOf()); d != "" {
		t.Errorf("zones (-want +got):\n%s", d)
	}
	c.do(HostLeft{Host: "b1"}) // the landmark
	if come("b4"); c.zonesOf()["b4"] != "~b1" {
		t.Errorf("zones %v after the landmark left", c.zonesOf())
	}
}

func TestMachineThatDoesNotMeasureAsksNobody(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("a1", false, ""))
	for _, cmd := range c.Step(c.now, hostJoins("b1", false, "")) {
		if _, ok := cmd.Body.(Probe); ok {
			t.Error("b1 was asked to measure")
		}
	}
	c.do(Probed{Host: "b1", Trips: []Trip{{"a1", time.Second}}}, Probed{Host: "nobody"})
}

func TestLandmarkThatCannotBeReachedKeepsNobodyFromAPlace(t *testing.T) {
	c, come := prober(t)
	come("a1")
	c.do(hostJoins("x1", false, ""), Probed{Host: "x1"}, hostJoins("x2", false, ""), Probed{Host: "x2", Trips: []Trip{{"x1", 1}}})
	if d := cmp.Diff(map[HostID]string{"a1": "", "x1": "~x1", "x2": "~x1"}, c.zonesOf()); d != "" {
		t.Errorf("zones (-want +got):\n%s", d)
	}
}

func TestTaskOfAHostThatIsPlacedLateMovesWithIt(t *testing.T) {
	c, come := prober(t)
	come("a1", "a2", "b1")
	c.do(join("a1", small(5), Run{0, 5}), join("a2", small(5)), join("b1", small(5), Run{0, 1}))
	c.do(hostJoins("b2", false, ""), join("b2", small(5)))
	if len(c.crossings) != 0 || len(c.neighbours["b2"]) != 3 {
		t.Fatalf("crossings %v, neighbours %v before b2 has its place", c.crossings, c.neighbours)
	}
	c.do(Probed{Host: "b2", Trips: []Trip{{"a1", 30 * time.Millisecond}, {"b1", time.Millisecond}}})
	checkZones(t, c.task(), 0)
	// b2 comes to b1, who then knows it too.
	for id, want := range map[HostID][]HostID{"a2": {"a1"}, "b1": nil, "b2": {"b1"}} {
		if got := slices.Sorted(slices.Values(c.neighbours[id])); !slices.Equal(got, want) {
			t.Errorf("neighbours of %s: %v, want %v", id, got, want)
		}
	}
	got := c.crossingsOf("b1", "b2")
	for i := range 5 {
		if want := min(i, 1); got[i] != want { // b1 holds piece 0
			t.Errorf("piece %d crosses %d times, want %d", i, got[i], want)
		}
	}
}
