package scheduler

import (
	"time"

	"github.com/shoal-project/shoal/scheduler/policy"
)

// Who joins is linked at once, to who is there. So those who came first end up with three times as many neighbours as the last, and
// whoever has few or many of them ends late. When many have come the wanting members of a zone are therefore linked anew, all to equally many.

const (
	// relinkShare is the part of a zone's wanting members that has to be new: one in four.
	relinkShare = 4
	// relinkGap is the least time between two graphs; it doubles with each, relinkDoubles times at the most.
	relinkGap     = 200 * time.Millisecond
	relinkDoubles = 4
	// linkMoved is how long who comes from another machine keeps the neighbours it has from there: many others come, too.
	linkMoved = 500 * time.Millisecond
)

// linkLate gives those neighbours that came from another machine some time ago, and were not linked anew since.
func (m *Machine) linkLate(now time.Time, t *task) {
	for _, me := range t.order {
		if !me.linkAfter.IsZero() && !now.Before(me.linkAfter) {
			m.link(t, me)
		}
	}
}

// relink gives the wanting members of a zone new neighbours, if many of them are new. Links to members that want nothing stay.
func (m *Machine) relink(now time.Time, t *task, z *zone) {
	if z.newcomers*relinkShare < z.wanting || z.wanting <= m.cfg.Neighbours+1 || 2*z.wanting < z.members ||
		now.Before(z.linked.Add(relinkGap<<min(z.graphs, relinkDoubles))) {
		return
	}
	z.newcomers, z.linked = 0, now
	z.graphs++
	var members []*member
	var racks []string
	for _, me := range t.order {
		if me.zone == z && me.whole() {
			members, racks = append(members, me), append(racks, me.host.Locality.Rack)
		}
	}
	for _, me := range members {
		me.linkAfter = time.Time{}
		for id := range me.neighbours {
			if other := t.members[id]; other.whole() {
				delete(me.neighbours, id)
			}
		}
	}
	for _, pair := range policy.Graph(racks, m.cfg.Neighbours, m.rng) {
		a, b := members[pair[0]], members[pair[1]]
		a.neighbours[b.host.ID], b.neighbours[a.host.ID] = true, true
	}
	for _, me := range members {
		m.tellNeighbours(t, me)
	}
}
