package dispatch

import (
	"time"

	"github.com/shoal-project/shoal/peer/piece"
)

// noteAlone takes note of a request for piece i that says whether the piece can be had from the other who got it: not when that one failed, and
// for now when its holder says that another is getting it.
func (p *Planner) noteAlone(now time.Time, i piece.Index, o Outcome) {
	switch o {
	case OK:
		delete(p.aloneFrom, i)
	case Transient, Late, Corrupt:
		p.aloneFrom[i] = time.Time{}
	case Shared:
		if _, ok := p.aloneFrom[i]; !ok {
			p.aloneFrom[i] = now.Add(p.cfg.SharedFor)
		}
	}
}

// alone reports whether a holder of piece i must not leave it to others to give it to this host.
func (p *Planner) alone(now time.Time, i piece.Index) bool {
	from, ok := p.aloneFrom[i]
	return ok && (from.IsZero() || p.avail[i] == 1 && !now.Before(from))
}
