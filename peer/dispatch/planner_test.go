package dispatch

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/peer/piece"
)

var t0 = time.Unix(1000, 0)

// planner returns one for a blob of n pieces of 256 KiB of which none is held.
func planner(n int) *Planner {
	l := piece.Layout{Size: int64(n) * piece.GroupSize, PieceSize: piece.GroupSize}
	return New(Config{}, l, piece.NewSet(n), nil, rand.New(rand.NewPCG(3, 4)))
}

func withParents(p *Planner, ids ...ParentID) *Planner {
	for _, id := range ids {
		p.AddParent(id)
		p.ParentHas(id, Run{0, piece.Index(p.layout.Count())})
	}
	return p
}

func TestOneRequestPerParentAndNoPieceTwice(t *testing.T) {
	p := withParents(planner(100), "a", "b", "c")
	parents, pieces := map[ParentID]int{}, map[Run]int{}
	for _, r := range append(p.Next(t0), p.Next(t0)...) {
		parents[r.Parent]++
		pieces[r.Run]++
	}
	if d := cmp.Diff(map[ParentID]int{"a": 1, "b": 1, "c": 1}, parents); d != "" {
		t.Errorf("requests per parent (-want +got):\n%s", d)
	}
	if len(pieces) != 3 {
		t.Errorf("pieces asked: %v", pieces)
	}
}

func TestSoleParentHasTwoInFlight(t *testing.T) {
	if got := len(withParents(planner(10), "a").Next(t0)); got != 2 {
		t.Errorf("%d requests to a sole parent, want 2", got)
	}
}

func TestInFlightIsBounded(t *testing.T) {
	p := planner(100)
	for i := range 20 {
		withParents(p, ParentID(fmt.Sprint("p", i)))
	}
	if got := len(p.Next(t0)); got != 8 {
		t.Errorf("%d requests in flight, want 8", got)
	}
}

func TestWaitedForPiecesComeFirst(t *testing.T) {
	for _, span := range []Run{{50, 54}, {50, 100}} { // a short range; a stream, of which 32 pieces are the window
		p := withParents(planner(100), "a")
		p.Readers([]Run{span})
		last := min(span.End, 50+32) - 1
		for i := piece.Index(50); i <= last; {
			for _, r := range p.Next(t0) {
				if (r.Run.First < 50 || r.Run.First > last) && i < last {
					t.Errorf("%v: piece %d was asked although others are waited for", span, r.Run.First)
				}
				p.Done(t0, r, OK)
				i++
			}
		}
	}
}

func TestRarestPieceFirst(t *testing.T) {
	p := withParents(planner(10), "a", "b")
	p.AddParent("c")
	p.ParentHas("c", Run{0, 10})
	p.ParentLost("a", 7)
	p.ParentLost("b", 7)
	found := false
	for _, r := range p.Next(t0) {
		found = found || r == Request{Parent: "c", Run: Run{7, 8}}
	}
	if !found {
		t.Error("the only holder of a rare piece was asked for another one")
	}
}

func TestFailuresSteerAwayFromTheParent(t *testing.T) {
	for _, tc := range []struct {
		outcome     Outcome
		soon, later bool // asked again for the piece after 30 ms, after a minute
	}{
		{Busy, true, true}, {Late, false, true}, {Transient, false, true}, {Absent, false, false}, {Corrupt, false, false},
	} {
		t.Run(fmt.Sprint(tc.outcome), func(t *testing.T) {
			p := withParents(planner(1), "a")
			p.Done(t0, p.Next(t0)[0], tc.outcome)
			if n := len(p.Next(t0)); n != 0 {
				t.Errorf("asked again at once")
			}
			soon := p.Next(t0.Add(30 * time.Millisecond))
			if (len(soon) == 1) != tc.soon {
				t.Errorf("asked soon: %v, want %v", soon, tc.soon)
			}
			if len(soon) == 0 && (len(p.Next(t0.Add(time.Minute))) == 1) != tc.later {
				t.Errorf("asked later: %v, want %v", !tc.later, tc.later)
			}
		})
	}
}

func TestABusyParentIsLeftAloneForAsLongAsRequestsTake(t *testing.T) {
	p := withParents(planner(3), "a")
	p.Done(t0.Add(400*time.Millisecond), p.Next(t0)[0], OK) // half of which is 200 ms
	now := t0.Add(time.Second)
	for _, r := range p.Next(now) {
		p.Done(now, r, Busy)
	}
	if got := p.Next(now.Add(99 * time.Millisecond)); len(got) != 0 {
		t.Errorf("asked again before a slot can be free: %v", got)
	}
	if got := p.Next(now.Add(200 * time.Millisecond)); len(got) == 0 {
		t.Error("not asked again")
	}
}

