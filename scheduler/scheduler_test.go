package scheduler

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/scheduler/policy"
)

// cluster drives a machine the way the shell does, with hosts that obey at once, and keeps what they were told.
type cluster struct {
	*Machine
	t          *testing.T
	now        time.Time
	leases     map[HostID][]Run
	leaseOrder []Run
	neighbours map[HostID][]HostID
	digests    map[HostID]int
	failed     map[HostID]string
	revoked    map[HostID]int
	coming     map[HostID]int
	crossings  map[HostID][]Run    // leases across the border
	from       map[HostID][]HostID // whom the last of those named
}

const piece = 1 << 20

func newCluster(t *testing.T) *cluster {
	return &cluster{Machine: New(Config{}, rand.New(rand.NewPCG(1, 2))), t: t, now: time.Unix(0, 0),
		leases: map[HostID][]Run{}, neighbours: map[HostID][]HostID{}, digests: map[HostID]int{},
		failed: map[HostID]string{}, revoked: map[HostID]int{}, coming: map[HostID]int{}, crossings: map[HostID][]Run{}, from: map[HostID][]HostID{}}
}

// task returns the only task.
func (c *cluster) task() *task {
	c.t.Helper()
	if len(c.tasks) != 1 {
		c.t.Fatalf("%d tasks", len(c.tasks))
	}
	for _, t := range c.tasks {
		return t
	}
	return nil
}

func (c *cluster) do(events ...Event) {
	c.t.Helper()
	for _, ev := range events {
		for _, cmd := range c.Step(c.now, ev) {
			switch b := cmd.Body.(type) {
			case Lease:
				if len(b.From) > 0 {
					c.crossed(cmd.To, b)
					continue
				}
				c.leases[cmd.To] = append(c.leases[cmd.To], b.Run)
				c.leaseOrder = append(c.leaseOrder, b.Run)
			case Neighbours:
				var ids []HostID
				for _, h := range b.Hosts {
					ids = append(ids, h.ID)
				}
				c.neighbours[cmd.To] = ids
			case Digests:
				c.digests[cmd.To] += len(b.Digests)
			case Failed:
				c.failed[cmd.To] = b.Text
			case Revoked:
				c.revoked[cmd.To]++
			case Coming:
				c.coming[cmd.To]++
			}
		}
	}
}

func (c *cluster) after(d time.Duration, events ...Event) {
	c.now = c.now.Add(d)
	c.do(events...)
}

func hostJoins(id string, seed bool, zone string) HostJoined {
	return HostJoined{Host{ID: HostID(id), Addr: id + ":1", Seed: seed, Locality: policy.Locality{Zone: zone}}}
}

func blob(pieces int) Task { return Task{ID: "blob", Pieces: pieces, PieceSize: piece} }

func join(id string, task Task, have ...Run) TaskJoined {
	return TaskJoined{Host: HostID(id), Task: task, Have: have, Wants: true}
}

// Who reads quickly gets longer leases, up to a bound, and shorter ones when it does not any more.
func TestLeasesTakeAboutAsLong(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("seed", true, ""), hostJoins("n1", false, ""))
	c.do(join("n1", blob(600)))
	took := 10 * time.Millisecond
	for i := 0; i < len(c.leases["seed"]) && i < 100; i++ {
		if i == 12 {
			took = time.Second
		}
		c.after(took, Progress{Host: "seed", Task: "blob", Gained: []Run{c.leases["seed"][i]}})
	}
	var got []int
	read := 0
	for _, run := range c.leases["seed"] {
		if run.First != read {
			t.Fatalf("lease %v after %d pieces", run, read)
		}
		read = run.End
		got = append(got, run.End-run.First)
	}
	if want := []int{4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64, 64, 32, 16, 8, 4, 4, 4, 4}; !slices.Equal(got[:min(len(got), len(want))], want) {
		t.Errorf("leases of %v pieces, want %v", got, want)
	}
	if read != 600 {
		t.Errorf("%d pieces are leased", read)
	}
}

