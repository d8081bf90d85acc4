package scheduler

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/shoal-project/shoal/scheduler/policy"
)

func (m *Machine) progress(now time.Time, ev Progress) {
	t, me := m.find(ev.Host, ev.Task)
	if me == nil {
		return
	}
	if ev.Reading || len(ev.Gained) > 0 {
		for _, l := range t.leases {
			if l.to == me {
				l.heard = now
			}
		}
	}
	if ev.FirstByte > 0 {
		me.firstByte = ev.FirstByte
	}
	m.lose(t, me, ev.Lost)
	for i := range pieces(t, ev.Gained) {
		me.zone.refresh(now, i)
	}
	m.gain(t, me, ev.Gained)
	if len(ev.Gained) > 0 {
		me.stuckFrom = time.Time{}
	}
	if ev.Reading || len(ev.Gained) > 0 {
		t.moving = now
	}
	if ev.Done {
		t.want(me, false)
	}
	if fresh := m.learn(t, me.host, ev.Digests, wholeLease(t, me)); len(fresh) > 0 {
		for _, other := range t.order {
			if other.wants && other != me {
				m.send(other.host.ID, Digests{Task: t.ID, Digests: fresh})
			}
		}
	}
	m.settle(now, t)
	m.grant(now, t)
}

// wholeLease returns the member's lease of the whole blob, if it has one: only who reads all of it can vouch for its parts.
func wholeLease(t *task, me *member) *lease {
	for _, l := range t.leases {
		if l.to == me && !l.demanded && l.run == (Run{0, t.Pieces}) {
			return l
		}
	}
	return nil
}

// adopt takes over the leases that another machine gave a member, as far as nobody else reads or holds these pieces.
func (m *Machine) adopt(now time.Time, t *task, me *member, reading []Run) {
	for _, r := range reading {
		run := Run{max(r.First, 0), min(r.End, t.Pieces)}
		free := run.First < run.End
		for i := run.First; i < run.End && free; i++ {
			free = !t.leased.Test(uint(i))
		}
		if free {
			m.takeLease(now, t, me, run)
			me.leases++
		}
	}
}

// learn takes piece digests from those who may vouch for them, a seed or the holder of the lease, and returns the new ones. The
// holder's word replaces that of one who did not come to the blob's end, and so never vouched for it as a whole.
func (m *Machine) learn(t *task, h *host, digests []PieceDigest, l *lease) []PieceDigest {
	if !t.Sequential {
		return nil
	}
	var fresh []PieceDigest
	for _, d := range digests {
		if !h.Seed && l == nil && !t.demandedOf(h, d.Piece) {
			continue
		}
		if d.Piece < 0 || d.Piece >= t.Pieces || bytes.Equal(t.digests[d.Piece], d.Digest) ||
			t.digests[d.Piece] != nil && l == nil {
			continue
		}
		t.digests[d.Piece] = d.Digest
		fresh = append(fresh, d)
	}
	return fresh
}

func (m *Machine) tellDigests(t *task, to HostID) {
	var known []PieceDigest
	for i, d := range t.digests {
		if d != nil {
			known = append(known, PieceDigest{Piece: i, Digest: d})
		}
	}
	if len(known) > 0 {
		m.send(to, Digests{Task: t.ID, Digests: known})
	}
}

// gain records pieces of a member.
func (m *Machine) gain(t *task, me *member, runs []Run) {
	for i := range pieces(t, runs) {
		if !me.have.Test(uint(i)) {
			t.hold(me, i)
		}
	}
}

func (m *Machine) lose(t *task, me *member, runs []Run) {
	for i := range pieces(t, runs) {
		if me.have.Test(uint(i)) {
			t.unhold(me, i)
			t.cursor = min(t.cursor, i)
			t.want(me, true)
		}
	}
}

// pieces yields each piece of the runs that the task has.
func pieces(t *task, runs []Run) func(func(int) bool) {
	return func(yield func(int) bool) {
		for _, r := range runs {
			for i := max(r.First, 0); i < min(r.End, t.Pieces); i++ {
				if !yield(i) {
					return
				}
			}
		}
	}
}

