package transfer

import (
	"testing"
	"time"
)

func gone() bool { return false }

// However long a range is on its way, it is sent once, and then the receiver has its time to tell others.
func TestWhatIsOnItsWayIsNotSentToAnother(t *testing.T) {
	s, now := NewSlots[int](8, time.Second), time.Unix(0, 0)
	at := func(after time.Duration) time.Time { return now.Add(after) }
	underWay := true
	if !s.Begin(now, 7, func() bool { return underWay }) || s.Begin(at(time.Minute), 7, gone) || !s.Begin(at(time.Minute), 8, gone) {
		t.Error("want a range refused a minute after its begin, and no other")
	}
	underWay = false
	s.Came(at(2*time.Minute), 7)
	if s.Begin(at(2*time.Minute+999*time.Millisecond), 7, gone) || !s.Begin(at(2*time.Minute+time.Second), 7, gone) {
		t.Error("want it refused until a second after it has come")
	}
}

func TestSlots(t *testing.T) {
	s, now := NewSlots[int](1, time.Second), time.Unix(0, 0)
	if !s.Take() || s.Take() {
		t.Error("want one slot")
	}
	if s.Release(); !s.Take() {
		t.Error("a slot that was given back is not free")
	}
	if !s.Begin(now, 7, gone) || s.Begin(now.Add(999*time.Millisecond), 7, gone) || !s.Begin(now, 8, gone) || !s.Begin(now.Add(time.Second), 7, gone) {
		t.Error("want a range refused within a second of its begin, and no other")
	}
	free := NewSlots[int](1, -1)
	for range 2 {
		if !free.Begin(now, 7, gone) {
			t.Error("a range was refused without spacing")
		}
	}
}

// A host whose link everybody waits for sends each range once as long as there are others that nobody was sent.
func TestWhatOneHasMakesWayForWhatNobodyHas(t *testing.T) {
	s, now := NewSlots[int](1, time.Second), time.Unix(0, 0)
	at := func(after time.Duration) time.Time { return now.Add(after) }
	for i := range 9 {
		if !s.Begin(at(time.Duration(i)*time.Second/2), i, gone) {
			t.Fatalf("range %d is refused, which nobody was sent", i)
		}
	}
	for _, c := range []struct {
		after time.Duration // ms
		r     int
		want  bool
	}{
		{4900, 7, false}, // sent 1.4 s ago, and another one 0.9 s ago
		{5000, 7, true},  // nothing else for a second
		{5999, 7, false}, // at once
		{6900, 20, true},
		{7800, 7, false}, // 2.8 s ago
		{7800, 21, true},
		{8700, 22, true},
		{9000, 7, true}, // four seconds ago
		{30_000, 0, true},
		{30_900, 1, true},
		{31_200, 0, false}, // range 1 was sent long ago, and so counts as another one
	} {
		if got := s.Begin(at(c.after*time.Millisecond), c.r, gone); got != c.want {
			t.Errorf("range %d after %d ms: sent: %v, want %v", c.r, c.after, got, c.want)
		}
	}
}

func TestRangesThatWereSentLongAgoAreForgotten(t *testing.T) {
	s := NewSlots[int](1, time.Second)
	for i := range 100_000 {
		if !s.Begin(time.Unix(0, 0).Add(time.Duration(i)*20*time.Millisecond), i, gone) { // 200 in four seconds
			t.Fatalf("range %d is refused", i)
		}
	}
	if n := len(s.started); n > 2*minStarted {
		t.Errorf("%d ranges are remembered", n)
	}
}
