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
	started map[K]time.Time
	news    time.Time // when a range was begun last that nobody was sent of late
	crowd   int       // how many may be in started before old ones are looked for
}

const (
	// makesWay is for how many spacings a range that was sent makes way for those that were not. Then nobody is taken to have it.
	makesWay = 4
	// minStarted is how many ranges are remembered before old ones are looked for and forgotten.
	minStarted = 1024
)

// NewSlots returns room for n ranges at a time. spacing is as Config.Spacing; zero or less never refuses.
func NewSlots[K comparable](n int, spacing time.Duration) *Slots[K] {
	return &Slots[K]{most: n, spacing: spacing, started: map[K]time.Time{}, crowd: minStarted}
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

// Begin notes that range r is sent from now on. It reports false, and notes nothing, when that began less than the spacing ago, or less than
// four times the spacing while ranges are begun that nobody was sent in that time: a host that has news for all must not spend its link on what one of
// them has.
func (s *Slots[K]) Begin(now time.Time, r K) bool {
	if s.spacing <= 0 {
		return true
	}
	old := func(at time.Time) bool { return now.Sub(at) >= makesWay*s.spacing }
	at, ok := s.started[r]
	switch {
	case !ok || old(at):
		s.news = now
	case now.Sub(at) < s.spacing || now.Sub(s.news) < s.spacing:
		return false
	}
	if len(s.started) >= s.crowd {
		maps.DeleteFunc(s.started, func(_ K, at time.Time) bool { return old(at) })
		s.crowd = max(2*len(s.started), minStarted)
	}
	s.started[r] = now
	return true
}
