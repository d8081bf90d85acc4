package dispatch

import (
	"slices"
	"time"
)

// Done reports how a request ended. The pieces of a read of the origin are reported with Got one by one as they come.
func (p *Planner) Done(now time.Time, r Request, o Outcome) {
	if r.Parent == "" {
		p.readDone(now, r, o)
		return
	}
	i, rush := r.Run.First, p.inFlight[r.Run.First].rush
	p.noteAlone(now, r, o)
	if o == OK {
		if !r.Border { // which says nothing of the parents' ways
			p.served(now.Sub(p.inFlight[i].at))
			p.lateRow = 0
		}
		p.have.Add(i)
	}
	delete(p.inFlight, i)
	p.reopen(i)
	if r.Border {
		p.crossed(now, r, o)
		return
	}
	par := p.parents[r.Parent]
	if par == nil {
		return
	}
	if rush {
		par.rush = max(par.rush-1, 0) // the parent may have gone and come back meanwhile
	} else {
		par.inFlight = max(par.inFlight-1, 0)
	}
	switch o {
	case OK:
		par.failures, p.starved = 0, false
	case Busy:
		half := max(p.cfg.BusyPause, p.service/2) / 2 // a slot is free when an upload ends, and they take what ours take
		par.notUntil = now.Add(half + time.Duration(p.rng.Int64N(int64(half)+1)))
	case Shared:
		par.shared[i] = now.Add(p.cfg.SharedPause)
		if !par.sharedEnd.After(now) || par.shared[i].Before(par.sharedEnd) {
			par.sharedEnd = par.shared[i]
		}
	case Absent:
		p.ParentLost(r.Parent, i)
	case Transient:
		par.notUntil = now.Add(p.cfg.Penalty << min(par.failures, 3))
		par.failures++
	case Late:
		par.notUntil = now.Add(p.gaveUp(now))
	case Corrupt:
		if p.avail[i] == 1 {
			p.withheld = append(p.withheld, i)
		}
		p.RemoveParent(r.Parent)
		p.banned[r.Parent] = true
	}
}

// readDone reports how a read of the origin ended.
func (p *Planner) readDone(now time.Time, r Request, o Outcome) {
	reads := &p.reading
	if r.Demanded {
		reads = &p.rushing
	}
	if i := slices.Index(*reads, r.Run); i >= 0 {
		*reads = slices.Delete(*reads, i, i+1)
	}
	if o == OK {
		p.Retry()
	} else {
		p.selfFrom = now.Add(p.cfg.Penalty << min(p.selfFail, 3))
		p.selfFail++
	}
}
