package dispatch

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/peer/piece"
)

func newHolding(held ...piece.Index) *Planner {
	l := piece.NewLayout(8 * piece.GroupSize)
	p := New(Config{SourceRuns: 8, InFlight: 100}, l, piece.NewSet(l.Count()), nil, rand.New(rand.NewPCG(1, 2)))
	for _, i := range held {
		p.Hold(i)
	}
	return p
}

func TestPieceThatIsMadeHereIsAskedOfNobody(t *testing.T) {
	now := time.Unix(0, 0)
	p := newHolding(2, 3)
	p.AddParent("a")
	p.ParentHas("a", Run{2, 4})
	p.Lease(Run{0, 6})
	p.Self(true)
	want := []Request{{Run: Run{0, 2}}, {Run: Run{4, 6}}, {Run: Run{6, 8}}}
	if diff := cmp.Diff(want, p.Next(now)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestLeaseOfAPieceThatCouldNotBeMadeCountsAgain(t *testing.T) {
	now := time.Unix(0, 0)
	p := newHolding(2, 3)
	p.Lease(Run{2, 4})
	if got := p.Next(now); len(got) != 0 {
		t.Fatalf("requests %v", got)
	}
	if diff := cmp.Diff([]Run{{2, 3}, {3, 4}}, p.Leased()); diff != "" {
		t.Errorf("leased (-want +got):\n%s", diff)
	}
	p.Got(2)
	p.Release(3)
	if diff := cmp.Diff([]Request{{Run: Run{3, 4}}}, p.Next(now)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestRevokedLeaseDoesNotComeBackWithItsPiece(t *testing.T) {
	p := newHolding(2)
	p.Lease(Run{2, 3})
	p.Next(time.Unix(0, 0))
	p.Revoke(Run{2, 3})
	p.Release(2)
	if got := p.Next(time.Unix(0, 0)); len(got) != 0 {
		t.Errorf("requests %v", got)
	}
}

func TestWhoOnlyWaitsForItsOwnPiecesIsNotStuck(t *testing.T) {
	now := time.Unix(0, 0)
	p := newHolding(0, 1, 2, 3, 4, 5, 6, 7)
	p.Next(now)
	if got := p.Stuck(now.Add(time.Hour)); len(got) != 0 {
		t.Errorf("stuck with %v", got)
	}
	p.Release(5)
	p.Next(now)
	if diff := cmp.Diff([]Run{{5, 6}}, p.Stuck(now.Add(time.Hour))); diff != "" {
		t.Errorf("stuck (-want +got):\n%s", diff)
	}
}

func TestPieceThatIsLeasedAndMadeHereIsReportedSoon(t *testing.T) {
	p := newHolding(2, 3)
	p.Lease(Run{2, 4})
	p.Next(time.Unix(0, 0))
	if got := p.ReportAfter(false); got != reportSoon {
		t.Errorf("reports after %v: another zone waits for it", got)
	}
}
