package dispatch

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-project/shoal/peer/piece"
)

// TestPlannerKeepsItsBoundsAndFinishes has parents, hosts beyond the border and the origin answer in any way for a while, and well from then on.
func TestPlannerKeepsItsBoundsAndFinishes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		n := rapid.IntRange(1, 40).Draw(t, "pieces")
		rng := rand.New(rand.NewPCG(seed, 1))
		l := piece.Layout{Size: int64(n) * piece.GroupSize, PieceSize: piece.GroupSize}
		m := &plannerModel{t: t, rng: rng, now: time.Unix(0, 0), pieces: piece.Index(n), crossing: map[piece.Index]bool{},
			Planner: New(Config{InFlight: 4}, l, piece.NewSet(n), nil, rand.New(rand.NewPCG(seed, 2)))}
		for round := 0; m.Missing() > 0; round++ {
			if round == 5000 {
				t.Fatalf("%d pieces are missing after %d rounds", m.Missing(), round)
			}
			m.now = m.now.Add(time.Duration(rng.IntN(100)) * time.Millisecond)
			m.change(round < 100)
			m.ask()
			m.answer(round < 100)
		}
		if got := m.Next(m.now); len(got) != 0 {
			t.Fatalf("requests %v after everything came", got)
		}
	})
}

type plannerModel struct {
	*Planner
	t        *rapid.T
	rng      *rand.Rand
	now      time.Time
	pieces   piece.Index
	pending  []Request
	crossing map[piece.Index]bool // may be asked beyond the border
	leased   []Run
}

var near, beyond = []ParentID{"a", "b", "c"}, []ParentID{"x", "y"}

// change brings news; trouble may be bad.
func (m *plannerModel) change(trouble bool) {
	i := piece.Index(m.rng.IntN(int(m.pieces)))
	id := near[m.rng.IntN(len(near))]
	switch m.rng.IntN(8) {
	case 0, 1, 2:
		if m.AddParent(id) {
			m.ParentHas(id, Run{0, i + 1})
		}
	case 3:
		if trouble {
			m.RemoveParent(id)
		}
	case 4:
		if trouble {
			m.ParentLost(id, i)
		}
	case 5, 6:
		run := Run{i, min(i+3, m.pieces)}
		for j := run.First; j < run.End; j++ {
			m.crossing[j] = true
		}
		m.Cross(run, beyond, m.rng.IntN(2) == 0)
	default:
		run := Run{i, min(i+2, m.pieces)}
		m.leased = append(m.leased, run)
		m.Lease(run)
	}
}

// ask takes requests and checks each.
func (m *plannerModel) ask() {
	for _, r := range m.Next(m.now) {
		for _, o := range m.pending {
			if o.Parent != "" && r.Parent != "" && o.Run == r.Run {
				m.t.Fatalf("piece %d is asked of %s and of %s", r.Run.First, o.Parent, r.Parent)
			}
		}
		switch {
		case r.Parent == "" && !slices.ContainsFunc(m.leased, func(l Run) bool { return l.First <= r.Run.First && r.Run.End <= l.End }):
			m.t.Fatalf("the origin is read without a lease: %v", r.Run)
		case r.Border != slices.Contains(beyond, r.Parent), r.Border && !m.crossing[r.Run.First]:
			m.t.Fatalf("asked across the border without a lease: %+v", r)
		case m.have.Has(r.Run.First):
			m.t.Fatalf("asked for what is held: %+v", r)
		}
		m.pending = append(m.pending, r)
	}
	if n := len(slices.DeleteFunc(slices.Clone(m.pending), func(r Request) bool { return r.Parent == "" })); n > 4 {
		m.t.Fatalf("%d requests in flight", n)
	}
}

// answer ends some requests.
func (m *plannerModel) answer(trouble bool) {
	bad := []Outcome{Busy, Shared, Absent, Transient, Late, Corrupt}
	m.pending = slices.DeleteFunc(m.pending, func(r Request) bool {
		if m.rng.IntN(2) == 0 {
			return false
		}
		o := OK
		if trouble && m.rng.IntN(2) == 0 {
			o = bad[m.rng.IntN(len(bad))]
		}
		if o == OK {
			for i := r.Run.First; i < r.Run.End; i++ {
				m.Got(i)
			}
		}
		m.Done(m.now, r, o)
		return true
	})
}