func TestOneSeedGetsEveryPieceOnceAndInOrder(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("seed", true, ""), hostJoins("n1", false, ""), hostJoins("n2", false, ""))
	c.do(join("n1", blob(20)), join("n2", blob(20)))
	if len(c.leases["seed"]) != 2 {
		t.Fatalf("first leases: want 2 outstanding, got %v", c.leases["seed"])
	}
	for i := 0; i < len(c.leases["seed"]) && i < 100; i++ {
		c.after(100*time.Millisecond, Progress{Host: "seed", Task: "blob", Gained: []Run{c.leases["seed"][i]}})
	}
	want := []Run{{0, 4}, {4, 8}, {8, 12}, {12, 16}, {16, 20}}
	if d := cmp.Diff(want, c.leases["seed"]); d != "" {
		t.Errorf("leases of the seed (-want +got):\n%s", d)
	}
	if n := len(c.leases["n1"]) + len(c.leases["n2"]); n != 0 {
		t.Errorf("peers got %d leases although a seed lives", n)
	}
	if d := cmp.Diff([]HostID{"n1", "seed"}, c.neighbours["n2"]); d != "" {
		t.Errorf("neighbours of n2 (-want +got):\n%s", d)
	}
}

func TestSeedsShareTheOrigin(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("s2", true, ""), hostJoins("n1", false, ""), join("n1", blob(16)))
	if len(c.leases["s1"]) != 2 || len(c.leases["s2"]) != 2 {
		t.Errorf("want two leases each, got %v", c.leases)
	}
}

func TestWithoutSeedsExactlyOnePeerReadsEachPiece(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("n1", false, ""), hostJoins("n2", false, ""))
	c.do(join("n1", blob(16)), join("n2", blob(16)))
	seen := map[int]int{}
	for _, runs := range c.leases {
		for _, r := range runs {
			for i := r.First; i < r.End; i++ {
				seen[i]++
			}
		}
	}
	for i, n := range seen {
		if n != 1 {
			t.Errorf("piece %d leased %d times", i, n)
		}
	}
	if len(seen) != 16 {
		t.Errorf("%d pieces leased, want 16", len(seen))
	}
}

func TestDeadSeedsLeasesMoveAndItsOnlyCopiesAreReadAgain(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), join("n1", blob(8)))
	c.do(Progress{Host: "s1", Task: "blob", Gained: []Run{{0, 2}}})
	c.do(Progress{Host: "n1", Task: "blob", Gained: []Run{{0, 1}}})
	c.do(HostLeft{Host: "s1"})
	want := []Run{{1, 5}, {5, 8}}
	if d := cmp.Diff(want, c.leases["n1"]); d != "" {
		t.Errorf("leases of the surviving peer (-want +got):\n%s", d)
	}
	if len(c.neighbours["n1"]) != 0 {
		t.Errorf("n1 still has neighbours %v", c.neighbours["n1"])
	}
}

func TestSilentLeaseMovesOnlyWhenAnotherReaderExists(t *testing.T) {
	for _, second := range []bool{false, true} {
		t.Run(fmt.Sprintf("second seed %v", second), func(t *testing.T) {
			c := newCluster(t)
			c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), join("n1", blob(4)))
			c.do(LeaseFailed{Host: "n1", Task: "blob", Run: Run{0, 4}, Failure: FailureDenied}) // n1 may not read
			if second {
				c.do(hostJoins("s2", true, ""))
			}
			c.after(2*time.Second, Progress{Host: "s1", Task: "blob", Reading: true})
			c.after(2*time.Second, Tick{})
			if len(c.revoked) != 0 {
				t.Fatal("a lease that makes progress was revoked")
			}
			c.after(2*time.Second, Tick{})
			if second != (len(c.leases["s2"]) == 1) || second != (c.revoked["s1"] == 1) {
				t.Errorf("leases %v, revoked %v", c.leases, c.revoked)
			}
		})
	}
}

func TestRefusedSeedHandsOverToAPeerWithCredentials(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), join("n1", blob(2)))
	c.do(LeaseFailed{Host: "s1", Task: "blob", Run: Run{0, 2}, Failure: FailureDenied, Text: "401"})
	if d := cmp.Diff([]Run{{0, 2}}, c.leases["n1"]); d != "" {
		t.Errorf("leases of n1 (-want +got):\n%s", d)
	}
	c.do(LeaseFailed{Host: "n1", Task: "blob", Run: Run{0, 2}, Failure: FailureDenied, Text: "401 too"})
	if c.failed["n1"] != "401 too" {
		t.Errorf("n1 was told %q", c.failed["n1"])
	}
	c.after(time.Minute, Tick{})
	if len(c.leases["n1"]) != 1 {
		t.Errorf("a host that was refused got a lease again")
	}
	c.do(join("n1", blob(2))) // asks anew, perhaps with other credentials
	if len(c.leases["n1"]) != 2 {
		t.Errorf("a host that asks again gets no lease")
	}
}