func TestAPieceSentToAnotherPeerIsPassedOverForAMoment(t *testing.T) {
	p := withParents(planner(2), "a", "b")
	p.RemoveParent("b")
	first := p.Next(t0)[0]
	p.Done(t0, first, Shared)
	p.Next(t0) // the other piece
	if got := p.Next(t0.Add(50 * time.Millisecond)); len(got) != 0 {
		t.Errorf("asked again within the pause: %v", got)
	}
	if at := p.NextWake(t0); at != t0.Add(150*time.Millisecond) {
		t.Errorf("next wake %v, want when the pause ends", at.Sub(t0))
	}
	if d := cmp.Diff([]Request{first}, p.Next(t0.Add(150*time.Millisecond))); d != "" {
		t.Errorf("after the pause (-want +got):\n%s", d)
	}
}

func TestALiarIsNotTakenBack(t *testing.T) {
	p := withParents(planner(2), "a")
	p.Done(t0, p.Next(t0)[0], Corrupt)
	withParents(p, "a")
	if got := p.Next(t0.Add(time.Hour)); len(got) != 0 {
		t.Errorf("asked a liar: %v", got)
	}
}

func TestUnverifiablePiecesAreNotAsked(t *testing.T) {
	l := piece.Layout{Size: 4 * piece.GroupSize, PieceSize: piece.GroupSize}
	p := withParents(New(Config{}, l, piece.NewSet(4), piece.NewSet(4), rand.New(rand.NewPCG(1, 1))), "a")
	if got := p.Next(t0); len(got) != 0 {
		t.Fatalf("asked for pieces without a digest: %v", got)
	}
	if d := cmp.Diff([]piece.Index{0, 1, 2}, p.Unverifiable("a", 3)); d != "" {
		t.Errorf("digests to ask for (-want +got):\n%s", d)
	}
	p.Know(2)
	if d := cmp.Diff([]Request{{Parent: "a", Run: Run{2, 3}}}, p.Next(t0)); d != "" {
		t.Errorf("requests (-want +got):\n%s", d)
	}
}

func TestOriginIsReadOnlyWithALease(t *testing.T) {
	p := planner(100)
	if got := p.Next(t0); len(got) != 0 {
		t.Fatalf("without lease: %v", got)
	}
	p.Lease(Run{0, 16})
	p.Lease(Run{16, 32})
	p.Lease(Run{32, 48})
	p.Revoke(Run{32, 48})
	want := []Request{{Run: Run{0, 16}}, {Run: Run{16, 32}}}
	if d := cmp.Diff(want, p.Next(t0)); d != "" {
		t.Errorf("requests (-want +got):\n%s", d)
	}
	p.Done(t0, want[0], OK)
	if got := p.Next(t0); len(got) != 0 {
		t.Errorf("a revoked lease was used: %v", got)
	}
}

func TestWithoutSchedulerOnlyWhatNobodyHoldsIsReadFromTheOrigin(t *testing.T) {
	p := planner(48)
	p.AddParent("a")
	p.ParentHas("a", Run{0, 20})
	p.Self(true)
	p.Readers([]Run{{30, 31}})
	var source []Run
	for _, r := range p.Next(t0) {
		if r.Parent == "" {
			source = append(source, r.Run)
		}
	}
	if d := cmp.Diff([]Run{{30, 46}, {46, 48}}, source); d != "" {
		t.Errorf("reads of the origin (-want +got):\n%s", d)
	}
}

// One piece in a while would be little, of a blob of thousands.
func TestStuckReportsSeveralPiecesHoweverLargeTheyAre(t *testing.T) {
	layout := piece.Layout{Size: 100 * piece.MaxSize, PieceSize: piece.MaxSize}
	p := New(Config{}, layout, piece.NewSet(100), nil, rand.New(rand.NewPCG(3, 4)))
	p.Next(t0)
	if d := cmp.Diff([]Run{{0, stuckLeast}}, p.Stuck(t0.Add(time.Second))); d != "" {
		t.Errorf("stuck pieces (-want +got):\n%s", d)
	}
}

func TestStuckIsReportedOnceInAWhile(t *testing.T) {
	p := planner(4)
	p.Next(t0)
	if got := p.Stuck(t0.Add(900 * time.Millisecond)); got != nil {
		t.Errorf("stuck too early: %v", got)
	}
	if d := cmp.Diff([]Run{{0, 4}}, p.Stuck(t0.Add(time.Second))); d != "" {
		t.Errorf("stuck (-want +got):\n%s", d)
	}
	if got := p.Stuck(t0.Add(time.Second)); got != nil {
		t.Errorf("reported twice: %v", got)
	}
	if got := p.NextWake(t0.Add(time.Second)); got != t0.Add(2*time.Second) {
		t.Errorf("next wake %v", got)
	}
}

