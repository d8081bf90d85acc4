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
}

// maxStarted is how many ranges are remembered before old ones are forgotten.
const maxStarted = 1024

// NewSlots returns room for n ranges at a time. spacing is as Config.Spacing; zero or less never refuses.
func NewSlots[K comparable](n int, spacing time.Duration) *Slots[K] {
	return &Slots[K]{most: n, spacing: spacing, started: map[K]time.Time{}}
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

// Begin notes that range r is sent from now on. It reports false, and notes nothing, when that began less than the spacing ago.
func (s *Slots[K]) Begin(now time.Time, r K) bool {
	if s.spacing <= 0 {
		return true
	}
	if at, ok := s.started[r]; ok && now.Sub(at) < s.spacing {
		return false
	}
	if len(s.started) >= maxStarted {
		maps.DeleteFunc(s.started, func(_ K, at time.Time) bool { return now.Sub(at) >= s.spacing })
	}
	s.started[r] = now
	return true
}
