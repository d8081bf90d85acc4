package scheduler

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// crossed notes a lease across the border.
func (c *cluster) crossed(to HostID, l Lease) {
	c.crossings[to] = append(c.crossings[to], l.Run)
	c.from[to] = nil
	for _, h := range l.From {
		c.from[to] = append(c.from[to], h.ID)
	}
}

// crossingsOf counts how often each piece was leased across the border to any of the hosts.
func (c *cluster) crossingsOf(hosts ...HostID) map[int]int {
	out := map[int]int{}
	for _, id := range hosts {
		for _, r := range c.crossings[id] {
			for i := r.First; i < r.End; i++ {
				out[i]++
			}
		}
	}
	return out
}

// checkZones fails the test when what is noted of a zone is not what follows from its members.
func checkZones(t *testing.T, task *task, seed uint64) {
	t.Helper()
	if fault := zoneFault(task); fault != "" {
		t.Fatalf("seed %d: %s", seed, fault)
	}
}

// zoneFault compares what is noted of each zone with what follows from its members.
func zoneFault(task *task) string {
	for _, z := range task.zones {
		fetched, members := map[int]bool{}, 0
		for _, c := range z.leases {
			if fetched[c.piece] || !z.leased.Test(uint(c.piece)) || c.to.zone != z || task.members[c.to.host.ID] != c.to {
				return fmt.Sprintf("piece %d crosses into %q twice, unmarked, or to nobody", c.piece, z.name)
			}
			fetched[c.piece] = true
		}
		holders := make([]uint16, task.Pieces)
		for _, me := range task.order {
			if me.zone != z {
				continue
			}
			members++
			for i := range holders {
				if me.have.Test(uint(i)) {
					holders[i]++
				}
			}
		}
		for i := range holders {
			idle := task.holders[i] > 0 && holders[i] == 0 && !fetched[i]
			if holders[i] != z.holders[i] || idle != z.idle.Test(uint(i)) || fetched[i] != z.leased.Test(uint(i)) {
				return fmt.Sprintf("piece %d in %q: %d holders, noted %d; idle %v, noted %v", i, z.name, holders[i], z.holders[i],
					idle, z.idle.Test(uint(i)))
			}
		}
		if members == 0 || members != z.members {
			return fmt.Sprintf("zone %q has %d members, noted %d", z.name, members, z.members)
		}
	}
	return ""
}

// wide lets as many pieces on their way into every zone as may ever be: their borders have been found wide.
func (c *cluster) wide() {
	t := c.task()
	for _, z := range t.zones {
		z.window = float64(c.crossingsAtMost(t))
	}
}

// small is a blob in small pieces, of which several cross at once from the beginning.
func small(pieces int) Task { return Task{ID: "blob", Pieces: pieces, PieceSize: 256 << 10} }

// twoZones has a seed and a0 in zone a, b0 to b3 in zone b; all but the seed have joined.
func twoZones(t *testing.T, pieces int) *cluster {
	c := newCluster(t)
	c.do(hostJoins("sa", true, "a"), hostJoins("a0", false, "a"), join("a0", blob(pieces)))
	for i := range 4 {
		id := fmt.Sprint("b", i)
		c.do(hostJoins(id, false, "b"), join(id, blob(pieces)))
	}
	c.wide()
	return c
}

var hostsOfB = []HostID{"b0", "b1", "b2", "b3"}

func TestNobodyHasANeighbourBeyondTheBorder(t *testing.T) {
	c := twoZones(t, 4)
	want := map[HostID][]HostID{"a0": {"sa"}, "b3": {"b0", "b1", "b2"}}
	for id, n := range want {
		if d := cmp.Diff(n, c.neighbours[id]); d != "" {
			t.Errorf("neighbours of %s (-want +got):\n%s", id, d)
		}
	}
}