// TestRandomRunsFinish throws random outcomes at the planner; the invariant is that a piece is never asked twice at a time
// and that everything arrives as long as one honest parent lives.
func TestRandomRunsFinish(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 1))
		n := 1 + rng.IntN(60)
		p := withParents(planner(n), "honest", "b", "c", "d")
		now, open := t0, map[piece.Index]Request{}
		for step := 0; p.Missing() > 0; step++ {
			if step > 20000 {
				t.Fatalf("seed %d: %d pieces missing after %d steps", seed, p.Missing(), step)
			}
			now = now.Add(5 * time.Millisecond)
			for _, r := range p.Next(now) {
				if _, twice := open[r.Run.First]; twice {
					t.Fatalf("seed %d: piece %d asked twice", seed, r.Run.First)
				}
				open[r.Run.First] = r
			}
			for i, r := range open {
				o := Outcome(rng.IntN(5))
				if r.Parent == "honest" && (o == Corrupt || o == Absent) {
					o = OK
				}
				p.Done(now, r, o)
				delete(open, i)
				break
			}
		}
	}
}

func TestLeaseIsReadAsFarAsNothingElseBroughtItsPieces(t *testing.T) {
	p := planner(20)
	p.Got(3)
	p.Lease(Run{2, 6})
	p.Lease(Run{4, 8})
	want := []Request{{Run: Run{2, 3}}, {Run: Run{4, 6}}}
	if d := cmp.Diff(want, p.Next(t0)); d != "" {
		t.Errorf("reads (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]Run{{2, 3}, {4, 6}, {4, 8}}, p.Leased()); d != "" {
		t.Errorf("leased (-want +got):\n%s", d)
	}
	p.Done(t0, Request{Run: Run{2, 3}}, OK)
	if d := cmp.Diff([]Request{{Run: Run{6, 8}}}, p.Next(t0)); d != "" {
		t.Errorf("the overlap is read twice (-want +got):\n%s", d)
	}
}

func TestOriginThatFailedIsLeftAloneForLongerEachTime(t *testing.T) {
	p := planner(1)
	p.Self(true)
	now := t0
	for _, pause := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 4 * time.Second} {
		reads := p.Next(now)
		if len(reads) != 1 {
			t.Fatalf("after %v: %v", now.Sub(t0), reads)
		}
		p.Done(now, reads[0], Transient)
		if got := p.Next(now.Add(pause - 1)); len(got) != 0 {
			t.Errorf("read again within %v: %v", pause, got)
		}
		if at := p.NextWake(now); at.Sub(now) > pause {
			t.Errorf("wakes after %v, want at most %v", at.Sub(now), pause)
		}
		now = now.Add(pause)
	}
	p.Retry()
	if got := p.Next(now.Add(-time.Millisecond)); len(got) != 1 {
		t.Errorf("a new reader does not have the origin asked: %v", got)
	}
}

func TestASlowParentIsGivenUpOnlyWhenAnotherHoldsThePiece(t *testing.T) {
	for _, others := range []bool{false, true} {
		p := withParents(planner(1), "slow")
		slow := p.Next(t0)[0]
		if others {
			withParents(p, "quick")
		}
		if got := p.Overdue(t0.Add(249 * time.Millisecond)); len(got) != 0 {
			t.Errorf("given up too early: %v", got)
		}
		at := t0.Add(250 * time.Millisecond)
		wake, got := p.NextWake(t0), p.Overdue(at)
		if !others {
			if len(got) != 0 {
				t.Errorf("the only holder was given up: %v", got)
			}
			continue
		}
		if !wake.Equal(at) {
			t.Errorf("wakes after %v, want 250 ms", wake.Sub(t0))
		}
		if d := cmp.Diff([]Request{slow}, got); d != "" {
			t.Errorf("given up (-want +got):\n%s", d)
		}
		if again := p.Overdue(at); len(again) != 0 {
			t.Errorf("given up twice: %v", again)
		}
		p.Done(at, slow, Late)
		if d := cmp.Diff([]Request{{Parent: "quick", Run: Run{0, 1}, Alone: true}}, p.Next(at)); d != "" {
			t.Errorf("then asked (-want +got):\n%s", d)
		}
	}
}

