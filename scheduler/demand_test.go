package scheduler

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// partial is join of a host that wants only what it demands.
func partial(id string, task Task) TaskJoined {
	j := join(id, task)
	j.Partial = true
	return j
}

func TestOnlyWhatIsDemandedIsLeasedToWhoWantsNoMore(t *testing.T) {
	for name, task := range map[string]Task{"by piece": blob(100), "as a whole": {ID: "blob", Pieces: 100, PieceSize: piece, Sequential: true}} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.do(hostJoins("seed", true, ""), hostJoins("n1", false, ""), partial("n1", task))
			c.do(Demand{Host: "n1", Task: "blob", Runs: []Run{{70, 72}, {20, 21}}})
			c.after(time.Second, Tick{})
			if d := cmp.Diff([]Run{{70, 72}, {20, 21}}, c.leases["seed"]); d != "" {
				t.Errorf("leases (-want +got):\n%s", d)
			}
		})
	}
}

func TestWhatSeveralHostsDemandIsLeasedOnce(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("seed", true, ""), hostJoins("n1", false, ""), hostJoins("n2", false, ""), partial("n1", blob(100)), partial("n2", blob(100)))
	c.do(Demand{Host: "n1", Task: "blob", Runs: []Run{{50, 51}}}, Demand{Host: "n2", Task: "blob", Runs: []Run{{50, 51}}})
	c.do(Progress{Host: "seed", Task: "blob", Gained: []Run{{50, 51}}})
	c.do(Demand{Host: "n2", Task: "blob", Runs: []Run{{50, 51}}})
	if d := cmp.Diff([]Run{{50, 51}}, c.leaseOrder); d != "" {
		t.Errorf("leases (-want +got):\n%s", d)
	}
}

func TestWhatIsDemandedDoesNotWaitForLeasesOfTheRest(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("seed", true, ""), hostJoins("n1", false, ""), join("n1", blob(100)))
	before := len(c.leaseOrder)
	c.do(Demand{Host: "n1", Task: "blob", Runs: []Run{{90, 91}}})
	if d := cmp.Diff([]Run{{90, 91}}, c.leaseOrder[before:]); d != "" {
		t.Errorf("leases after the demand (-want +got):\n%s", d)
	}
	c.do(Demand{Host: "n1", Task: "blob", Runs: []Run{{1, 2}}}) // the seed reads it already, with others
	if d := cmp.Diff([]Run{{90, 91}, {1, 2}}, c.leaseOrder[before:]); d != "" {
		t.Errorf("what the seed was told of first (-want +got):\n%s", d)
	}
}

func TestDemandedPieceOfAReaderThatDiesIsReadByAnother(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("s1", true, ""), hostJoins("n1", false, ""), partial("n1", blob(100)))
	c.do(Demand{Host: "n1", Task: "blob", Runs: []Run{{50, 51}}})
	c.do(HostLeft{Host: "s1"})
	if d := cmp.Diff([]Run{{50, 51}}, c.leases["n1"]); d != "" {
		t.Errorf("leases of the host that is left (-want +got):\n%s", d)
	}
}

func TestLastPieceOfABlobThatIsReadAsAWholeComesWithTheRest(t *testing.T) {
	c := newCluster(t)
	task := Task{ID: "blob", Pieces: 10, PieceSize: piece, Sequential: true}
	c.do(hostJoins("seed", true, ""), hostJoins("n1", false, ""), partial("n1", task))
	c.do(Demand{Host: "n1", Task: "blob", Runs: []Run{{9, 10}}})
	if d := cmp.Diff([]Run{{0, 10}}, c.leases["seed"]); d != "" {
		t.Errorf("leases (-want +got):\n%s", d)
	}
}

func TestDigestsOfWhatIsDemandedAreBelievedOfItsReader(t *testing.T) {
	c := newCluster(t)
	task := Task{ID: "blob", Pieces: 10, PieceSize: piece, Sequential: true}
	c.do(hostJoins("n1", false, ""), hostJoins("n2", false, ""), partial("n1", task))
	c.do(Demand{Host: "n1", Task: "blob", Runs: []Run{{4, 5}}}, partial("n2", task))
	c.do(Progress{Host: "n2", Task: "blob", Digests: []PieceDigest{{Piece: 4, Digest: []byte("lie")}}})
	if c.digests["n1"] != 0 {
		t.Fatal("the word of a host without a lease was passed on")
	}
	c.do(Progress{Host: "n1", Task: "blob", Gained: []Run{{4, 5}}, Digests: []PieceDigest{{Piece: 4, Digest: []byte("right")}}})
	if c.digests["n2"] != 1 {
		t.Errorf("n2 was told %d digests, want the one of the piece n1 read", c.digests["n2"])
	}
}

func TestWhoDemandsAPieceIsANeighbourOfItsReaderOrHolder(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("seed", true, ""))
	const hosts = 60
	for i := range hosts {
		id := fmt.Sprint("n", i)
		c.do(hostJoins(id, false, ""), partial(id, blob(100)))
	}
	demand := func(i int) { c.do(Demand{Host: HostID(fmt.Sprint("n", i)), Task: "blob", Runs: []Run{{50, 51}}}) }
	for i := range hosts / 2 {
		demand(i)
	}
	c.do(Progress{Host: "seed", Task: "blob", Gained: []Run{{50, 51}}})
	for i := hosts / 2; i < hosts; i++ {
		demand(i)
	}
	for i := range hosts {
		if id := HostID(fmt.Sprint("n", i)); !slices.Contains(c.neighbours[id], "seed") {
			t.Errorf("%s does not know the seed, which reads the piece: %v", id, c.neighbours[id])
		}
	}
	if d := cmp.Diff([]Run{{50, 51}}, c.leaseOrder); d != "" {
		t.Errorf("leases (-want +got):\n%s", d)
	}
}

// TestWhatIsDemandedCrossesABorderOnce has two hosts of a zone without a seed wait for a piece: one before it is read, one after.
func TestWhatIsDemandedCrossesABorderOnce(t *testing.T) {
	c := newCluster(t)
	c.do(hostJoins("sa", true, "a"), hostJoins("b0", false, "b"), partial("b0", blob(100)), hostJoins("b1", false, "b"), partial("b1", blob(100)))
	run := []Run{{50, 51}}
	c.do(Demand{Host: "b0", Task: "blob", Runs: run})
	if d := cmp.Diff(map[HostID][]Run{"sa": run}, c.leases); d != "" || len(c.crossings) > 0 {
		t.Errorf("before the piece was read: crossings %v, leases (-want +got):\n%s", c.crossings, d)
	}
	c.do(Progress{Host: "sa", Task: "blob", Gained: run}, Demand{Host: "b1", Task: "blob", Runs: run})
	if d := cmp.Diff(map[HostID][]Run{"b0": run}, c.crossings); d != "" {
		t.Errorf("crossings (-want +got):\n%s", d)
	}
	if !slices.Contains(c.neighbours["b1"], "b0") {
		t.Errorf("b1 does not know b0, which fetches the piece: %v", c.neighbours["b1"])
	}
	for _, id := range []HostID{"b0", "b1"} {
		if slices.Contains(c.neighbours[id], "sa") {
			t.Errorf("%s has a neighbour beyond the border", id)
		}
	}
	c.do(Progress{Host: "b0", Task: "blob", Gained: run})
	c.after(time.Second, Tick{})
	if d := cmp.Diff(map[HostID][]Run{"b0": run}, c.crossings); d != "" {
		t.Errorf("crossings at the end (-want +got):\n%s", d)
	}
	checkZones(t, c.task(), 0)
}