func TestEachPieceIsLeasedOnceIntoAZone(t *testing.T) {
	c := twoZones(t, 8)
	if len(c.crossings) != 0 {
		t.Fatalf("crossings %v before anybody holds anything", c.crossings)
	}
	c.do(Progress{Host: "sa", Task: "blob", Gained: []Run{{0, 4}}})
	c.do(Progress{Host: "a0", Task: "blob", Gained: []Run{{0, 4}}}, Progress{Host: "sa", Task: "blob", Gained: []Run{{4, 8}}}, Tick{})
	got := c.crossingsOf(hostsOfB...)
	for i := range 8 {
		if got[i] != 1 {
			t.Errorf("piece %d was leased into b %d times, want once", i, got[i])
		}
	}
	if n := len(c.crossings["a0"]) + len(c.crossings["sa"]); n != 0 {
		t.Errorf("%d crossings into the zone of the origin's reader", n)
	}
	for _, id := range hostsOfB {
		if len(c.crossings[id]) != 2 {
			t.Errorf("%s fetches %v, want two pieces: the load is spread", id, c.crossings[id])
		}
	}
}

func TestCrossingsAtATimeAreBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		size int64
		want int
	}{"large pieces": {4 << 20, 16}, "small pieces": {64 << 10, 64}} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			task := Task{ID: "blob", Pieces: 500, PieceSize: tc.size}
			c.do(hostJoins("sa", true, "a"), hostJoins("b", false, "b"), join("sa", task), join("b", task))
			c.wide()
			c.do(Progress{Host: "sa", Task: "blob", Gained: []Run{{0, 500}}})
			if got := c.crossingsOf("b"); len(got) != tc.want {
				t.Errorf("%d pieces on their way, want %d", len(got), tc.want)
			}
			first := c.crossings["b"][0]
			c.do(Progress{Host: "b", Task: "blob", Gained: []Run{first}})
			if got := c.crossingsOf("b"); len(got) != tc.want+first.End-first.First {
				t.Errorf("%d pieces after %v came", len(got), first)
			}
		})
	}
}

// border carries what crosses to the hosts at a rate, which all that is on its way shares, and none faster than at another rate; what was
// revoked comes nevertheless. It returns when the zone had everything, or most, and how many pieces were begun to be sent.
func (c *cluster) border(hosts []HostID, size int64, rate, each float64, most time.Duration) (took time.Duration, sent int) {
	const step = 20 * time.Millisecond
	type flow struct {
		to    HostID
		piece int
		left  float64
	}
	var flows []*flow
	seen, began := map[HostID]int{}, c.now
	for z := c.task().members[hosts[0]].zone; slices.Contains(z.holders, 0) && c.now.Sub(began) < most; {
		for _, id := range hosts {
			for _, r := range c.crossings[id][seen[id]:] {
				for i := r.First; i < r.End; i++ {
					flows, sent = append(flows, &flow{id, i, float64(size)}), sent+1
				}
			}
			seen[id] = len(c.crossings[id])
		}
		carried := min(rate/float64(len(flows)), each) * step.Seconds()
		c.after(step)
		flows = slices.DeleteFunc(flows, func(f *flow) bool {
			if f.left -= carried; f.left > 0 {
				return false
			}
			c.do(Progress{Host: f.to, Task: "blob", Gained: []Run{{f.piece, f.piece + 1}}})
			return true
		})
		if c.now.Sub(began)%NextTick == 0 {
			c.do(Tick{})
		}
	}
	return c.now.Sub(began), sent
}