func TestPatienceFollowsWhatRequestsTake(t *testing.T) {
	p := withParents(planner(2), "a", "b")
	for _, r := range p.Next(t0) {
		if r.Parent == "a" {
			p.Done(t0.Add(time.Second), r, OK)
		}
	}
	if got := p.Overdue(t0.Add(3900 * time.Millisecond)); len(got) != 0 {
		t.Errorf("given up within four times of what another took: %v", got)
	}
	if got := p.Overdue(t0.Add(4 * time.Second)); len(got) != 1 {
		t.Errorf("given up: %v, want one", got)
	}
}

// Requests that all take long are not given up for ever: of a host that comes late to a cluster that has everything, each piece has many holders,
// and nothing tells at first how long one takes.
func TestPiecesComeHoweverLongTheyTake(t *testing.T) {
	for name, tc := range map[string]struct{ before, took, most time.Duration }{
		"none has come yet":         {0, 10 * time.Second, 40 * time.Second},
		"they took far less before": {20 * time.Millisecond, 10 * time.Second, 40 * time.Second},
		"hardly anything comes":     {0, 40 * time.Second, 4 * time.Minute},
	} {
		p := withParents(planner(20), "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l")
		now := t0
		if tc.before > 0 {
			for _, r := range p.Next(now) {
				p.Done(now.Add(tc.before), r, OK)
			}
			now = now.Add(tc.before)
		}
		missing := p.Missing()
		asked := map[Request]time.Time{}
		for p.Missing() == missing && now.Sub(t0) < tc.most {
			for _, r := range p.Overdue(now) {
				for a := range asked {
					if a.Parent == r.Parent && a.Run == r.Run {
						delete(asked, a)
						p.Done(now, a, Late)
					}
				}
			}
			for _, r := range p.Next(now) {
				asked[r] = now
			}
			for r, at := range asked {
				if now.Sub(at) >= tc.took {
					delete(asked, r)
					p.Done(now, r, OK)
				}
			}
			now = now.Add(10 * time.Millisecond)
		}
		if p.Missing() == missing {
			t.Errorf("%s: no piece within %v, although each takes %v", name, tc.most, tc.took)
		}
	}
}

func TestAllSlowParentsAreLeftAloneForLong(t *testing.T) {
	p := withParents(planner(200), "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l")
	requests := p.Next(t0)
	for _, r := range requests[4:] {
		p.Done(t0.Add(100*time.Millisecond), r, OK)
	}
	at := t0.Add(400 * time.Millisecond) // four times that
	if got := p.Overdue(at); len(got) != 4 {
		t.Fatalf("given up: %v, want four", got)
	}
	for _, r := range requests[:4] {
		p.Done(at, r, Late)
		if got := p.parents[r.Parent].notUntil.Sub(at); got != 1600*time.Millisecond {
			t.Errorf("parent %s is left alone for %v, want 1.6 s", r.Parent, got)
		}
	}
}

// What comes across the border says nothing of how long the parents of the zone take.
func TestBorderDoesNotMakeImpatient(t *testing.T) {
	p := withParents(planner(20), "a", "b")
	for _, r := range p.Next(t0) {
		p.Done(t0.Add(p.patience()), r, Late)
	}
	patience := p.patience()
	p.ParentLost("a", 19)
	p.ParentLost("b", 19)
	p.Cross(Run{19, 20}, []ParentID{"far"}, false)
	at := t0.Add(time.Minute)
	for _, r := range p.Next(at) {
		if r.Border {
			p.Done(at.Add(10*time.Millisecond), r, OK)
		}
	}
	if got := p.patience(); !p.have.Has(19) || got != patience {
		t.Errorf("patience %v, want %v as before; the piece came: %v", got, patience, p.have.Has(19))
	}
}

func TestParentsAreAskedForLessWhileTheOriginIsRead(t *testing.T) {
	p := planner(100)
	for i := range 20 {
		withParents(p, ParentID(fmt.Sprint("p", i)))
	}
	p.Lease(Run{0, 4})
	if got := len(p.Next(t0)); got != 1+6 {
		t.Errorf("%d requests, want one of the origin and 6 of parents", got)
	}
}

func TestOnlyWhoReadsTheOriginReportsAtOnce(t *testing.T) {
	p := planner(2)
	if got := p.ReportAfter(false); got != reportLate {
		t.Errorf("a peer reports after %v", got)
	}
	p.Lease(Run{0, 1})
	if got := p.ReportAfter(false); got != 50*time.Millisecond {
		t.Errorf("a holder of a lease reports after %v", got)
	}
	p.Got(0)
	p.Got(1)
	if got := p.ReportAfter(false); got != 0 {
		t.Errorf("who has everything reports after %v", got)
	}
}
