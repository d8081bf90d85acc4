package transfer

import (
	"maps"
	"time"
)

// Slots decides what a host sends to whom: how many ranges at a time, and that a range that was just begun for one peer is not begun for
// another. It is pure state: no lock and no clock, so that a simulation can use it too. K names a range.
type Slots[K comparable] struct {
	most    int
	taken   int
	spacing time.Duration
	started map[K]sending
	news    time.Time // when a range was begun last that nobody was sent of late
	crowd   int       // how many may be in started before old ones are looked for
}

// sending is one range that was sent to somebody.
type sending struct {
	began    time.Time
	at       time.Time   // when it had come or was seen on its way last
	underWay func() bool // reports whether it is on its way still
}

const (
	// makesWay is for how many spacings a range that was sent makes way for those that were not. Then nobody is taken to have it.
	makesWay = 4
	// tookTimes is for how many times as long as it took to come it does so at the least: as much again it takes to go on from there.
	tookTimes = 2
	// minStarted is how many ranges are remembered before old ones are looked for and forgotten.
	minStarted = 1024
)

// NewSlots returns room for n ranges at a time. spacing is as Config.Spacing; zero or less never refuses.
func NewSlots[K comparable](n int, spacing time.Duration) *Slots[K] {
	return &Slots[K]{most: n, spacing: spacing, started: map[K]sending{}, crowd: minStarted}
}

// Take takes a slot, which Release gives back. It reports false when all are taken.
func (s *Slots[K]) Take() bool {
	if s.taken == s.most {
		return false
	}
	s.taken++
	return true
}

// Release gives a slot back.
func (s *Slots[K]) Release() { s.taken-- }

// Taken returns how many slots are taken.
func (s *Slots[K]) Taken() int { return s.taken }

// Begin notes that range r is sent from now on. It reports false, and notes nothing, while it is on its way to another one, as underWay told
// of that, or came there less than the spacing ago, or less than four times the spacing, or twice what it took to come, while ranges are begun that nobody was sent in that
// time: a host that has news for all must not spend its link on what one of them has.
func (s *Slots[K]) Begin(now time.Time, r K, underWay func() bool) bool {
	if s.spacing <= 0 {
		return true
	}
	old := func(b sending) bool {
		return now.Sub(b.at) >= max(makesWay*s.spacing, tookTimes*b.at.Sub(b.began)) && !b.underWay()
	}
	b, ok := s.started[r]
	if ok && b.underWay() {
		b.at = now
		s.started[r] = b
	}
	switch {
	case !ok || old(b):
		s.news = now
	case now.Sub(b.at) < s.spacing || now.Sub(s.news) < s.spacing:
		return false
	}
	if len(s.started) >= s.crowd {
		maps.DeleteFunc(s.started, func(_ K, b sending) bool { return old(b) })
		s.crowd = max(2*len(s.started), minStarted)
	}
	s.started[r] = sending{now, now, underWay}
	return true
}

// Came notes that range r has just come to whom it was sent.
func (s *Slots[K]) Came(now time.Time, r K) {
	if b, ok := s.started[r]; ok {
		b.at = now
		s.started[r] = b
	}
}