// A border carries some bytes a second, however many are sent at once: a thin one must not be given more than it brings in the time after
// which a piece is taken for lost, or everything crosses twice.
func TestBorderIsGivenWhatItCarries(t *testing.T) {
	for name, tc := range map[string]struct {
		size       int64   // bytes
		rate, each float64 // bytes a second
		copies     float64
		times      float64 // the limit
	}{
		"thin":           {256 << 10, 1 << 20, 1 << 30, 1.1, 1.2},
		"thinnest":       {256 << 10, 100 << 10, 1 << 30, 1.2, 1.25},
		"large pieces":   {16 << 20, 6 << 20, 1 << 30, 1.05, 1.05},
		"wide":           {256 << 10, 100 << 20, 1 << 30, 1, 1.1},
		"wide and large": {16 << 20, 1 << 30, 1 << 30, 1, 1.1},
		"long":           {16 << 20, 256 << 20, 16 << 20, 1, 1.5}, // sixteen at a time
	} {
		t.Run(name, func(t *testing.T) {
			const pieces = 256
			c := newCluster(t)
			task := Task{ID: "blob", Pieces: pieces, PieceSize: tc.size}
			c.do(hostJoins("sa", true, "a"), join("sa", task, Run{0, pieces}))
			hosts := []HostID{"b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"}
			for _, id := range hosts {
				c.do(hostJoins(string(id), false, "b"), join(string(id), task))
			}
			limit := time.Duration(pieces * float64(tc.size) / tc.rate * float64(time.Second))
			took, sent := c.border(hosts, tc.size, tc.rate, tc.each, 4*limit)
			t.Logf("%d bytes in pieces of %d: %v of %v, %d pieces sent", pieces*tc.size, tc.size, took, limit, sent)
			if float64(sent) > tc.copies*pieces+1 {
				t.Errorf("%d pieces crossed, want %d", sent, pieces)
			}
			if took.Seconds() > tc.times*limit.Seconds() {
				t.Errorf("%v, want %v", took, limit)
			}
		})
	}
}

// What readers wait for comes across on top of the rest, and does not keep it from crossing.
func TestDemandedCrossingsLeaveRoomForOthers(t *testing.T) {
	c := newCluster(t)
	task := Task{ID: "blob", Pieces: 400, PieceSize: 16 << 20} // one at a time
	partial := join("l", task)
	partial.Partial = true
	c.do(hostJoins("sa", true, "a"), join("sa", task, Run{0, 400}), hostJoins("l", false, "b"), partial)
	c.do(Demand{Host: "l", Task: "blob", Runs: []Run{{399, 400}}}, hostJoins("b", false, "b"), join("b", task), Tick{})
	if d := cmp.Diff(map[HostID][]Run{"l": {{399, 400}}, "b": {{0, 1}}}, c.crossings); d != "" {
		t.Errorf("crossings (-want +got):\n%s", d)
	}
}

func TestPieceOfADeadReceiverIsFetchedByAnother(t *testing.T) {
	c := twoZones(t, 1)
	c.do(Progress{Host: "sa", Task: "blob", Gained: []Run{{0, 1}}})
	var first HostID
	for id := range c.crossings {
		first = id
	}
	c.do(HostLeft{Host: first})
	if got := c.crossingsOf(hostsOfB...)[0]; got != 2 {
		t.Fatalf("the piece was leased %d times, want again after the receiver's death", got)
	}
	rest := slices.DeleteFunc(slices.Clone(hostsOfB), func(id HostID) bool { return id == first })
	for _, id := range rest {
		if len(c.crossings[id]) > 0 {
			c.do(Progress{Host: id, Task: "blob", Gained: []Run{{0, 1}}, Done: true}, HostLeft{Host: id})
		}
	}
	if got := c.crossingsOf(hostsOfB...)[0]; got != 3 {
		t.Errorf("the piece was leased %d times, want again after its only holder's death", got)
	}
}

func TestFailedCrossingGoesToAnotherMember(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("sa", true, "a"), join("sa", blob(1), Run{0, 1}), hostJoins("b0", false, "b"), join("b0", blob(1)))
	c.do(hostJoins("b1", false, "b"), join("b1", blob(1)))
	fail := LeaseFailed{Host: "b0", Task: "blob", Run: Run{0, 1}, Failure: FailureTransient, Border: true}
	c.do(fail)
	if len(c.crossings["b1"]) != 1 {
		t.Fatalf("crossings %v, want one to b1", c.crossings)
	}
	fail.Host = "b1"
	c.do(fail)
	if len(c.crossings["b0"])+len(c.crossings["b1"]) != 2 {
		t.Fatalf("crossings %v: nobody is to be asked again at once", c.crossings)
	}
	c.after(time.Second, Tick{})
	if len(c.crossings["b0"])+len(c.crossings["b1"]) != 3 {
		t.Errorf("crossings %v, want another try after a second", c.crossings)
	}
	if len(c.leaseOrder) != 0 {
		t.Errorf("the origin was leased: %v", c.leases)
	}
}

