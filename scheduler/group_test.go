package scheduler

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func memberOf(group, id string, seed bool) HostJoined {
	return HostJoined{Host{ID: HostID(id), Addr: id + ":1", Seed: seed, Group: group}}
}

func TestGroupsHaveTheirOwnNeighboursSeedsAndLeases(t *testing.T) {
	c := newCluster(t)
	seeds := map[HostID][]HostID{}
	for _, ev := range []HostJoined{memberOf("", "s", true), memberOf("x", "sx", true), memberOf("", "n1", false), memberOf("", "n2", false),
		memberOf("x", "x1", false), memberOf("x", "x2", false), memberOf("y", "y1", false)} {
		for _, cmd := range c.Step(c.now, ev) {
			if b, ok := cmd.Body.(Seeds); ok {
				seeds[cmd.To] = nil
				for _, h := range b.Hosts {
					seeds[cmd.To] = append(seeds[cmd.To], h.ID)
				}
			}
		}
	}
	want := map[HostID][]HostID{"s": {"s"}, "n1": {"s"}, "n2": {"s"}, "sx": {"sx"}, "x1": {"sx"}, "x2": {"sx"}, "y1": nil}
	if d := cmp.Diff(want, seeds); d != "" {
		t.Errorf("seeds as told (-want +got):\n%s", d)
	}
	for _, id := range []string{"n1", "n2", "x1", "x2", "y1"} {
		c.do(join(id, blob(4)))
	}
	if d := cmp.Diff(map[HostID][]Run{"s": {{0, 4}}, "sx": {{0, 4}}, "y1": {{0, 4}}}, c.leases); d != "" {
		t.Errorf("each group reads the origin once (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[HostID][]HostID{"n1": {"s"}, "n2": {"n1", "s"}, "x1": {"sx"}, "x2": {"sx", "x1"}, "y1": {}}, c.neighbours,
		cmp.Transformer("empty", func(ids []HostID) map[HostID]bool {
			out := map[HostID]bool{}
			for _, id := range ids {
				out[id] = true
			}
			return out
		})); d != "" {
		t.Errorf("neighbours (-want +got):\n%s", d)
	}
	c.do(Progress{Host: "s", Task: "blob", Gained: []Run{{0, 4}}}, HostLeft{Host: "sx"})
	if d := cmp.Diff([]Run{{0, 4}}, append(c.leases["x1"], c.leases["x2"]...)); d != "" {
		t.Errorf("the dead seed's group reads by itself, although another group holds everything (-want +got):\n%s", d)
	}
	if n := len(c.Snapshot().Tasks); n != 3 {
		t.Errorf("%d tasks, want one for each group", n)
	}
}
