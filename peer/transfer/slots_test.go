package transfer

import (
	"testing"
	"time"
)

func TestSlots(t *testing.T) {
	s, now := NewSlots[int](1, time.Second), time.Unix(0, 0)
	if !s.Take() || s.Take() {
		t.Error("want one slot")
	}
	if s.Release(); !s.Take() {
		t.Error("a slot that was given back is not free")
	}
	if !s.Begin(now, 7) || s.Begin(now.Add(999*time.Millisecond), 7) || !s.Begin(now, 8) || !s.Begin(now.Add(time.Second), 7) {
		t.Error("want a range refused within a second of its begin, and no other")
	}
	free := NewSlots[int](1, -1)
	for range 2 {
		if !free.Begin(now, 7) {
			t.Error("a range was refused without spacing")
		}
	}
}