func TestLateCrossingIsMovedWithGrowingPatience(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("sa", true, "a"), join("sa", blob(1), Run{0, 1}))
	for i := range 3 {
		id := fmt.Sprint("b", i)
		c.do(hostJoins(id, false, "b"), join(id, blob(1)))
	}
	moved := func() int { return c.revoked["b0"] + c.revoked["b1"] + c.revoked["b2"] }
	for i, step := range []struct {
		wait time.Duration
		want int
	}{{2900 * time.Millisecond, 0}, {200 * time.Millisecond, 1}, {5800 * time.Millisecond, 1}, {400 * time.Millisecond, 2}} {
		if c.after(step.wait, Tick{}); moved() != step.want {
			t.Errorf("step %d: moved %d times, want %d", i, moved(), step.want)
		}
	}
	if got := c.crossingsOf("b0", "b1", "b2")[0]; got != 3 {
		t.Errorf("leased %d times, want 3", got)
	}
}

func TestReceiverOnAThinLinkIsLeftAloneForAWhile(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("sa", true, "a"), join("sa", blob(400)))
	var hosts []HostID
	for i := range 20 {
		hosts = append(hosts, HostID(fmt.Sprint("b", i)))
		c.do(hostJoins(string(hosts[i]), false, "b"), join(string(hosts[i]), blob(400)))
	}
	c.wide()
	held := 0
	come := func(pieces int) { // to the seed
		c.do(Progress{Host: "sa", Task: "blob", Gained: []Run{{held, held + pieces}}})
		held += pieces
	}
	fetch := func(id HostID) {
		runs := c.crossings[id]
		delete(c.crossings, id)
		c.do(Progress{Host: id, Task: "blob", Gained: runs})
	}
	come(16)
	slow := hosts[slices.IndexFunc(hosts, func(id HostID) bool { return len(c.crossings[id]) > 0 })]
	for _, wait := range []time.Duration{10 * time.Millisecond, time.Second} { // others are quick, it is not
		c.after(wait, Tick{})
		for _, id := range hosts {
			if (id == slow) == (wait == time.Second) {
				fetch(id)
			}
		}
	}
	round := func() (slowFetches bool) {
		come(16)
		slowFetches = len(c.crossings[slow]) > 0
		c.after(10*time.Millisecond, Tick{})
		for _, id := range hosts {
			fetch(id)
		}
		return slowFetches
	}
	for range 10 {
		if round() {
			t.Fatal("it is to fetch again at once")
		}
	}
	c.after(time.Second, Tick{})
	again := false
	for range 10 {
		again = round() || again
	}
	if !again {
		t.Error("it is never to fetch again")
	}
}

func TestStuckMemberReadsTheOriginOnlyWhenTheBorderIsShut(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("sa", true, "a"), join("sa", blob(1), Run{0, 1}), hostJoins("b", false, "b"), join("b", blob(1)))
	for range 3 {
		c.do(Stuck{Host: "b", Task: "blob", Runs: []Run{{0, 1}}})
		if len(c.leases["b"]) != 0 {
			t.Fatal("the origin was leased although the piece is about to come across the border")
		}
		c.after(time.Second, Tick{}, LeaseFailed{Host: "b", Task: "blob", Run: Run{0, 1}, Border: true})
	}
	c.after(500*time.Millisecond, Stuck{Host: "b", Task: "blob", Runs: []Run{{0, 1}}})
	if len(c.leases["b"]) != 1 {
		t.Errorf("leases %v, want one of the origin after three failures", c.leases)
	}
}

