package dispatch

import (
	"time"

	"github.com/shoal-project/shoal/peer/piece"
)

// alone is what makes a request for a piece one with Request.Alone.
type alone struct {
	from   time.Time // once nobody else is known to hold the piece
	failed ParentID  // who failed to give it last: to all others, while there is no third holder; empty if nobody did
}

// noteAlone takes note of whether a piece can be had from the other who got it: not when that one failed, and for now when its holder says that
// another got it. Where requests take long, so does the way to the other.
func (p *Planner) noteAlone(now time.Time, r Request, o Outcome) {
	i := r.Run.First
	a, noted := p.alones[i]
	switch o {
	case OK:
		delete(p.alones, i)
	case Transient, Late, Corrupt:
		p.alones[i] = alone{from: now, failed: r.Parent}
	case Shared:
		if !noted {
			a.from = now.Add(max(p.cfg.SharedFor, 4*p.usual()))
			p.alones[i] = a
		}
	}
}

// alone reports whether a parent must not refuse piece i because others can give it to this host.
func (p *Planner) alone(now time.Time, parent ParentID, i piece.Index) bool {
	a, noted := p.alones[i]
	return noted && (a.failed != "" && a.failed != parent && p.avail[i] <= 2 || p.avail[i] == 1 && !now.Before(a.from))
}