// settle ends the leases whose pieces are all held, by whomever.
func (m *Machine) settle(now time.Time, t *task) {
	m.dropLeases(t, func(l *lease) bool {
		for i := l.run.First; i < l.run.End; i++ {
			if t.holders[i] == 0 {
				return false
			}
		}
		m.stride(now, t, l)
		return true
	})
	m.settleCrossings(now, t)
}

// stride sets how long the next lease of a host is, by how long it took over the one that has ended. That has the time to the origin's first
// byte in it, in which others of the host's reads have the link: it is well used when bytes come for as long as that at the least.
func (m *Machine) stride(now time.Time, t *task, l *lease) {
	h, bytes := l.to.host, int64(l.run.End-l.run.First)*t.PieceSize
	if l.demanded || t.whole() {
		return
	}
	first := min(l.to.firstByte, m.cfg.LeaseSilence)
	switch took, length := now.Sub(l.given), cmp.Or(h.lease, m.cfg.LeaseBytes); {
	case took-2*first < max(m.cfg.LeaseTime/2, first) && bytes > length/2: // a shorter one says little
		h.lease = min(2*length, m.cfg.LeaseMost)
	case took > 2*max(m.cfg.LeaseTime, 4*first):
		h.lease = max(length/2, m.cfg.LeaseBytes)
	}
}

func (m *Machine) dropLeases(t *task, drop func(*lease) bool) {
	t.leases = slices.DeleteFunc(t.leases, func(l *lease) bool {
		if !drop(l) {
			return false
		}
		for i := l.run.First; i < l.run.End; i++ {
			t.leased.Clear(uint(i))
		}
		t.cursor = min(t.cursor, l.run.First)
		if !l.demanded {
			l.to.leases--
		}
		return true
	})
}

// grant gives out leases, of the origin and of the borders, until every idle piece has one or every possible reader has enough.
func (m *Machine) grant(now time.Time, t *task) {
	if now.Before(t.pause) {
		return
	}
	m.grantDemanded(now, t)
	m.cross(now, t)
	for t.wanting > 0 {
		run, ok := m.idleRun(t)
		if !ok {
			return
		}
		to := m.chooseReader(now, t, false)
		if to == nil {
			return
		}
		m.giveLease(now, t, to, Lease{Run: m.extend(t, to.host, run)})
	}
}

// bulk returns how many leases there are of the task as a whole.
func (t *task) bulk() (n int) {
	for _, l := range t.leases {
		if !l.demanded {
			n++
		}
	}
	return n
}

// giveLease gives a member the lease of the run in l.
func (m *Machine) giveLease(now time.Time, t *task, to *member, l Lease) {
	t.refused = ""
	m.takeLease(now, t, to, l.Run)
	t.leases[len(t.leases)-1].demanded = l.Demanded
	if !l.Demanded {
		to.leases++
	}
	l.Task = t.Task
	m.send(to.host.ID, l)
}

// takeLease notes that a member reads a run, and tells it its share of the origin's rate, before the lease itself.
func (m *Machine) takeLease(now time.Time, t *task, to *member, run Run) {
	t.leases = append(t.leases, &lease{to: to, run: run, given: now, heard: now})
	for i := run.First; i < run.End; i++ {
		t.leased.Set(uint(i))
	}
	m.firstShare(now, to.host)
}

// idleRun returns the first run of pieces that nobody holds and nobody reads, of Config.LeaseBytes at the most. A sequential
// task is read as a whole and only once at a time, until that was done; what is lost after that is read like any other.
func (m *Machine) idleRun(t *task) (Run, bool) {
	for t.cursor < t.Pieces && !t.idle(t.cursor) {
		t.cursor++
	}
	if t.cursor == t.Pieces {
		return Run{}, false
	}
	if t.whole() {
		return Run{0, t.Pieces}, t.bulk() == 0
	}
	return t.idleFrom(t.cursor, m.cfg.LeaseBytes), true
}

