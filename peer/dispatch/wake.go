package dispatch

import (
	"slices"
	"time"

	"github.com/shoal-project/shoal/peer/piece"
)

// watch notes since when the planner has had nothing to do.
func (p *Planner) watch(now time.Time) {
	switch {
	case !p.Wanting() || len(p.inFlight)+len(p.reading)+len(p.rushing) > 0:
		p.idleFrom = time.Time{}
	case p.idleFrom.IsZero():
		switch p.idleFrom = now; {
		case p.starved && p.came:
			p.idleFrom = now.Add(-p.cfg.StuckAfter) // what it was allowed then has come, but nobody to go on with
		case p.starved:
			p.idleFrom = p.stuckAt
		}
	}
}

// stuckLeast is how many pieces Stuck reports, however large they are: it waits between two reports, and so do all others who miss the same.
const stuckLeast = 8

// Stuck returns runs of missing pieces when nothing has been in flight for Config.StuckAfter, waited-for pieces
// first, up to Config.SourceBytes of them but at least stuckLeast, and begins to wait anew.
func (p *Planner) Stuck(now time.Time) []Run {
	if p.idleFrom.IsZero() || now.Sub(p.idleFrom) < p.cfg.StuckAfter {
		return nil
	}
	p.idleFrom, p.starved, p.stuckAt, p.came = now, true, now, false
	most := max(int(p.cfg.SourceBytes/max(p.layout.PieceSize, 1)), stuckLeast)
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

// Withheld returns, once, the missing pieces that the only parent who holds them gave wrong, or takes much longer for than others do for
// theirs. They are still waited for: but who can should get them from elsewhere.
func (p *Planner) Withheld(now time.Time) []Run {
	withheld := p.withheld
	p.withheld = nil
	for i, a := range p.inFlight {
		if p.slow(i, a) && !now.Before(a.at.Add(2*p.patience())) {
			a.told = true
			p.inFlight[i] = a
			withheld = append(withheld, i)
		}
	}
	slices.Sort(withheld)
	var runs []Run
	for _, i := range withheld {
		if !p.have.Has(i) {
			runs = append(runs, Run{i, i + 1})
		}
	}
	return runs
}

// slow reports whether a request may be one that Withheld is yet to report.
func (p *Planner) slow(i piece.Index, a asked) bool {
	return !a.told && !a.far && p.avail[i] == 1 && p.service > 0 && !p.Crosses(i)
}

// NextWake returns when Next, Overdue, Withheld or Stuck may have something new without any further event; the zero time means never.
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
		if !a.late && p.elsewhere(i, a) {
			sooner(a.at.Add(p.patience()))
		}
		if p.slow(i, a) {
			sooner(a.at.Add(2 * p.patience()))
		}
	}
	p.crossingWake(sooner)
	if p.self {
		sooner(p.selfFrom)
	}
	if !p.idleFrom.IsZero() {
		sooner(p.idleFrom.Add(p.cfg.StuckAfter))
	}
	return at
}
