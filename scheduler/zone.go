package scheduler

import (
	"slices"
	"time"

	"github.com/bits-and-blooms/bitset"

	"github.com/shoal-project/shoal/scheduler/policy"
)

// A border between zones is as scarce as the origin, so it is leased too: each piece that a zone lacks is fetched by one of its members from a
// holder beyond the border, and nobody else of the zone knows a host out there. Within the zone the piece spreads as ever.
//
//	piece in a zone:  absent ──held elsewhere──▶ idle ──lease──▶ crossing ──▶ held (n holders in the zone)
//	                                               ▲ failed, late, receiver gone │          │ last holder gone
//	                                               └─────────────────────────────┴──────────┘

// zone is the part of a task that happens in one zone.
type zone struct {
	name    string
	members int
	wanting int // members that want pieces
	// newcomers have come to want pieces since the members were last linked anew, at linked, for the graphs-th time.
	newcomers, graphs int
	linked            time.Time
	holders           []uint16          // per piece, members that hold it
	idle              *bitset.BitSet    // pieces that only other zones hold, and that nobody fetches
	leased            *bitset.BitSet    // pieces that a member fetches across the border
	leases            []*crossing       // in the order they were given
	fresh             map[int]time.Time // pieces that have come to a member lately, and when last
	failures          int               // crossings that came to nothing since one did not
	took, least       time.Duration     // a crossing: a moving mean, and the shortest
	window            float64           // pieces that may be on their way; 0 before any was quick or late
	narrow            bool              // crossings have been late
}

// crossing is the right of one member to fetch one piece across its zone's border.
type crossing struct {
	to    *member
	piece int
	from  []*member
	given time.Time
	again bool // the zone holds the piece, but the member cannot get it there
}

const (
	// sourcesNamed is how many holders beyond the border a receiver is told, so that it has others to ask.
	sourcesNamed = 3
	// patienceDoubles is how often in a row crossings that come to nothing double the patience with them: the border may be thin.
	patienceDoubles = 4
	// closedAfter is how many crossings have to fail in a row before members that are stuck may read the origin instead.
	closedAfter = 3
)

// zoneOf returns the zone of a name, which begins to take part in the task if it did not.
func (t *task) zoneOf(name string) *zone {
	at, ok := slices.BinarySearchFunc(t.zones, name, func(z *zone, name string) int {
		switch {
		case z.name < name:
			return -1
		case z.name > name:
			return 1
		}
		return 0
	})
	if ok {
		return t.zones[at]
	}
	z := &zone{name: name, holders: make([]uint16, t.Pieces), idle: newSet(t.Pieces), leased: newSet(t.Pieces)}
	t.zones = slices.Insert(t.zones, at, z)
	for i, n := range t.holders {
		z.idle.SetTo(uint(i), n > 0)
	}
	return z
}

// enter makes a member one of a zone. It must hold and want nothing.
func (t *task) enter(me *member, zone string) {
	me.zone = t.zoneOf(zone)
	me.zone.members++
}

// refresh notes that the zone has got a piece just now.
func (z *zone) refresh(now time.Time, i int) {
	if z.fresh == nil {
		z.fresh = map[int]time.Time{}
	}
	z.fresh[i] = now
}

// leave takes a member that holds and wants nothing any more out of its zone.
func (t *task) leave(me *member) {
	if me.zone.members--; me.zone.members == 0 {
		t.zones = slices.DeleteFunc(t.zones, func(z *zone) bool { return z == me.zone })
	}
}

// hold counts a member as a holder of piece i.
func (t *task) hold(me *member, i int) {
	me.have.Set(uint(i))
	t.holders[i]++
	if me.zone.holders[i]++; me.zone.holders[i] == 1 {
		t.place(i)
	}
}

// unhold undoes hold.
func (t *task) unhold(me *member, i int) {
	me.have.Clear(uint(i))
	t.holders[i]--
	if me.zone.holders[i]--; me.zone.holders[i] == 0 {
		t.place(i)
	}
}

// place notes for every zone whether piece i is to be fetched across its border.
func (t *task) place(i int) {
	for _, z := range t.zones {
		z.idle.SetTo(uint(i), t.holders[i] > 0 && z.holders[i] == 0 && !z.leased.Test(uint(i)))
	}
}

// cross gives out crossings until every idle piece of every zone has one, or as many pieces are on their way as may be.
func (m *Machine) cross(now time.Time, t *task) {
	for _, z := range t.zones {
		for z.wanting > 0 {
			first, ok := z.idle.NextSet(0)
			room := int(m.window(t, z)) - z.bulk()
			if !ok || room <= 0 {
				break
			}
			to := m.chooseReceiver(now, t, z, int(first))
			if to == nil {
				break
			}
			m.giveCrossing(now, t, to, Run{int(first), min(int(first)+room, int(first)+m.crossingRun(t), t.Pieces)})
		}
	}
}

