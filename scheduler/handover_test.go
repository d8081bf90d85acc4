package scheduler

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func moved(ev TaskJoined, reading ...Run) TaskJoined {
	ev.Moved, ev.Reading = true, reading
	return ev
}

func TestReaderUnderAnotherMachinesLeaseReadsOn(t *testing.T) {
	for name, task := range map[string]Task{"by piece": blob(8), "as a whole": {ID: "blob", Pieces: 8, PieceSize: piece, Sequential: true}} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.do(hostJoins("s1", true, ""), hostJoins("s2", true, ""), hostJoins("n1", false, ""))
			c.do(moved(join("n1", task)))
			c.after(100*time.Millisecond, moved(join("s2", task), Run{0, 8}))
			for range 10 {
				c.after(200*time.Millisecond, Progress{Host: "s2", Task: "blob", Reading: true}, Tick{})
			}
			if len(c.leaseOrder) != 0 {
				t.Errorf("leases %v although s2 reads everything", c.leases)
			}
			c.do(HostLeft{Host: "s2"})
			if len(c.leases["s1"]) == 0 {
				t.Error("the dead reader's lease was not given to anybody")
			}
		})
	}
}

func TestMovedTaskThatNobodyReadsIsLeasedAfterAWhile(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), moved(join("n1", blob(4))))
	if len(c.leaseOrder) != 0 {
		t.Fatalf("leases %v before the reader could speak", c.leases)
	}
	c.after(500*time.Millisecond, Tick{})
	if d := cmp.Diff([]Run{{0, 4}}, c.leases["s1"]); d != "" {
		t.Errorf("leases of s1 (-want +got):\n%s", d)
	}
}

func TestClaimedLeaseOfWhatIsLeasedIsIgnored(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), hostJoins("n2", false, ""), join("n1", blob(4)))
	c.do(moved(join("n2", blob(4)), Run{0, 4}, Run{-3, 99}))
	c.do(HostLeft{Host: "n2"})
	if got := c.Snapshot().Tasks[0].Leased; got != 4 {
		t.Errorf("%d pieces are leased, want those of s1", got)
	}
}

func TestPieceLostOfABlobThatWasReadAsAWholeIsReadAlone(t *testing.T) {
	c := newCluster(t)
	task := Task{ID: "blob", Pieces: 20, PieceSize: piece, Sequential: true}
	c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), join("n1", task))
	c.do(Progress{Host: "s1", Task: "blob", Gained: []Run{{0, 20}}, Digests: digests(1, 20), Done: true})
	if d := cmp.Diff([]Run{{0, 20}}, c.leases["s1"]); d != "" {
		t.Fatalf("leases of s1 (-want +got):\n%s", d)
	}
	c.after(3*time.Second, Stuck{Host: "n1", Task: "blob", Runs: []Run{{7, 8}}})
	if d := cmp.Diff([]Run{{7, 8}}, c.leases["n1"]); d != "" {
		t.Errorf("leases of n1, which cannot get the piece from s1 (-want +got):\n%s", d)
	}
	c.after(time.Second, HostLeft{Host: "s1"})
	if d := cmp.Diff(Run{0, 4}, c.leases["n1"][1]); d != "" {
		t.Errorf("lease of what s1 took with it (-want +got):\n%s", d)
	}
}
