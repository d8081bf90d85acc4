package dispatch

import "time"

// served takes note of how long a request took.
func (p *Planner) served(took time.Duration) {
	if p.service == 0 {
		p.service = took
	} else {
		p.service += (took - p.service) / 8
	}
}

// patience is how long a request may take: four times what others took, or what a piece takes at 2 MB/s while none has come. That
// may be too little, of a host whose link has become slow: it doubles each time that requests were given up for it and none has come since.
func (p *Planner) patience() time.Duration {
	return p.firstPatience() << min(p.lateRow, maxDoubles)
}

func (p *Planner) firstPatience() time.Duration { return max(p.cfg.Hedge, 4*p.usual()) }

// Usual is what a piece takes that a parent sends, a moving mean; zero when none has come.
func (p *Planner) Usual() time.Duration { return p.service }

// usual is what a request takes, as far as is known; before any has come, what a piece takes at 8 MB/s.
func (p *Planner) usual() time.Duration {
	if p.service > 0 {
		return p.service
	}
	return time.Duration(p.layout.PieceSize) * time.Microsecond / 8
}

// maxDoubles bounds how often in a row patience is doubled.
const maxDoubles = 8

// gaveUp takes note that a request was given up, and returns how long the parent is to be left alone: long if others are quicker, as far as is
// known.
func (p *Planner) gaveUp(now time.Time) time.Duration {
	if now.Sub(p.lateFrom) >= p.patience() { // those that were begun together count once
		p.lateAll = p.lateRow > 0
		p.lateRow++
		p.lateFrom = now
	}
	if p.service == 0 || p.lateAll {
		return p.cfg.Penalty
	}
	return 4 * p.firstPatience()
}