func TestPassingFailureIsRetriedLater(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), join("n1", blob(2)))
	c.do(LeaseFailed{Host: "s1", Task: "blob", Run: Run{0, 2}, Failure: FailureTransient, Text: "503"})
	if len(c.leases["n1"]) != 1 { // the peer is tried meanwhile
		t.Fatalf("leases %v", c.leases)
	}
	c.do(LeaseFailed{Host: "n1", Task: "blob", Run: Run{0, 2}, Failure: FailureTransient, Text: "503"})
	if c.failed["n1"] != "503" {
		t.Errorf("n1 was told %q", c.failed["n1"])
	}
	c.after(time.Second, Tick{})
	if len(c.leases["s1"]) != 2 {
		t.Errorf("the seed was not asked again: %v", c.leases)
	}
}

func TestSequentialTaskHasOneReaderWhoseDigestsAreRelayed(t *testing.T) {
	c := newCluster(t)
	spec := blob(10)
	spec.Sequential = true
	c.do(hostJoins("s1", true, ""), hostJoins("s2", true, ""), hostJoins("n1", false, ""), hostJoins("n2", false, ""))
	c.do(join("n1", spec))
	if d := cmp.Diff([]Run{{0, 10}}, c.leaseOrder); d != "" {
		t.Fatalf("leases (-want +got):\n%s", d)
	}
	reader := HostID("s1")
	if len(c.leases["s2"]) > 0 {
		reader = "s2"
	}
	c.do(Progress{Host: "n1", Task: "blob", Gained: []Run{{9, 10}}, Digests: []PieceDigest{{9, []byte("lie")}}})
	c.do(Progress{Host: reader, Task: "blob", Gained: []Run{{0, 2}}, Digests: []PieceDigest{{0, []byte("a")}, {1, []byte("b")}}})
	if c.digests["n1"] != 2 {
		t.Errorf("n1 was told %d digests, want 2", c.digests["n1"])
	}
	c.do(join("n2", spec))
	if c.digests["n2"] != 2 {
		t.Errorf("a late peer was told %d digests, want 2: a peer without lease cannot vouch", c.digests["n2"])
	}
}

func TestStuckPeerReadsItself(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), join("n1", blob(1)))
	c.do(Progress{Host: "s1", Task: "blob", Gained: []Run{{0, 1}}, Done: true})
	stuck := Stuck{Host: "n1", Task: "blob", Runs: []Run{{0, 1}}}
	if c.after(time.Second, stuck); len(c.leases["n1"]) != 0 {
		t.Errorf("leases %v, although a piece of 1 MiB may take longer", c.leases["n1"])
	}
	c.after(2*time.Second, stuck)
	if d := cmp.Diff([]Run{{0, 1}}, c.leases["n1"]); d != "" {
		t.Errorf("leases of the stuck peer (-want +got):\n%s", d)
	}
}

// Where pieces come quickly a large one that does not come is not waited for as if the links were thin.
func TestStuckPeerTellsWhatPiecesTake(t *testing.T) {
	c := newCluster(t)
	large := blob(1)
	large.PieceSize = 16 << 20
	c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), join("n1", large))
	c.do(Progress{Host: "s1", Task: "blob", Gained: []Run{{0, 1}}, Done: true})
	stuck := Stuck{Host: "n1", Task: "blob", Runs: []Run{{0, 1}}, Usual: 200 * time.Millisecond}
	if c.after(time.Second, stuck); len(c.leases["n1"]) != 0 {
		t.Errorf("leases %v, although a piece takes 0.2 s and the word of it some time, too", c.leases["n1"])
	}
	c.after(time.Second, stuck)
	if d := cmp.Diff([]Run{{0, 1}}, c.leases["n1"]); d != "" {
		t.Errorf("leases of the stuck peer (-want +got):\n%s", d)
	}
}

