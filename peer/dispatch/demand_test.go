package dispatch

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/peer/piece"
)

func TestWhatIsDemandedIsAskedBesideAllElse(t *testing.T) {
	p := withParents(planner(100), "a", "b")
	bulk := len(p.Next(t0))
	p.Demand([]Run{{90, 92}})
	got := p.Next(t0)
	if bulk != 2 || len(got) != 2 {
		t.Fatalf("%d requests, then %v, want two of each", bulk, got)
	}
	for i, r := range got {
		if !r.Demanded || r.Run != (Run{piece.Index(90 + i), piece.Index(91 + i)}) {
			t.Errorf("request %d is %v, want piece %d, demanded", i, r, 90+i)
		}
	}
	for _, r := range got {
		p.Done(t0, r, OK)
	}
	if got := p.Next(t0); len(got) != 0 {
		t.Errorf("%v is asked although each parent has a request", got)
	}
}

func TestWhatAnotherIsGettingIsAskedOfHim(t *testing.T) {
	p := withParents(planner(100), "a")
	p.Partial(true)
	p.Demand([]Run{{7, 8}})
	asked := p.Next(t0)
	if len(asked) != 1 || asked[0].Parent != "a" {
		t.Fatalf("requests %v, want one to a", asked)
	}
	p.Done(t0, asked[0], Shared)
	if got := p.Next(t0); len(got) != 0 {
		t.Errorf("requests %v at once, want none", got)
	}
	withParents(p, "b")
	if got := p.Next(t0); len(got) != 1 || got[0].Parent != "b" || !got[0].Demanded {
		t.Errorf("requests %v once b has it, want one to b, demanded", got)
	}
}

func TestPartialFetchesNothingElse(t *testing.T) {
	p := withParents(planner(100), "a", "b")
	p.Partial(true)
	p.Demand([]Run{{7, 8}})
	got := p.Next(t0)
	if len(got) != 1 || got[0].Run != (Run{7, 8}) {
		t.Fatalf("requests %v, want piece 7", got)
	}
	p.Done(t0, got[0], OK)
	if got := p.Next(t0); len(got) != 0 {
		t.Errorf("requests %v after what was demanded, want none", got)
	}
	if p.Wanting() {
		t.Error("something is wanted although all that was demanded is held")
	}
	p.Next(t0.Add(p.cfg.StuckAfter))
	if got := p.Stuck(t0.Add(2 * p.cfg.StuckAfter)); got != nil {
		t.Errorf("stuck at %v, which nobody wants", got)
	}
}

func TestLeaseOfWhatIsDemandedIsReadBesideOthers(t *testing.T) {
	p := planner(100)
	p.Lease(Run{0, 16})
	p.Lease(Run{16, 32})
	p.Lease(Run{32, 48})
	p.Next(t0)
	p.LeaseFirst(Run{40, 41})
	want := []Request{{Run: Run{40, 41}, Demanded: true}}
	if d := cmp.Diff(want, p.Next(t0)); d != "" {
		t.Fatalf("requests (-want +got):\n%s", d)
	}
	if !p.Rushing() {
		t.Error("nobody is to make way for what is demanded")
	}
	p.Got(40)
	p.Done(t0, want[0], OK)
	if p.Rushing() {
		t.Error("others are to make way for nothing")
	}
	p.Done(t0, Request{Run: Run{0, 16}}, OK)
	if d := cmp.Diff([]Request{{Run: Run{32, 40}}}, p.Next(t0)); d != "" {
		t.Errorf("the lease around it (-want +got):\n%s", d)
	}
}

func TestWhatIsReadWithAllOfASmallBlobIsNotReadTwice(t *testing.T) {
	p := planner(3)
	p.Lease(Run{0, 3})
	p.Next(t0)
	p.LeaseFirst(Run{1, 2})
	if got := p.Next(t0); len(got) != 0 {
		t.Errorf("requests %v although all of the blob is being read", got)
	}
	unknown := New(Config{}, piece.Layout{Size: 3 << 20, PieceSize: 1 << 20}, piece.NewSet(3), piece.NewSet(3), rand.New(rand.NewPCG(1, 2)))
	unknown.Lease(Run{0, 3})
	unknown.Next(t0)
	unknown.LeaseFirst(Run{1, 2})
	if got := unknown.Next(t0); len(got) != 1 || got[0].Run != (Run{1, 2}) {
		t.Errorf("requests %v of a blob that is read in order for its digests, want piece 1", got)
	}
}

func TestBulkMakesWayWhileSomethingIsWaitedFor(t *testing.T) {
	for _, test := range []struct{ parents, calm, more int }{{1, 1, 1}, {2, 2, 0}, {4, 2, 2}, {12, 2, 6}} {
		var names []ParentID
		for i := range test.parents {
			names = append(names, ParentID(rune('a'+i)))
		}
		p := withParents(planner(100), names...)
		p.Calm(true)
		if got := len(p.Next(t0)); got != test.calm {
			t.Errorf("%d parents: %d requests while something is waited for, want %d", test.parents, got, test.calm)
		}
		p.Calm(false)
		if got := len(p.Next(t0)); got != test.more {
			t.Errorf("%d parents: %d more requests after that, want %d", test.parents, got, test.more)
		}
	}
}

func TestNobodyMakesWayForWhatComesWithTheRestFromTheOrigin(t *testing.T) {
	p := planner(100)
	p.Lease(Run{0, 16})
	p.Next(t0)
	p.Demand([]Run{{3, 4}})
	if p.Next(t0); p.Rushing() {
		t.Error("the read of the origin is held back for a piece that it brings")
	}
}

// Who reads all of a blob range by range wants the rest of it next: that must not be held back.
func TestRangesOneAfterTheOtherAreNoRush(t *testing.T) {
	p := withParents(planner(100), "a", "b")
	p.Demand([]Run{{40, 44}})
	if !p.Rushing() {
		t.Fatal("the first range is no rush")
	}
	p.Demand([]Run{{42, 44}}) // it has come in part
	if !p.Rushing() {
		t.Error("the rest of the first range is no rush")
	}
	p.Demand([]Run{{43, 48}})
	for i := piece.Index(43); i < 44; i++ {
		p.Got(i)
	}
	if p.Rushing() {
		t.Error("the next range is a rush")
	}
	p.Partial(true)
	if !p.Rushing() {
		t.Error("the next range is no rush, although nothing brings what follows")
	}
	p.Partial(false)
	p.Demand([]Run{{43, 48}, {80, 81}})
	if !p.Rushing() {
		t.Error("a range elsewhere is no rush")
	}
	p.Read(59)
	if p.Demand([]Run{{60, 61}}); p.Rushing() {
		t.Error("a range behind one that was read, and had been there, is a rush")
	}
	p.Demand(nil)
	p.LeaseFirst(Run{48, 50})
	if p.Next(t0); p.Rushing() {
		t.Error("reading on for others is a rush")
	}
	p.LeaseFirst(Run{90, 91})
	if p.Next(t0); !p.Rushing() {
		t.Error("reading elsewhere for others is no rush")
	}
}