// extend returns the run as long as a lease of the host may be.
func (m *Machine) extend(t *task, h *host, run Run) Run {
	if h.lease <= m.cfg.LeaseBytes || t.whole() {
		return run
	}
	return t.idleFrom(run.First, h.lease)
}

// idle reports whether nobody holds a piece and nobody reads it.
func (t *task) idle(i int) bool { return t.holders[i] == 0 && !t.leased.Test(uint(i)) }

// idleFrom returns the run of idle pieces from first on, of that many bytes at the most, and of one piece at least.
func (t *task) idleFrom(first int, bytes int64) Run {
	end, most := first, max(int(bytes/max(t.PieceSize, 1)), 1)
	for end < t.Pieces && end-first < most && t.idle(end) {
		end++
	}
	return Run{first, end}
}

// chooseReader picks the host that reads next: a seed, whether or not it is a member yet, else a member. What is demanded waits for no
// other lease of it.
func (m *Machine) chooseReader(now time.Time, t *task, demanded bool) *member {
	var candidates []policy.Candidate
	busy := false // a seed that works at its limit is worth waiting for
	reads := m.reads(t)
	for i, h := range m.seeds {
		me := t.members[h.ID]
		switch {
		case !h.mayJoin(t):
		case me == nil && (demanded || m.room(h, 0, reads)):
			candidates = append(candidates, policy.Candidate{Key: i, Seed: true})
		case me != nil && !me.mayRead(now):
		case me == nil || !demanded && !m.room(h, me.leases, reads):
			busy = true
		default:
			candidates = append(candidates, policy.Candidate{Key: i, Seed: true, Load: me.leases})
		}
	}
	if i, ok := policy.Reader(candidates, m.rng); ok {
		if me := t.members[m.seeds[i].ID]; me != nil {
			return me
		}
		return m.draft(now, t, m.seeds[i], demanded)
	}
	if busy {
		return nil
	}
	for i, me := range t.order {
		if me.mayRead(now) && (demanded || m.room(me.host, me.leases, reads)) {
			candidates = append(candidates, policy.Candidate{Key: i, Load: me.leases})
		}
	}
	if i, ok := policy.Reader(candidates, m.rng); ok {
		return t.order[i]
	}
	return nil
}

// room reports whether a host that has some leases of a task may have another one: to read it now beside so many others, or, if it reads so
// quickly that the words between two leases count, to go on with.
func (m *Machine) room(h *host, leases, reads int) bool {
	if leases >= m.cfg.LeasesPerHost {
		return leases == m.cfg.LeasesPerHost && h.lease > m.cfg.LeaseBytes
	}
	return reads < m.cfg.Leases
}

// reads counts the leases that are read, and not only held to go on with.
func (m *Machine) reads(t *task) (n int) {
	for _, me := range t.order {
		n += min(me.leases, m.cfg.LeasesPerHost)
	}
	return n
}

func (me *member) mayRead(now time.Time) bool { return !me.denied && !now.Before(me.notBefore) }

// mayJoin reports whether a host may be, or is, a member of a task: it is not, of the same blob with another length.
func (h *host) mayJoin(t *task) bool {
	me := h.tasks[t.ID]
	return h.Group == t.group && (me == nil || me.task == t || !me.wants && me.leases == 0 && me.have.None())
}

// draft makes a seed a member of a task it has not heard of; the lease that follows tells it.
func (m *Machine) draft(now time.Time, t *task, h *host, partial bool) *member {
	if old := h.tasks[t.ID]; old != nil {
		defer m.removeMember(now, old)
	}
	me := m.add(t, h)
	me.partial = partial
	t.want(me, true)
	for _, other := range t.order {
		if other.wants && other != me {
			m.link(t, other)
		}
	}
	return me
}