// Who has nothing to do but wait hears whether what it waits for is on its way to anybody, and does not read the origin meanwhile.
func TestStuckPeerHearsWhetherAnythingMoves(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), hostJoins("n2", false, ""), join("n1", blob(1)), join("n2", blob(1)))
	stuck := Stuck{Host: "n1", Task: "blob", Runs: []Run{{0, 1}}}
	for _, step := range []struct {
		what string
		ev   Event
		wait time.Duration
		want bool
	}{
		{"nothing was read yet", Tick{}, 0, false},
		{"bytes come to the seed", Progress{Host: "s1", Task: "blob", Reading: true}, time.Second, true},
		{"no more come", Tick{}, 3 * time.Second, false},
		{"the seed has the piece", Progress{Host: "s1", Task: "blob", Gained: []Run{{0, 1}}}, time.Second, true},
		{"another got it of the seed", Progress{Host: "n2", Task: "blob", Gained: []Run{{0, 1}}}, time.Second, true},
		{"it is there for the second second", Progress{Host: "s1", Task: "blob", Reading: true}, time.Second, false},
	} {
		clear(c.coming)
		c.do(step.ev)
		if c.after(step.wait, stuck); (c.coming["n1"] > 0) != step.want {
			t.Errorf("%s: told %v that it is coming, want %v", step.what, !step.want, step.want)
		}
	}
	if d := cmp.Diff([]Run{{0, 1}}, c.leases["n1"]); d != "" {
		t.Errorf("leases of n1 (-want +got):\n%s", d)
	}
}

// Newcomers get what a host waits for that can reach nobody: that the pieces spread is of no use to it.
func TestStuckPeerReadsItselfWhileOthersComeAndGet(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("p", false, ""), join("p", blob(4)))
	c.do(Progress{Host: "s1", Task: "blob", Gained: []Run{{0, 4}}, Done: true})
	began := c.now
	for i := 0; len(c.leases["p"]) == 0 && c.now.Sub(began) < time.Minute; i++ {
		id := fmt.Sprint("n", i)
		c.do(hostJoins(id, false, ""), join(id, blob(4)))
		c.after(time.Second, Progress{Host: HostID(id), Task: "blob", Gained: []Run{{0, 4}}, Done: true})
		c.do(Stuck{Host: "p", Task: "blob", Runs: []Run{{0, 4}}}, Tick{})
	}
	if took := c.now.Sub(began); took > 5*time.Second {
		t.Errorf("it may read the origin after %v", took)
	}
}

func TestStuckPeerIsNotToldThatWhatNobodyFetchesIsComing(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), hostJoins("n2", false, ""), join("n1", blob(2)), join("n2", blob(2)))
	c.do(Progress{Host: "s1", Task: "blob", Gained: []Run{{1, 2}}})
	for _, id := range []HostID{"s1", "n1", "n2"} {
		c.do(LeaseFailed{Host: id, Task: "blob", Run: Run{0, 2}, Failure: FailureDenied, Text: "401"})
	}
	c.do(Progress{Host: "n2", Task: "blob", Gained: []Run{{1, 2}}})
	if c.after(time.Second, Stuck{Host: "n1", Task: "blob", Runs: []Run{{0, 1}}}); c.coming["n1"] > 0 {
		t.Error("nobody holds the piece, and nobody may read it")
	}
}

// TestEverybodyFinishes runs random clusters with dying hosts and failing origins and checks after each step that no
// piece has two leases, of the origin or of a border, and at the end that every survivor has everything.
func TestEverybodyFinishes(t *testing.T) {
	for seed := range uint64(200) {
		simulate(t, seed)
	}
}

