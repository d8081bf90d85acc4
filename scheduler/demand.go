package scheduler

import (
	"slices"
	"time"
)

// demand notes what readers wait for, and has it read before anything else.
func (m *Machine) demand(now time.Time, ev Demand) {
	t, me := m.find(ev.Host, ev.Task)
	if me == nil {
		return
	}
	if ev.All {
		t.wholly(me)
	}
	near := len(me.neighbours)
	for i := range pieces(t, ev.Runs) {
		switch {
		case me.zone.holders[i] > 0:
			t.near(me, i)
		case t.holders[i] > 0:
			m.fetchFor(now, t, me, i)
		case t.Sequential && i == t.Pieces-1:
			t.wholly(me) // it is given out only when all before it was read
		case t.urgent[i] == nil:
			t.urgent[i] = []*member{me}
			t.demanded = append(t.demanded, i)
			m.hurry(t, i)
		case !slices.Contains(t.urgent[i], me):
			t.urgent[i] = append(t.urgent[i], me)
			m.hurry(t, i)
		}
	}
	if len(me.neighbours) > near {
		m.tellNeighbours(t, me)
	}
	m.grant(now, t)
}

// fetchFor has a member that waits for piece i, which only other zones hold, fetch it across the border, or be a neighbour of who does.
func (m *Machine) fetchFor(now time.Time, t *task, me *member, i int) {
	for _, c := range me.zone.leases {
		if c.piece != i {
			continue
		}
		if c.to != me && !me.neighbours[c.to.host.ID] {
			me.neighbours[c.to.host.ID], c.to.neighbours[me.host.ID] = true, true
			m.tellNeighbours(t, me)
		}
		return
	}
	m.giveCrossing(now, t, me, Run{i, i + 1})
}

// near has a member get piece i from one of its zone who holds it: from a neighbour, or else a new one, of those the one with the fewest.
func (t *task) near(me *member, i int) {
	var best *member
	for _, other := range t.order {
		if other == me || other.zone != me.zone || !other.have.Test(uint(i)) {
			continue
		}
		if me.neighbours[other.host.ID] {
			return
		}
		if best == nil || len(other.neighbours) < len(best.neighbours) {
			best = other
		}
	}
	if best != nil {
		me.neighbours[best.host.ID], best.neighbours[me.host.ID] = true, true
	}
}

// gather has those who wait for a piece of a run be neighbours of the one who reads it, if they are of its zone. The others fetch it across
// the border once it is there.
func (m *Machine) gather(t *task, reader *member, run Run) {
	for i := run.First; i < run.End; i++ {
		for _, me := range t.urgent[i] {
			if me != reader && me.zone == reader.zone && t.members[me.host.ID] == me && !me.neighbours[reader.host.ID] {
				me.neighbours[reader.host.ID], reader.neighbours[me.host.ID] = true, true
				m.tellNeighbours(t, me)
			}
		}
	}
}

// wholly has a member want everything.
func (t *task) wholly(me *member) {
	t.wants(me, me.wants, false)
}

// hurry tells who reads a run that a piece of it is waited for.
func (m *Machine) hurry(t *task, i int) {
	for _, l := range t.leases {
		if i < l.run.First || i >= l.run.End {
			continue
		}
		m.gather(t, l.to, Run{i, i + 1})
		if !l.demanded && len(t.urgent[i]) == 1 {
			m.send(l.to.host.ID, Lease{Task: t.Task, Run: Run{i, i + 1}, Demanded: true})
		}
	}
}

// grantDemanded gives out leases of what readers wait for, in the order they asked. A piece is waited for until somebody holds it, so that a
// lease that ends without it is followed by another.
func (m *Machine) grantDemanded(now time.Time, t *task) {
	t.demanded = slices.DeleteFunc(t.demanded, func(i int) bool {
		if t.holders[i] == 0 {
			return false
		}
		for _, me := range t.urgent[i] {
			if t.members[me.host.ID] == me && me.zone.holders[i] == 0 && !me.have.Test(uint(i)) {
				m.fetchFor(now, t, me, i)
			}
		}
		delete(t.urgent, i)
		return true
	})
	most := max(int(m.cfg.LeaseBytes/max(t.PieceSize, 1)), 1)
	for at := 0; at < len(t.demanded); at++ {
		run := Run{t.demanded[at], t.demanded[at] + 1}
		if !t.idle(run.First) {
			continue
		}
		for at+1 < len(t.demanded) && t.demanded[at+1] == run.End && run.End-run.First < most && t.idle(run.End) {
			run.End++
			at++
		}
		to := m.chooseReader(now, t, true)
		if to == nil {
			return
		}
		m.giveLease(now, t, to, Lease{Run: run, Demanded: true})
		m.gather(t, to, run)
	}
}

// demandedOf reports whether a host reads piece i because readers wait for it.
func (t *task) demandedOf(h *host, i int) bool {
	return slices.ContainsFunc(t.leases, func(l *lease) bool {
		return l.demanded && l.to.host == h && l.run.First <= i && i < l.run.End
	})
}