func (m *Machine) leaseFailed(now time.Time, ev LeaseFailed) {
	t, me := m.find(ev.Host, ev.Task)
	if me == nil {
		return
	}
	if ev.Border {
		m.crossingFailed(now, t, me, ev.Run)
		return
	}
	m.dropLeases(t, func(l *lease) bool {
		return l.to == me && l.run.First < ev.Run.End && ev.Run.First < l.run.End
	})
	failure := ev.Failure
	if failure == FailureCorrupt {
		clear(t.digests) // of bytes that were wrong somewhere
		if me.corrupt++; !t.Sequential && me.corrupt < maxCorrupt {
			failure = FailureTransient
		}
	}
	if failure == FailureDenied || failure == FailureAbsent || failure == FailureCorrupt {
		me.denied = true
	} else {
		me.notBefore = now.Add(m.cfg.RetryAfter)
	}
	t.refused = ev.Text
	m.grant(now, t)
	if _, idle := m.idleRun(t); idle && len(t.leases) == 0 {
		m.tellFailed(t, failure)
	}
}

// maxCorrupt is how often the origin may give a host wrong bytes of a blob with a chunk map before that counts as its word: each time costs a
// piece. Without a chunk map the whole blob was read in vain.
const maxCorrupt = 3

func (m *Machine) tellFailed(t *task, f Failure) {
	for _, me := range t.order {
		if me.wants {
			m.send(me.host.ID, Failed{Task: t.ID, Failure: f, Text: t.refused})
		}
	}
}

// stuck lets a host that cannot reach the holders read the origin itself; pieces that are being read are left alone, and so
// are those that came so lately that the host need not have heard of it.
func (m *Machine) stuck(now time.Time, ev Stuck) {
	t, me := m.find(ev.Host, ev.Task)
	switch {
	case me == nil:
		return
	case ev.Withheld:
		m.withheld(now, t, me, ev.Runs)
		return
	}
	me.usual = ev.Usual
	me.complain(now, t, ev.Runs)
	if now.Sub(t.moving) < m.cfg.LeaseSilence && t.coming(now, me, ev.Runs) {
		m.send(me.host.ID, Coming{Task: t.ID})
	}
	if !me.mayRead(now) {
		return
	}
	if t.whole() {
		if t.bulk() == 0 {
			m.giveLease(now, t, me, Lease{Run: Run{0, t.Pieces}})
		}
		return
	}
	var run Run
	for i := range pieces(t, ev.Runs) {
		if !m.outOfReach(now, t, me, i) || me.zone.open() && m.crossAgain(now, t, me, i) {
			continue
		}
		if run.End != i && run.End > 0 {
			m.giveLease(now, t, me, Lease{Run: run, Demanded: me.partial})
			run = Run{}
		}
		if run.End == 0 {
			run.First = i
		}
		run.End = i + 1
	}
	if run.End > 0 {
		m.giveLease(now, t, me, Lease{Run: run, Demanded: me.partial})
	}
}

// outOfReach reports whether a piece is held in vain for a member that is stuck, and nobody fetches it.
func (m *Machine) outOfReach(now time.Time, t *task, me *member, i int) bool {
	return t.heldInVain(now, me, i) && !t.leased.Test(uint(i)) && !me.zone.leased.Test(uint(i))
}

// coming reports whether pieces that a member is stuck for will come to it: each spreads already, or somebody reads the origin, and that will be
// its turn.
func (t *task) coming(now time.Time, me *member, runs []Run) bool {
	for i := range pieces(t, runs) {
		if t.heldInVain(now, me, i) || t.holders[i] == 0 && !t.leased.Test(uint(i)) && t.bulk() == 0 {
			return false
		}
	}
	return true
}

// heldInVain reports whether a piece is held, but neither by a member that is stuck nor, as that says, by anybody it can reach: not missing,
// not about to come across the border, and not spreading.
func (t *task) heldInVain(now time.Time, me *member, i int) bool {
	z := me.zone
	at, fresh := z.fresh[i]
	within := t.spreads(me)
	spreads := fresh && now.Sub(at) < within && (me.stuckFrom.IsZero() || now.Sub(me.stuckFrom) < within)
	due := z.holders[i] == 0 && z.open()
	return t.holders[i] > 0 && !due && !me.have.Test(uint(i)) && !spreads
}