func simulate(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	m := New(Config{}, rand.New(rand.NewPCG(seed, 8)))
	now := time.Unix(0, 0)
	spec, zones := blob(1+rng.IntN(40)), 1+rng.IntN(3)
	type state struct {
		have       map[int]bool
		neighbours []Host
		leases     []Lease
		joined     bool
	}
	hosts := map[HostID]*state{}
	var order []HostID
	step := func(ev Event) {
		for _, cmd := range m.Step(now, ev) {
			s := hosts[cmd.To]
			if s == nil {
				continue
			}
			switch b := cmd.Body.(type) {
			case Lease:
				s.leases = append(s.leases, b)
				s.joined = true
			case Neighbours:
				s.neighbours = b.Hosts
			case Revoked:
				s.leases = slices.DeleteFunc(s.leases, func(l Lease) bool { return l.Run == b.Run && b.Border == (len(l.From) > 0) })
			}
		}
		checkLeases(t, m, seed)
	}
	for i := range 2 + rng.IntN(8) {
		id := HostID(fmt.Sprint("h", i))
		order, hosts[id] = append(order, id), &state{have: map[int]bool{}}
		step(HostJoined{Host{ID: id, Seed: i == 0 && rng.IntN(2) == 0, Locality: policy.Locality{Zone: fmt.Sprint(rng.IntN(zones))}}})
	}
	survivor := order[len(order)-1]
	for range 2000 {
		now = now.Add(100 * time.Millisecond)
		step(Tick{})
		id := order[rng.IntN(len(order))]
		s := hosts[id]
		switch {
		case s == nil:
			continue
		case !s.joined:
			s.joined = true
			step(join(string(id), spec))
			continue
		case id != survivor && rng.IntN(40) == 0:
			delete(hosts, id)
			step(HostLeft{Host: id})
			continue
		}
		gained := map[int]bool{}
		if len(s.leases) > 0 {
			l := s.leases[0]
			s.leases = s.leases[1:]
			border := len(l.From) > 0
			gone := border && !slices.ContainsFunc(l.From, func(h Host) bool { return hosts[h.ID] != nil })
			if gone || rng.IntN(5) == 0 {
				step(LeaseFailed{Host: id, Task: "blob", Run: l.Run, Failure: FailureTransient, Border: border})
				continue
			}
			for i := l.Run.First; i < l.Run.End; i++ {
				gained[i] = true
			}
		}
		for _, n := range s.neighbours {
			if other := hosts[n.ID]; other != nil {
				for i := range other.have {
					gained[i] = true
				}
			}
		}
		var runs []Run
		for i := range gained {
			if !s.have[i] {
				s.have[i] = true
				runs = append(runs, Run{i, i + 1})
			}
		}
		step(Progress{Host: id, Task: "blob", Gained: runs, Done: len(s.have) == spec.Pieces})
	}
	for id, s := range hosts {
		if s.joined && len(s.have) != spec.Pieces {
			t.Fatalf("seed %d: %s ends with %d of %d pieces", seed, id, len(s.have), spec.Pieces)
		}
	}
}

func checkLeases(t *testing.T, m *Machine, seed uint64) {
	for _, task := range m.tasks {
		checkZones(t, task, seed)
		seen := map[int]bool{}
		for _, l := range task.leases {
			for i := l.run.First; i < l.run.End; i++ {
				if seen[i] || !task.leased.Test(uint(i)) {
					t.Fatalf("seed %d: piece %d has two leases or an unmarked one", seed, i)
				}
				seen[i] = true
			}
		}
	}
}

func TestAJoinTellsOneSideOfEachPair(t *testing.T) {
	c := newCluster(t)
	for i := range 10 {
		id := fmt.Sprint("n", i)
		c.do(hostJoins(id, false, ""))
		var told []HostID
		for _, cmd := range c.Step(c.now, join(id, blob(1<<10))) {
			if n, ok := cmd.Body.(Neighbours); ok {
				told = append(told, cmd.To)
				if len(n.Hosts) != i {
					t.Errorf("%s has %d neighbours, want all %d", id, len(n.Hosts), i)
				}
			}
		}
		if d := cmp.Diff([]HostID{HostID(id)}, told); d != "" {
			t.Errorf("told of neighbours (-want +got):\n%s", d)
		}
	}
	c.do(HostLeft{Host: "n0"}) // the lists that follow have both sides' pairs
	if got := len(c.neighbours["n1"]); got != 8 {
		t.Errorf("n1 has %d neighbours, want 8", got)
	}
}

func TestLeasesAtATimeAreBounded(t *testing.T) {
	c := newCluster(t)
	for i := range 20 {
		c.do(hostJoins(fmt.Sprint("s", i), true, ""))
	}
	c.do(hostJoins("n", false, ""), join("n", blob(1000)))
	if len(c.leaseOrder) != 8 {
		t.Errorf("%d leases at a time, want 8", len(c.leaseOrder))
	}
}
