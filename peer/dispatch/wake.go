package dispatch

import (
	"time"

	"github.com/shoal-project/shoal/peer/piece"
)

// watch notes since when the planner has had nothing to do.
func (p *Planner) watch(now time.Time) {
	switch {
	case !p.Wanting() || len(p.inFlight)+len(p.reading)+len(p.rushing) > 0:
		p.idleFrom = time.Time{}
	case p.idleFrom.IsZero():
		p.idleFrom = now
		if p.starved {
			p.idleFrom = now.Add(-p.cfg.StuckAfter) // nobody has come meanwhile
		}
	}
}

// Stuck returns runs of missing pieces when nothing has been in flight for Config.StuckAfter, waited-for pieces
// first, up to Config.SourceBytes of them, and begins to wait anew.
func (p *Planner) Stuck(now time.Time) []Run {
	if p.idleFrom.IsZero() || now.Sub(p.idleFrom) < p.cfg.StuckAfter {
		return nil
	}
	p.idleFrom, p.starved = now, true
	most := max(int(p.cfg.SourceBytes/max(p.layout.PieceSize, 1)), 1)
	var runs []Run
	seen := map[piece.Index]bool{}
	for _, part := range p.wanted() {
		for i := part.First; i < part.End && len(seen) < most; i++ {
			if p.have.Has(i) || p.local.Has(i) || seen[i] {
				continue
			}
			seen[i] = true
			if n := len(runs); n > 0 && runs[n-1].End == i {
				runs[n-1].End++
			} else {
				runs = append(runs, Run{i, i + 1})
			}
		}
	}
	return runs
}

// NextWake returns when Next, Overdue or Stuck may have something new without any further event; the zero time means never.
func (p *Planner) NextWake(now time.Time) time.Time {
	var at time.Time
	sooner := func(t time.Time) {
		if t.After(now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if p.Missing() == 0 {
		return at
	}
	for _, par := range p.order {
		sooner(par.notUntil)
		sooner(par.forget(now, p.have))
	}
	for i, a := range p.inFlight {
		if !a.late && p.avail[i] > 1 {
			sooner(a.at.Add(p.patience()))
		}
	}
	if p.self {
		sooner(p.selfFrom)
	}
	if !p.idleFrom.IsZero() {
		sooner(p.idleFrom.Add(p.cfg.StuckAfter))
	}
	return at
}
