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

// A host whose link everybody waits for sends each range once as long as there are others that nobody was sent.
func TestWhatOneHasMakesWayForWhatNobodyHas(t *testing.T) {
	s, now := NewSlots[int](1, time.Second), time.Unix(0, 0)
	at := func(after time.Duration) time.Time { return now.Add(after) }
	for i := range 9 {
		if !s.Begin(at(time.Duration(i)*time.Second/2), i) {
			t.Fatalf("range %d is refused, which nobody was sent", i)
		}
	}
	if s.Begin(at(4*time.Second+999*time.Millisecond), 0) {
		t.Error("range 0 is sent again while there are others")
	}
	if !s.Begin(at(5*time.Second), 0) {
		t.Error("range 0 is refused a second after the last of the others")
	}
	if s.Begin(at(5999*time.Millisecond), 0) {
		t.Error("range 0 is sent again at once")
	}
	if !s.Begin(at(10*time.Second), 9) || s.Begin(at(10*time.Second), 8) || !s.Begin(at(15*time.Second), 8) {
		t.Error("want range 8 refused beside another one, as long as that is not long ago")
	}
	for i, after := range []time.Duration{30 * time.Second, 30900 * time.Millisecond} {
		if !s.Begin(at(after), i) {
			t.Errorf("range %d is refused, which nobody was sent for long", i)
		}
	}
	if s.Begin(at(31200*time.Millisecond), 0) {
		t.Error("range 0 is sent again while there are others that nobody was sent for long")
	}
}

func TestRangesThatWereSentLongAgoAreForgotten(t *testing.T) {
	s := NewSlots[int](1, time.Second)
	for i := range 100_000 {
		if !s.Begin(time.Unix(0, 0).Add(time.Duration(i)*20*time.Millisecond), i) { // 500 in ten seconds
			t.Fatalf("range %d is refused", i)
		}
	}
	if n := len(s.started); n > 2*minStarted {
		t.Errorf("%d ranges are remembered", n)
	}
}
