package dispatch

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A holder that sent a piece to somebody else refuses it to others. Whoever that was may never give it to anybody.
func TestAPieceWithOneHolderIsNotRefusedForLong(t *testing.T) {
	for _, demanded := range []bool{false, true} {
		p := newHolding()
		p.AddParent("seed")
		p.ParentHas("seed", Run{3, 4})
		if demanded {
			p.Demand([]Run{{3, 4}})
		}
		began, tries := time.Unix(0, 0), 0
		for now := began; ; now = p.NextWake(now) {
			got := p.Next(now)
			if len(got) == 0 {
				continue
			}
			alone := now.Sub(began) >= p.cfg.SharedFor
			if d := cmp.Diff([]Request{{Parent: "seed", Run: Run{3, 4}, Demanded: demanded, Alone: alone}}, got); d != "" {
				t.Fatalf("demanded %v, after %v (-want +got):\n%s", demanded, now.Sub(began), d)
			}
			if tries++; alone {
				break
			}
			if tries > 10 {
				t.Fatalf("demanded %v: still refused after %v", demanded, now.Sub(began))
			}
			p.Done(now, got[0], Shared)
		}
	}
}

func TestAPieceIsLeftToWhoElseHoldsItUnlessThatFails(t *testing.T) {
	for o, alone := range map[Outcome]bool{Busy: false, Transient: true, Late: true, Corrupt: true} {
		p := newHolding()
		p.AddParent("seed")
		p.ParentHas("seed", Run{3, 4})
		now := time.Unix(0, 0)
		p.Done(now, p.Next(now)[0], Shared)
		now = now.Add(p.cfg.SharedFor / 4)
		p.AddParent("other")
		p.ParentHas("other", Run{3, 4})
		p.Done(now, p.Next(now)[0], o)
		now = now.Add(p.cfg.SharedPause)
		p.Demand([]Run{{3, 4}})
		var got []Request
		for ; len(got) == 0; now = now.Add(time.Millisecond) {
			got = p.Next(now)
		}
		if got[0].Alone != alone {
			t.Errorf("outcome %d: then asked %+v, want alone %v", o, got, alone)
		}
	}
}

// As long as a third holds the piece, it is left to that one when the other fails.
func TestNobodyIsAloneWithAThirdHolder(t *testing.T) {
	for _, third := range []bool{false, true} {
		p := newHolding()
		ids := []ParentID{"seed", "failed"}
		if third {
			ids = append(ids, "third")
		}
		for _, id := range ids {
			p.AddParent(id)
			p.ParentHas(id, Run{3, 4})
		}
		now := time.Unix(0, 0)
		p.noteAlone(now, Request{Parent: "failed", Run: Run{3, 4}}, Transient)
		if got := p.alone(now, "seed", 3); got == third {
			t.Errorf("a third: %v, alone: %v", third, got)
		}
	}
}

// A seed that is late because its link is full is not to send yet another copy.
func TestWhoIsLateIsNotAskedAlone(t *testing.T) {
	p := newHolding()
	p.AddParent("seed")
	p.ParentHas("seed", Run{3, 4})
	now := time.Unix(0, 0)
	first := p.Next(now)[0]
	p.AddParent("other")
	p.ParentHas("other", Run{3, 4})
	p.Done(now, first, Late)
	if got := p.Next(now); len(got) != 1 || got[0].Parent != "other" {
		t.Fatalf("asked %+v", got)
	}
	p.Done(now, Request{Parent: "other", Run: Run{3, 4}}, Busy)
	for ; ; now = p.NextWake(now) {
		got := p.Next(now)
		if len(got) == 0 {
			continue
		}
		if got[0].Parent == "seed" {
			if got[0].Alone {
				t.Error("the seed is asked alone")
			}
			return
		}
		p.Done(now, got[0], Busy)
	}
}

func TestNobodyIsAloneWithAPieceThatCame(t *testing.T) {
	p := newHolding()
	p.AddParent("seed")
	p.ParentHas("seed", Run{3, 4})
	now := time.Unix(0, 0)
	for _, o := range []Outcome{Transient, OK} {
		p.Done(now, p.Next(now)[0], o)
		now = now.Add(time.Minute)
	}
	p.Lost(3)
	if got := p.Next(now); len(got) != 1 || got[0].Alone {
		t.Errorf("asked %+v", got)
	}
}
