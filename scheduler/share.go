package scheduler

import (
	"maps"
	"slices"
	"time"
)

// The cluster's origin rate is shared out evenly among the hosts that read: those with a lease now or a moment ago. It is soft. A host
// is told its share with its first lease, and when the number of readers has changed, at the next tick; it keeps to the last word when
// no scheduler lives. Each scheduler speaks of its own tasks only.

// readsFor is how long a host counts as a reader after it had a lease: between two leases it is one.
const readsFor = time.Second

// originRate replaces the rate. Without one, those who were told a share are told that it is void.
func (m *Machine) originRate(now time.Time, rate int64) {
	m.cfg.OriginRate = max(rate, 0)
	m.share(now)
}

// share tells every reader its part, if it is another one than it knows.
func (m *Machine) share(now time.Time) {
	readers := m.readers(now)
	for _, id := range slices.Sorted(maps.Keys(m.hosts)) {
		h := m.hosts[id]
		if m.cfg.OriginRate == 0 || slices.Contains(readers, h) {
			m.tellShare(h, m.shareOf(len(readers)))
		}
	}
}

// readers returns the hosts with a lease now or a moment ago.
func (m *Machine) readers(now time.Time) []*host {
	for _, t := range m.tasks {
		for _, l := range t.leases {
			l.to.host.read = now
		}
	}
	var out []*host
	for _, h := range m.hosts {
		if !h.read.IsZero() && now.Sub(h.read) < readsFor {
			out = append(out, h)
		}
	}
	return out
}

func (m *Machine) shareOf(readers int) int64 {
	if m.cfg.OriginRate == 0 {
		return 0
	}
	return max(m.cfg.OriginRate/int64(max(readers, 1)), 1)
}

func (m *Machine) tellShare(h *host, share int64) {
	if h.share != share {
		h.share = share
		m.send(h.ID, Share{Rate: share})
	}
}

// firstShare tells a host that begins to read its part, before it hears of the lease; the others hear of theirs at the next tick.
func (m *Machine) firstShare(now time.Time, h *host) {
	if m.cfg.OriginRate == 0 {
		return
	}
	if h.read.IsZero() || now.Sub(h.read) >= readsFor {
		m.tellShare(h, m.shareOf(len(m.readers(now)))) // its lease is given already
	}
}
