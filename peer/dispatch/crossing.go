package dispatch

import (
	"maps"
	"slices"
	"time"

	"github.com/shoal-project/shoal/peer/piece"
)

// far is a host beyond the border of this one's zone. It is asked only for pieces that a lease lets this host fetch from there, for the whole zone.
type far struct {
	id       ParentID
	asked    bool // a request is in flight, the only one
	notUntil time.Time
}

// crossing is the right to fetch one piece across the border.
type crossing struct {
	from  []*far // who is left to be asked
	again bool   // also when a parent holds the piece
}

// Cross permits fetching the pieces of a run across the border from any of the given hosts, who hold them. A piece that a parent turns out
// to hold comes from there, unless again is set: then those who hold it do not seem to give it.
func (p *Planner) Cross(run Run, from []ParentID, again bool) {
	for i := max(run.First, 0); i < run.End && int(i) < p.layout.Count(); i++ {
		if p.have.Has(i) {
			continue
		}
		var hosts []*far
		for _, id := range from {
			if p.banned[id] || id == "" {
				continue
			}
			if p.fars[id] == nil {
				p.fars[id] = &far{id: id}
			}
			hosts = append(hosts, p.fars[id])
		}
		p.crossings[i] = crossing{from: hosts, again: again}
		p.refused(i)
	}
}

// refused gives up the crossing of a piece that nobody is left to be asked for.
func (p *Planner) refused(i piece.Index) {
	if c, ok := p.crossings[i]; ok && len(c.from) == 0 {
		delete(p.crossings, i)
		p.uncrossed = append(p.uncrossed, Run{i, i + 1})
	}
}

// RevokeCrossing takes back Cross, as far as nothing has begun.
func (p *Planner) RevokeCrossing(run Run) {
	for i := run.First; i < run.End; i++ {
		delete(p.crossings, i)
	}
}

// Crosses reports whether piece i is to be fetched across the border, so that the scheduler waits to hear of it.
func (p *Planner) Crosses(i piece.Index) bool {
	_, ok := p.crossings[i]
	return ok
}

// Crossings returns the pieces that Cross let be fetched and that have not come, in order.
func (p *Planner) Crossings() []Run {
	out := make([]Run, 0, len(p.crossings))
	for _, i := range slices.Sorted(maps.Keys(p.crossings)) {
		out = append(out, Run{i, i + 1})
	}
	return out
}

// Uncrossed returns, once, the pieces that none of the hosts they were to be fetched from could give.
func (p *Planner) Uncrossed() []Run {
	out := p.uncrossed
	p.uncrossed = nil
	return out
}

// nextCrossing picks the next piece to fetch across the border, and a host at random that may be asked.
func (p *Planner) nextCrossing(now time.Time) (*far, piece.Index, bool) {
	if len(p.crossings) == 0 {
		return nil, 0, false
	}
	for _, i := range slices.Sorted(maps.Keys(p.crossings)) {
		if f := p.farFor(now, i); f != nil {
			return f, i, true
		}
	}
	return nil, 0, false
}

// farFor picks a host at random that may be asked for a piece across the border; nil if there is none, or none is needed.
func (p *Planner) farFor(now time.Time, i piece.Index) (chosen *far) {
	c, ok := p.crossings[i]
	if !ok || !p.open.Has(i) || p.avail[i] > 0 && !c.again {
		return nil
	}
	ties := 0
	for _, f := range c.from {
		if f.asked || now.Before(f.notUntil) {
			continue
		}
		if ties++; p.rng.IntN(ties) == 0 {
			chosen = f
		}
	}
	return chosen
}

// askFar notes a request across the border.
func (p *Planner) askFar(now time.Time, f *far, i piece.Index, demanded bool) Request {
	f.asked = true
	p.inFlight[i] = asked{of: f.id, at: now, far: true, rush: demanded}
	p.reopen(i)
	return Request{Parent: f.id, Run: Run{i, i + 1}, Border: true, Demanded: demanded, Alone: true}
}

// crossed reports how a request across the border ended.
func (p *Planner) crossed(now time.Time, r Request, o Outcome) {
	i := r.Run.First
	f := p.fars[r.Parent]
	if f == nil {
		return
	}
	f.asked = false
	switch o {
	case OK:
		p.starved = false
		return
	case Busy, Shared:
		half := p.cfg.BusyPause / 2
		f.notUntil = now.Add(half + time.Duration(p.rng.Int64N(int64(half)+1)))
		return
	case Corrupt:
		p.RemoveParent(r.Parent)
		p.banned[r.Parent] = true
	default:
		f.notUntil = now.Add(p.cfg.Penalty)
	}
	if c, ok := p.crossings[i]; ok {
		c.from = slices.DeleteFunc(c.from, func(x *far) bool { return x == f })
		p.crossings[i] = c
		p.refused(i)
	}
}

// crossingWake calls sooner with the times at which a host beyond the border may be asked again.
func (p *Planner) crossingWake(sooner func(time.Time)) {
	for _, c := range p.crossings {
		for _, f := range c.from {
			sooner(f.notUntil)
		}
	}
}