// bulk counts the crossings that are not for readers who wait for just that: those come on top.
func (z *zone) bulk() (n int) {
	for _, c := range z.leases {
		if c.to.whole() {
			n++
		}
	}
	return n
}

// crossingsAtMost is how many pieces may ever be on their way into a zone.
func (m *Machine) crossingsAtMost(t *task) int {
	return max(m.cfg.Crossings, int(m.cfg.CrossingBytes/max(t.PieceSize, 1)))
}

// window is how many pieces may be on their way into a zone now. Nobody knows what a border carries: it is found out as TCP does
// (RFC 5681). More than it brings in LeaseSilence would be taken for lost, and cross twice.
func (m *Machine) window(t *task, z *zone) float64 {
	if z.window > 0 {
		return z.window
	}
	return max(float64(m.cfg.CrossingBytes/max(t.PieceSize, 1)), 1)
}

// widen lets more pieces on their way after one was quick: twice as many each round as long as none has been late, then one more.
func (m *Machine) widen(t *task, z *zone) {
	w := m.window(t, z)
	if z.narrow {
		w += 1 / w
	} else {
		w++
	}
	z.window = min(w, float64(m.crossingsAtMost(t)))
}

// halve lets fewer pieces on their way after some were late.
func (m *Machine) halve(t *task, z *zone) {
	z.window, z.narrow = max(m.window(t, z)/2, 1), true
}

// crossingRun is how many pieces one message lets fetch.
func (m *Machine) crossingRun(t *task) int {
	return max(m.crossingsAtMost(t)/max(m.cfg.Crossings, 1), 1)
}

// chooseReceiver picks the member of a zone that fetches a piece.
func (m *Machine) chooseReceiver(now time.Time, t *task, z *zone, piece int) *member {
	var candidates []policy.Candidate
	for i, me := range t.order {
		if me.zone == z && me.whole() && !me.have.Test(uint(piece)) && !now.Before(me.crossAfter) {
			candidates = append(candidates, policy.Candidate{Key: i, Load: me.crossings})
		}
	}
	if i, ok := policy.Reader(candidates, m.rng); ok {
		return t.order[i]
	}
	return nil
}

// sources picks holders of a piece beyond the border of a zone.
func (m *Machine) sources(t *task, z *zone, piece int) (from []*member) {
	var candidates []policy.Candidate
	for i, other := range t.order {
		if other.zone != z && other.have.Test(uint(piece)) {
			candidates = append(candidates, policy.Candidate{Key: i, Load: other.serving})
		}
	}
	for _, i := range policy.Sources(candidates, sourcesNamed, m.rng) {
		from = append(from, t.order[i])
	}
	return from
}

// giveCrossing has a member fetch the first piece of a run, and as many of the following ones as are idle and held by the same hosts.
func (m *Machine) giveCrossing(now time.Time, t *task, to *member, run Run) {
	from := m.sources(t, to.zone, run.First)
	end := run.First + 1
	for end < run.End && to.zone.idle.Test(uint(end)) && allHold(from, end) {
		end++
	}
	run.End = end
	m.takeCrossing(now, t, to, from, run)
	m.tellCrossing(t, to, from, Lease{Run: run})
}

func (m *Machine) tellCrossing(t *task, to *member, from []*member, l Lease) {
	hosts := make([]Host, 0, len(from))
	for _, other := range from {
		hosts = append(hosts, other.host.Host)
	}
	l.Task, l.From = t.Task, hosts
	m.send(to.host.ID, l)
}

func allHold(members []*member, i int) bool {
	return !slices.ContainsFunc(members, func(me *member) bool { return !me.have.Test(uint(i)) })
}

// takeCrossing notes that a member fetches a run.
func (m *Machine) takeCrossing(now time.Time, t *task, to *member, from []*member, run Run) {
	for i := run.First; i < run.End; i++ {
		to.zone.leases = append(to.zone.leases, &crossing{to: to, piece: i, from: from, given: now})
		to.zone.leased.Set(uint(i))
		t.place(i)
		to.crossings++
	}
	for _, other := range from {
		other.serving += run.End - run.First
	}
}

