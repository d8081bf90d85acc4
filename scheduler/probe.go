package scheduler

import (
	"maps"
	"slices"
	"time"
)

// Hosts that say no zone, in a cluster where round trips are measured, get one from policy.Topology: each measures the way to the landmarks
// when it joins, and to those that have become some since, until it has its place. Its tasks move with it.

// probe has a host measure the way to the landmarks it has not measured yet, and reports false when there are none.
func (m *Machine) probe(h *host) bool {
	var ask []Host
	for _, id := range m.topology.Landmarks() {
		if _, asked := h.trips[id]; !asked && m.hosts[HostID(id)] != nil {
			ask = append(ask, m.hosts[HostID(id)].Host)
			h.trips[id] = unreached
		}
	}
	if len(ask) == 0 {
		return false
	}
	m.send(h.ID, Probe{Hosts: ask})
	return true
}

// unreached is the round trip to a host that could not be reached, or not yet.
const unreached = time.Duration(1<<63 - 1)

// placed begins to find the place of a host that has joined.
func (m *Machine) placed(h *host) {
	if m.topology == nil || h.Locality.Zone != "" {
		return
	}
	h.trips = map[string]time.Duration{}
	if !m.probe(h) {
		m.topology.Place(string(h.ID), nil)
	}
}

// probed takes what a host has measured, and places it when it is near a landmark or has measured the way to all of them.
func (m *Machine) probed(now time.Time, ev Probed) {
	h := m.hosts[ev.Host]
	if h == nil || h.trips == nil || m.topology == nil {
		return
	}
	near := false
	for _, trip := range ev.Trips {
		if _, asked := h.trips[string(trip.To)]; asked && trip.RTT > 0 {
			h.trips[string(trip.To)] = trip.RTT
			near = near || trip.RTT <= m.cfg.Near
		}
	}
	if !near && m.probe(h) {
		return
	}
	moved := m.topology.Place(string(h.ID), h.trips)
	h.trips = nil
	for _, id := range moved {
		if other := m.hosts[HostID(id)]; other != nil {
			m.rezone(now, other)
		}
	}
}

// zone returns the name of a host's zone.
func (m *Machine) zone(h *host) string {
	if h.Locality.Zone != "" || m.topology == nil {
		return h.Locality.Zone
	}
	return m.topology.Zone(string(h.ID))
}

// rezone moves a host's part in every task to the zone it is in now.
func (m *Machine) rezone(now time.Time, h *host) {
	for _, id := range slices.Sorted(maps.Keys(h.tasks)) {
		me := h.tasks[id]
		t := me.task
		if me.zone.name == m.zone(h) {
			continue
		}
		t.dropCrossings(me.zone, func(c *crossing) bool {
			if c.to == me {
				m.send(h.ID, Revoked{Task: t.ID, Run: Run{c.piece, c.piece + 1}, Border: true})
			}
			return c.to == me
		})
		m.move(t, me)
		m.grant(now, t)
	}
}

// move takes a member to its new zone, with what it holds and wants, and gives it and those it leaves behind new neighbours.
func (m *Machine) move(t *task, me *member) {
	wants, held := me.wants, me.have.Clone()
	t.want(me, false)
	for i, ok := held.NextSet(0); ok; i, ok = held.NextSet(i + 1) {
		t.unhold(me, int(i))
	}
	t.leave(me)
	t.enter(me, m.zone(me.host))
	for i, ok := held.NextSet(0); ok; i, ok = held.NextSet(i + 1) {
		t.hold(me, int(i))
	}
	t.want(me, wants)
	m.unlink(t, me)
	m.link(t, me)
}

// unlink takes a member out of the neighbours of the others, who get others instead.
func (m *Machine) unlink(t *task, me *member) {
	clear(me.neighbours)
	for _, other := range t.order {
		if other.neighbours[me.host.ID] {
			delete(other.neighbours, me.host.ID)
			if other.wants {
				m.link(t, other)
			}
		}
	}
}