func TestPieceThatItsZoneHoldsInVainCrossesAgain(t *testing.T) {
	c := twoZones(t, 1)
	c.do(Progress{Host: "sa", Task: "blob", Gained: []Run{{0, 1}}})
	var liar, other HostID = "", "b0"
	for id := range c.crossings {
		liar = id
	}
	if liar == other {
		other = "b1"
	}
	c.do(Progress{Host: liar, Task: "blob", Gained: []Run{{0, 1}}})
	stuck := Stuck{Host: other, Task: "blob", Runs: []Run{{0, 1}}}
	if c.do(stuck); len(c.crossings[other]) != 0 {
		t.Fatal("the piece crosses again before the word of it can have spread")
	}
	if c.after(3*time.Second, stuck, stuck); len(c.crossings[other]) != 1 || len(c.leases[other]) != 0 {
		t.Errorf("crossings %v, leases %v, want one crossing to %s", c.crossings, c.leases, other)
	}
	c.do(Progress{Host: other, Task: "blob", Gained: []Run{{0, 1}}}, Stuck{Host: "b3", Task: "blob", Runs: []Run{{0, 1}}})
	if len(c.crossings["b3"]) != 0 && other != "b3" && liar != "b3" {
		t.Error("b3 crosses too, although the second copy has only just come")
	}
}

func TestPieceThatItsOnlyHolderInTheZoneWithholdsCrossesAgain(t *testing.T) {
	c := twoZones(t, 2)
	c.do(Progress{Host: "sa", Task: "blob", Gained: []Run{{0, 1}}})
	var receiver HostID
	for id := range c.crossings {
		receiver = id
	}
	others := slices.DeleteFunc(slices.Clone(hostsOfB), func(id HostID) bool { return id == receiver })
	c.do(Progress{Host: receiver, Task: "blob", Gained: []Run{{0, 1}}})
	complaint := Stuck{Host: others[0], Task: "blob", Runs: []Run{{0, 2}}, Withheld: true}
	if c.after(time.Second, complaint); len(c.crossings[others[0]]) != 1 || len(c.leaseOrder) != 1 {
		t.Fatalf("crossings %v, leases %v, want one crossing to %s", c.crossings, c.leaseOrder, others[0])
	}
	c.do(Progress{Host: others[0], Task: "blob", Gained: []Run{{0, 1}}})
	complaint.Host = others[1]
	if c.after(time.Second, complaint); len(c.crossings[others[1]]) != 0 {
		t.Error("the piece crosses again although two hold it")
	}
	if c.do(Stuck{Host: "a0", Task: "blob", Runs: []Run{{0, 1}}, Withheld: true}); len(c.leaseOrder) != 1 {
		t.Errorf("leases %v: the origin is not read for that", c.leaseOrder)
	}
}

func TestCrossingsOutliveTheScheduler(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("sa", true, "a"), hostJoins("b0", false, "b"), hostJoins("b1", false, "b"))
	c.do(moved(join("sa", small(2), Run{0, 2})), moved(join("b1", small(2))))
	ev := moved(join("b0", small(2)))
	ev.Crossing = []Run{{1, 2}, {-4, 0}, {7, 9}}
	c.do(ev)
	c.after(time.Second, Tick{})
	if got := c.crossingsOf("b0", "b1"); got[0] != 1 || got[1] != 0 {
		t.Errorf("crossings %v, want piece 0 once, and piece 1 left to b0", got)
	}
}

func TestZoneWithoutSeedOrOriginGetsWhatOthersHold(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("a", false, "a"), TaskJoined{Host: "a", Task: small(3), Have: []Run{{0, 3}}}, hostJoins("b", false, "b"), join("b", small(3)))
	if d := cmp.Diff([]Run{{0, 1}, {1, 2}, {2, 3}}, c.crossings["b"]); d != "" {
		t.Errorf("crossings of b (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]HostID{"a"}, c.from["b"]); d != "" {
		t.Errorf("sources (-want +got):\n%s", d)
	}
	if len(c.leaseOrder) != 0 {
		t.Errorf("the origin was leased: %v", c.leases)
	}
}
