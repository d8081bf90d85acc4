package dispatch

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/peer/piece"
)

// ask is a request across the border for one piece.
func ask(from ParentID, i int) Request {
	return Request{Parent: from, Run: Run{piece.Index(i), piece.Index(i + 1)}, Border: true, Alone: true}
}

func TestHostBeyondTheBorderGivesWhatIsLeasedAndNoMore(t *testing.T) {
	p := newHolding()
	p.Cross(Run{2, 4}, []ParentID{"far"}, false)
	now := time.Unix(0, 0)
	if d := cmp.Diff([]Request{ask("far", 2)}, p.Next(now)); d != "" {
		t.Fatalf("requests (-want +got):\n%s", d)
	}
	if !p.Crosses(2) {
		t.Error("piece 2 is not known to be waited for")
	}
	p.Done(now, ask("far", 2), OK)
	p.Got(2)
	if d := cmp.Diff([]Request{ask("far", 3)}, p.Next(now)); d != "" {
		t.Fatalf("requests (-want +got):\n%s", d)
	}
	p.Done(now, ask("far", 3), OK)
	p.Got(3)
	if got := p.Next(now); len(got)+len(p.Crossings())+len(p.Uncrossed()) != 0 {
		t.Errorf("requests %v, crossings %v after everything came", got, p.Crossings())
	}
}

func TestCrossingComesFromAParentThatHoldsThePiece(t *testing.T) {
	p := newHolding()
	p.Cross(Run{2, 3}, []ParentID{"far"}, false)
	p.AddParent("near")
	p.ParentHas("near", Run{2, 3})
	now := time.Unix(0, 0)
	want := Request{Parent: "near", Run: Run{2, 3}}
	if d := cmp.Diff([]Request{want}, p.Next(now)); d != "" {
		t.Fatalf("requests (-want +got):\n%s", d)
	}
	p.Done(now, want, Absent)
	if d := cmp.Diff([]Request{ask("far", 2)}, p.Next(now)); d != "" {
		t.Errorf("requests after the parent lost it (-want +got):\n%s", d)
	}
}

func TestEveryHostNamedIsAskedBeforeACrossingFails(t *testing.T) {
	for _, o := range []Outcome{Transient, Absent, Corrupt} {
		p := newHolding()
		p.Cross(Run{2, 3}, []ParentID{"a", "b"}, false)
		now, asked := time.Unix(0, 0), map[ParentID]bool{}
		for range 2 {
			got := p.Next(now)
			if len(got) != 1 || len(p.Uncrossed()) != 0 {
				t.Fatalf("outcome %d: requests %v", o, got)
			}
			asked[got[0].Parent] = true
			p.Done(now, got[0], o)
		}
		if d := cmp.Diff([]Run{{2, 3}}, p.Uncrossed()); d != "" || len(asked) != 2 {
			t.Errorf("outcome %d: asked %v, failed (-want +got):\n%s", o, asked, d)
		}
		if got := p.Uncrossed(); len(got) != 0 {
			t.Errorf("outcome %d: %v failed twice", o, got)
		}
		if got := p.Next(now); len(got) != 0 {
			t.Errorf("outcome %d: requests %v after the crossing failed", o, got)
		}
	}
}

func TestBusyHostBeyondTheBorderIsAskedAgainSoon(t *testing.T) {
	p := newHolding()
	p.Cross(Run{2, 3}, []ParentID{"far"}, false)
	now := time.Unix(0, 0)
	p.Done(now, p.Next(now)[0], Busy)
	if got := p.Next(now); len(got) != 0 {
		t.Fatalf("asked at once: %v", got)
	}
	at := p.NextWake(now)
	if wait := at.Sub(now); wait <= 0 || wait > 10*time.Millisecond {
		t.Errorf("asks again after %v", wait)
	}
	if d := cmp.Diff([]Request{ask("far", 2)}, p.Next(at)); d != "" {
		t.Errorf("requests (-want +got):\n%s", d)
	}
}

// Who sends hardly anything across the border is waited for only until the piece has come to the zone by another way.
func TestSlowCrossingIsGivenUpWhenAParentHasThePiece(t *testing.T) {
	for _, again := range []bool{false, true} {
		p := newHolding()
		p.Cross(Run{2, 3}, []ParentID{"far"}, again)
		now := time.Unix(0, 0)
		p.Next(now)
		now = now.Add(time.Minute)
		if got := p.Overdue(now); len(got) != 0 {
			t.Errorf("again %v: %v is given up, and nobody else has it", again, got)
		}
		p.AddParent("a")
		p.ParentHas("a", Run{2, 3})
		if got := p.Overdue(now); (len(got) == 1) == again {
			t.Errorf("again %v: %v is given up when a parent has it", again, got)
		}
	}
}

func TestRevokedCrossingIsNotBegun(t *testing.T) {
	p := newHolding()
	p.Cross(Run{2, 5}, []ParentID{"far"}, false)
	p.RevokeCrossing(Run{3, 4})
	if d := cmp.Diff([]Run{{2, 3}, {4, 5}}, p.Crossings()); d != "" {
		t.Errorf("crossings (-want +got):\n%s", d)
	}
	p.Cross(Run{6, 7}, nil, false)
	if d := cmp.Diff([]Run{{6, 7}}, p.Uncrossed()); d != "" {
		t.Errorf("failed for want of hosts (-want +got):\n%s", d)
	}
}

func TestPieceIsWithheldByAnOnlyHolderThatLiesOrCrawls(t *testing.T) {
	now := time.Unix(0, 0)
	p := newHolding()
	p.AddParent("quick")
	p.ParentHas("quick", Run{0, 1})
	p.Done(now.Add(10*time.Millisecond), p.Next(now)[0], OK)
	p.AddParent("liar")
	p.ParentHas("liar", Run{1, 2})
	p.Done(now, p.Next(now)[0], Corrupt)
	if d := cmp.Diff([]Run{{1, 2}}, p.Withheld(now)); d != "" {
		t.Errorf("withheld by the liar (-want +got):\n%s", d)
	}
	p.AddParent("slow")
	p.ParentHas("slow", Run{2, 4})
	p.ParentHas("quick", Run{3, 4})
	if got := p.Next(now); len(got) != 2 {
		t.Fatalf("requests %v", got)
	}
	at := now.Add(499 * time.Millisecond)
	if got := p.Withheld(at); len(got) != 0 {
		t.Errorf("withheld %v too early", got)
	}
	at = p.NextWake(at)
	if d := cmp.Diff([]Run{{2, 3}}, p.Withheld(at)); d != "" {
		t.Errorf("withheld by who crawls, at %v (-want +got):\n%s", at, d)
	}
	if got := p.Withheld(at.Add(time.Hour)); len(got) != 0 {
		t.Errorf("reported again: %v", got)
	}
}

func TestPieceThatDoesNotComeFromItsHolderIsFetchedAcrossTheBorderAllTheSame(t *testing.T) {
	now := time.Unix(0, 0)
	p := newHolding()
	p.AddParent("near")
	p.ParentHas("near", Run{2, 3})
	slow := p.Next(now)[0]
	p.Cross(Run{2, 3}, []ParentID{"far"}, true)
	at := now.Add(250 * time.Millisecond)
	if d := cmp.Diff([]Request{slow}, p.Overdue(at)); d != "" {
		t.Fatalf("given up (-want +got):\n%s", d)
	}
	p.Done(at, slow, Late)
	if d := cmp.Diff([]Request{ask("far", 2)}, p.Next(at)); d != "" {
		t.Errorf("requests (-want +got):\n%s", d)
	}
}
