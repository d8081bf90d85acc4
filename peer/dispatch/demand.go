package dispatch

import (
	"slices"
	"time"

	"github.com/shoal-project/shoal/peer/piece"
)

// Demand replaces what readers of short ranges wait for. It comes before all else.
func (p *Planner) Demand(spans []Run) {
	for _, r := range spans {
		p.follow(r)
	}
	p.demands = spans
}

// Read takes note that a reader has read piece i, for which it may not have had to wait.
func (p *Planner) Read(i piece.Index) { p.asked.Add(i) }

// follow takes note of a range that is demanded. One that begins where an earlier one ended is read by who reads on and on: for such a reader the rest
// of the blob is what it wants next, and must not be held back because of it.
func (p *Planner) follow(run Run) {
	first, end := max(run.First, 0), min(run.End, piece.Index(p.layout.Count()))
	for first < end && p.asked.Has(first) {
		first++
	}
	steady := first > 0 && p.asked.Has(first-1)
	for i := first; i < end; i++ {
		if p.asked.Add(i) && steady {
			p.steady.Add(i)
		}
	}
}

// Partial tells whether nothing but what is demanded, and leased, is fetched.
func (p *Planner) Partial(on bool) { p.partial = on }

// Calm tells whether this host waits for something that what nobody waits for must not stand in the way of: then two such requests are
// out at a time, and one to a parent.
func (p *Planner) Calm(on bool) { p.calm = on }

// LeaseFirst permits reading a run from the origin that readers somewhere wait for.
func (p *Planner) LeaseFirst(run Run) {
	p.follow(run)
	p.first = append(p.first, run)
}

// Wanting reports whether anything that is to be fetched is missing, what is being put together on this host left aside.
func (p *Planner) Wanting() bool {
	if !p.partial {
		return p.Missing() > p.local.Count()
	}
	return p.Demanding(nil)
}

// Demanding reports whether anything that is demanded is missing and not being put together on this host, and hands it to each, if that
// is not nil.
func (p *Planner) Demanding(each func(piece.Index)) (found bool) {
	for _, r := range p.demands {
		for i := r.First; i < r.End && int(i) < p.layout.Count(); i++ {
			if p.have.Has(i) || p.local.Has(i) {
				continue
			}
			if each == nil {
				return true
			}
			found = true
			each(i)
		}
	}
	return found
}

// Held reports whether a known parent holds piece i.
func (p *Planner) Held(i piece.Index) bool { return p.avail[i] > 0 }

// Rushing reports whether readers wait for something that comes the sooner the less else moves: not so for what this host itself reads from the
// origin along with the rest, nor for ranges of a blob that are read one after the other while all of it is fetched.
func (p *Planner) Rushing() bool {
	along := func(i piece.Index) bool { return !p.partial && p.steady.Has(i) }
	for _, r := range p.rushing {
		for i := r.First; i < r.End; i++ {
			if !p.have.Has(i) && !along(i) {
				return true
			}
		}
	}
	rushing := false
	p.Demanding(func(i piece.Index) { rushing = rushing || !along(i) && !holdsRun(p.reading, i) })
	return rushing
}

// nextDemanded returns what is to be asked for because readers wait for it, whatever else is out.
func (p *Planner) nextDemanded(now time.Time) (out []Request) {
	for len(p.rushing) < p.cfg.Demanded {
		run, ok := p.takeLease(&p.first, p.comes)
		if !ok {
			break
		}
		p.rushing = append(p.rushing, run)
		out = append(out, Request{Run: run, Demanded: true})
	}
	rushes := p.rushes()
	p.Demanding(func(i piece.Index) {
		if rushes >= p.cfg.Demanded || !p.open.Has(i) {
			return
		}
		par := p.quickest(now, i)
		if par == nil {
			if f := p.farFor(now, i); f != nil {
				rushes++
				out = append(out, p.askFar(now, f, i, true))
			}
			return
		}
		rushes++
		par.rush++
		p.inFlight[i] = asked{of: par.id, at: now, rush: true}
		p.reopen(i)
		out = append(out, Request{Parent: par.id, Run: Run{i, i + 1}, Demanded: true, Alone: p.alone(now, par.id, i)})
	})
	return out
}

// comes reports whether piece i is being read at the origin and comes with what is in front of it soon. The read of a whole blob for its digests leaves
// out what is held by then.
func (p *Planner) comes(i piece.Index) bool {
	part, whole := p.reading, Run{0, piece.Index(p.layout.Count())}
	if !p.known.Full() {
		part = slices.DeleteFunc(slices.Clone(part), func(r Run) bool { return r == whole })
	}
	return holdsRun(part, i) || holdsRun(p.rushing, i)
}

// rushes returns how many requests of what is demanded are out.
func (p *Planner) rushes() (n int) {
	for _, a := range p.inFlight {
		if a.rush {
			n++
		}
	}
	return n
}

// quickest picks the parent of piece i with the fewest requests out, at random among equals; nil if none may be asked now.
func (p *Planner) quickest(now time.Time, i piece.Index) (best *parent) {
	load := func(par *parent) int { return 4*par.rush + par.inFlight }
	p.idle = append(p.idle[:0], p.order...)
	p.rng.Shuffle(len(p.idle), func(a, b int) { p.idle[a], p.idle[b] = p.idle[b], p.idle[a] })
	for _, par := range p.idle {
		if par.have.Has(i) && !now.Before(par.notUntil) && !now.Before(par.shared[i]) && (best == nil || load(par) < load(best)) {
			best = par
		}
	}
	return best
}

// holdsRun reports whether any of the runs has piece i.
func holdsRun(runs []Run, i piece.Index) bool {
	return slices.ContainsFunc(runs, func(r Run) bool { return r.First <= i && i < r.End })
}