// adoptCrossings takes over what another machine let a member fetch, as far as its zone lacks it and nobody else fetches it.
func (m *Machine) adoptCrossings(now time.Time, t *task, me *member, runs []Run) {
	for i := range pieces(t, runs) {
		if me.zone.holders[i] == 0 && !me.zone.leased.Test(uint(i)) {
			m.takeCrossing(now, t, me, nil, Run{i, i + 1})
		}
	}
}

// dropCrossings ends crossings into a zone.
func (t *task) dropCrossings(z *zone, drop func(*crossing) bool) {
	z.leases = slices.DeleteFunc(z.leases, func(c *crossing) bool {
		if !drop(c) {
			return false
		}
		z.leased.Clear(uint(c.piece))
		t.place(c.piece)
		c.to.crossings--
		for _, other := range c.from {
			other.serving--
		}
		return true
	})
}

// settleCrossings ends those whose piece is held in the zone, by whomever.
func (m *Machine) settleCrossings(now time.Time, t *task) {
	for _, z := range t.zones {
		t.dropCrossings(z, func(c *crossing) bool {
			came := c.to.have.Test(uint(c.piece))
			if came {
				z.failures = 0
				m.measured(now, t, c)
			}
			return came || z.holders[c.piece] > 0 && !c.again
		})
	}
}

// measured takes note of how long a crossing took. Whoever takes much longer than others is left alone for as long again as that, if
// there are many others.
func (m *Machine) measured(now time.Time, t *task, c *crossing) {
	z, took := c.to.zone, now.Sub(c.given)
	if policy.Slow(took, z.took) && z.wanting > m.cfg.Crossings {
		c.to.crossAfter = now.Add(took)
	}
	if z.took == 0 {
		z.took = took
	}
	z.took += (took - z.took) / 8
	if z.least == 0 || took < z.least {
		z.least = took
	}
	if took < m.cfg.LeaseSilence/4 || took < z.least+z.least/2 { // it is the way that is long, not the queue before it
		m.widen(t, z)
	}
}

// crossingPatience is how long a crossing may take: well longer than others took, and longer the more of them came to nothing. Before any has
// come it is what a piece takes at 1 MB/s.
func (m *Machine) crossingPatience(t *task, z *zone) time.Duration {
	least := m.cfg.LeaseSilence
	if z.took == 0 {
		least = max(least, time.Duration(t.PieceSize)*time.Microsecond)
	}
	return max(least, 4*z.took) << min(z.failures, patienceDoubles)
}

// crossingFailed takes back what a member could not fetch, from none of the holders it was told.
func (m *Machine) crossingFailed(now time.Time, t *task, me *member, run Run) {
	before := len(me.zone.leases)
	t.dropCrossings(me.zone, func(c *crossing) bool { return c.to == me && run.First <= c.piece && c.piece < run.End })
	if len(me.zone.leases) < before {
		me.zone.failures++
	}
	me.crossAfter = now.Add(m.cfg.RetryAfter)
	m.cross(now, t)
}

// moveCrossings takes back those that take too long, so that another member tries.
func (m *Machine) moveCrossings(now time.Time, t *task) {
	for _, z := range t.zones {
		patience, late := m.crossingPatience(t, z), false
		t.dropCrossings(z, func(c *crossing) bool {
			if now.Sub(c.given) < patience {
				return false
			}
			late = true
			c.to.crossAfter = now.Add(m.cfg.RetryAfter)
			m.send(c.to.host.ID, Revoked{Task: t.ID, Run: Run{c.piece, c.piece + 1}, Border: true})
			return true
		})
		if late {
			z.failures++
			m.halve(t, z)
		}
	}
}

// open reports whether pieces come across the border, as far as is known.
func (z *zone) open() bool { return z.failures < closedAfter }

// withheld has a member fetch pieces across the border that its zone has only at a host who does not give them, as the member says.
func (m *Machine) withheld(now time.Time, t *task, me *member, runs []Run) {
	for i := range pieces(t, runs) {
		z := me.zone
		if z.open() && z.holders[i] == 1 && !z.leased.Test(uint(i)) && !me.have.Test(uint(i)) {
			m.crossAgain(now, t, me, i)
		}
	}
}

// crossAgain has a member fetch a piece that its zone holds, where it cannot get it: from a liar, perhaps. It reports false when no
// other zone holds the piece.
func (m *Machine) crossAgain(now time.Time, t *task, me *member, i int) bool {
	from := m.sources(t, me.zone, i)
	if len(from) == 0 {
		return false
	}
	run := Run{i, i + 1}
	m.takeCrossing(now, t, me, from, run)
	me.zone.leases[len(me.zone.leases)-1].again = true
	m.tellCrossing(t, me, from, Lease{Run: run, Again: true})
	return true
}
