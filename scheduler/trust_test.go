package scheduler

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestHostThatIsNoSeedDisturbsNobody(t *testing.T) {
	c := newCluster(t)
	for i := range 10 {
		c.do(hostJoins(fmt.Sprint("n", i), i == 0, ""), Tick{})
	}
	cmds := append(c.Step(c.now, hostJoins("late", false, "")), c.Step(c.now, Tick{})...)
	if len(cmds) != 1 || cmds[0].To != "late" {
		t.Errorf("%d commands, want one to the newcomer", len(cmds))
	}
}

func TestTaskOfAbsurdSizeIsIgnored(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("liar", false, ""), join("liar", blob(MaxPieces+1)))
	if got := c.Snapshot(); len(got.Tasks) != 0 {
		t.Errorf("tasks %v", got.Tasks)
	}
}

func digests(fill byte, n int) []PieceDigest {
	var out []PieceDigest
	for i := range n {
		out = append(out, PieceDigest{Piece: i, Digest: []byte{fill}})
	}
	return out
}

func TestDigestsOfAReaderThatFailedAreReplaced(t *testing.T) {
	for name, ends := range map[string]Event{
		"corrupt": LeaseFailed{Host: "s1", Task: "blob", Run: Run{0, 4}, Failure: FailureCorrupt}, "dead": HostLeft{Host: "s1"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			task := blob(4)
			task.Sequential = true
			c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), join("n1", task))
			c.do(Progress{Host: "s1", Task: "blob", Gained: []Run{{0, 2}}, Digests: digests(1, 2)})
			c.do(hostJoins("s2", true, ""), ends)
			if len(c.leases["s2"]) != 1 {
				t.Fatalf("leases %v, want one of s2", c.leases)
			}
			before := c.digests["n1"]
			c.do(Progress{Host: "s2", Task: "blob", Gained: []Run{{0, 4}}, Digests: digests(2, 4)})
			if got := c.digests["n1"] - before; got != 4 {
				t.Errorf("n1 was told %d digests of the second reader, want all 4", got)
			}
		})
	}
}

func TestWrongBytesOfAMappedBlobAreReadAgainTwice(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), join("n1", blob(4)))
	for round := 1; round <= maxCorrupt; round++ {
		if len(c.leases["s1"])+len(c.leases["n1"]) == 0 {
			t.Fatalf("round %d: nothing was leased", round)
		}
		for range 2 { // when one fails the other may get the lease
			for _, id := range []HostID{"s1", "n1"} {
				failed := c.leases[id]
				c.leases[id] = nil
				for _, run := range failed {
					c.do(LeaseFailed{Host: id, Task: "blob", Run: run, Failure: FailureCorrupt, Text: "wrong bytes"})
				}
			}
		}
		c.after(10*time.Second, Tick{})
	}
	if n := len(c.leases["s1"]) + len(c.leases["n1"]); n != 0 {
		t.Errorf("%d leases after %d times of wrong bytes", n, maxCorrupt)
	}
}

func TestStuckPeerIsNotLeasedWhatCameAMomentAgo(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), join("n1", blob(4)))
	c.do(Progress{Host: "s1", Task: "blob", Gained: []Run{{0, 4}}})
	c.after(50*time.Millisecond, Stuck{Host: "n1", Task: "blob", Runs: []Run{{0, 4}}})
	if len(c.leases["n1"]) != 0 {
		t.Errorf("n1 was leased %v although the seed has just read it", c.leases["n1"])
	}
	c.after(2*time.Second, Stuck{Host: "n1", Task: "blob", Runs: []Run{{0, 4}}})
	if len(c.leases["n1"]) != 1 {
		t.Errorf("n1 got leases %v, want one", c.leases["n1"])
	}
}

// A host that was told a wrong length of a blob, once, must not keep others from sharing it.
func TestWrongLengthOfABlobEndsNobodysSharing(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s", true, ""), hostJoins("a", false, ""), hostJoins("b", false, ""), hostJoins("d", false, ""))
	c.do(join("a", blob(3)), LeaseFailed{Host: "s", Task: "blob", Run: Run{0, 3}, Failure: FailureCorrupt})
	c.do(join("b", blob(5)), join("d", blob(5)))
	if len(c.leases["b"])+len(c.leases["d"]) == 0 {
		t.Errorf("who knows the right length has no lease, while the seed reads by the wrong one: %+v", c.Snapshot().Tasks)
	}
	if slices.Contains(c.neighbours["d"], "a") || !slices.Contains(c.neighbours["d"], "b") {
		t.Errorf("d has the neighbours %v, want b", c.neighbours["d"])
	}
	mended := join("a", blob(5), Run{0, 5})
	mended.Wants = false
	c.do(mended)
	if !slices.Contains(c.neighbours["d"], "a") {
		t.Errorf("d has the neighbours %v, want a too, which has learnt the right length", c.neighbours["d"])
	}
	c.do(TaskLeft{Host: "s", Task: "blob"})
	if got := len(c.Snapshot().Tasks); got != 1 {
		t.Errorf("%d tasks, want that of the right length", got)
	}
}

// A seed that learns another length leaves the old task for good.
func TestSeedThatLearnsAnotherLengthIsAMemberOnce(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s", true, ""), hostJoins("a", false, ""))
	c.do(join("a", blob(3)), join("s", blob(5))) // drafted to read by 3; it has a reader of its own that knows 5
	members := 0
	for _, of := range c.tasks {
		if me := of.members["s"]; me != nil {
			members++
			if c.hosts["s"].tasks["blob"] != me {
				t.Errorf("s is a member of a task of %d pieces that it does not know of", of.Pieces)
			}
		}
	}
	if members != 1 {
		t.Errorf("s is a member of %d tasks of one blob", members)
	}
	c.do(HostLeft{Host: "s"}, HostLeft{Host: "a"})
	if got := c.Snapshot().Tasks; len(got) != 0 {
		t.Errorf("all hosts have gone, tasks: %+v", got)
	}
}

func TestSeedsThatReadByAWrongLengthReadByTheRightOne(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("s2", true, ""), hostJoins("a", false, ""), hostJoins("b", false, ""), join("a", blob(3)))
	for range 2 {
		for _, s := range []HostID{"s1", "s2"} {
			if len(c.leases[s]) > 0 {
				c.do(Progress{Host: s, Task: "blob", Done: true}, LeaseFailed{Host: s, Task: "blob", Run: Run{0, 3}, Failure: FailureCorrupt})
				c.leases[s] = nil
			}
		}
	}
	c.do(join("b", blob(5)))
	if len(c.leases["s1"])+len(c.leases["s2"]) == 0 {
		t.Errorf("no seed reads by the right length: %+v", c.Snapshot().Tasks)
	}
	for _, of := range c.tasks {
		for id, me := range of.members {
			if c.hosts[id].tasks["blob"] != me {
				t.Errorf("%s is a member of a task of %d pieces that it does not know of", id, of.Pieces)
			}
		}
	}
}