// complain notes since when a member has been stuck although a neighbour holds what it wants: it spreads, but not to here.
func (me *member) complain(now time.Time, t *task, runs []Run) {
	if !me.stuckFrom.IsZero() {
		return
	}
	for id := range me.neighbours {
		for i := range pieces(t, runs) {
			if n := t.members[id]; n != nil && n.have.Test(uint(i)) {
				me.stuckFrom = now
				return
			}
		}
	}
}

// whole reports whether the task has to be read as a whole, from its beginning. The digest of the last piece is told by who came to the
// blob's end and found it right, and by then all others were.
func (t *task) whole() bool { return t.Sequential && t.digests[t.Pieces-1] == nil }

// spreads is how long after it has come to somebody a piece counts as spreading to a member: the word of it has to reach the neighbours, and
// then the piece itself. That takes some times what pieces usually take to there, or if it has seen none, as long as at 1 MB/s.
func (t *task) spreads(me *member) time.Duration {
	if me.usual == 0 {
		return spreadWord + time.Duration(t.PieceSize)*time.Microsecond
	}
	return spreadWord + spreadHops*me.usual
}

// spreadsAtMost is how long it is remembered that a piece has come.
func (t *task) spreadsAtMost() time.Duration {
	return spreadWord + spreadHops*time.Duration(t.PieceSize)*time.Microsecond
}

// spreadHops is how often a piece may have to be sent on before it comes to who asks.
const spreadHops = 4

// spreadWord is what the word of a piece takes.
const spreadWord = 500 * time.Millisecond

// tick moves leases that went silent, and retries what had failed in passing.
func (m *Machine) tick(now time.Time) {
	m.tellSeeds(m.unaware()...)
	for _, id := range slices.SortedFunc(maps.Keys(m.tasks), compareKeys) {
		t := m.tasks[id]
		for _, l := range slices.Clone(t.leases) {
			if now.Sub(l.heard) < m.cfg.LeaseSilence || !m.anotherReader(now, t, l.to) {
				continue
			}
			l.to.notBefore = now.Add(4 * m.cfg.LeaseSilence)
			m.dropLeases(t, func(x *lease) bool { return x == l })
			m.send(l.to.host.ID, Revoked{Task: t.ID, Run: l.run})
		}
		m.moveCrossings(now, t)
		for _, z := range t.zones {
			m.relink(now, t, z)
			maps.DeleteFunc(z.fresh, func(_ int, at time.Time) bool { return now.Sub(at) >= t.spreadsAtMost() })
		}
		m.linkLate(now, t)
		m.grant(now, t)
	}
	if m.cfg.OriginRate > 0 {
		m.share(now)
	}
}

// anotherReader reports whether somebody else could take a lease: a sole reader is slow rather than useless.
func (m *Machine) anotherReader(now time.Time, t *task, not *member) bool {
	for _, h := range m.seeds {
		if h.mayJoin(t) && t.members[h.ID] == nil {
			return true
		}
	}
	return slices.ContainsFunc(t.order, func(me *member) bool { return me != not && me.mayRead(now) })
}

// Snapshot returns the state for the status page and for tests.
func (m *Machine) Snapshot() Snapshot {
	var s Snapshot
	for _, id := range slices.Sorted(maps.Keys(m.hosts)) {
		s.Hosts = append(s.Hosts, m.hosts[id].Host)
		s.Zones = append(s.Zones, m.zone(m.hosts[id]))
	}
	for _, id := range slices.SortedFunc(maps.Keys(m.tasks), compareKeys) {
		t := m.tasks[id]
		ts := TaskSnapshot{ID: id.id, Group: id.group, Pieces: t.Pieces, Leased: int(t.leased.Count()), Members: len(t.members)}
		for _, n := range t.holders {
			if n > 0 {
				ts.Held++
			}
		}
		s.Tasks = append(s.Tasks, ts)
	}
	return s
}
