package scheduler

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/bits-and-blooms/bitset"

	"github.com/shoal-project/shoal/scheduler/policy"
)

// HostID names a host for as long as it lives; a restarted host may come back under the same one.
type HostID string

// TaskID names a task: the digest of the blob being distributed.
type TaskID string

// Host is what the cluster knows of a machine.
type Host struct {
	ID       HostID
	Addr     string // where its piece server listens, host:port
	Locality policy.Locality
	// Group is the name of those it shares with, and nobody else. Hosts without one share with each other.
	Group string
	Seed  bool
}

// Task is a blob being distributed. Hosts that speak of the same ID but not of the same Pieces share nothing.
type Task struct {
	ID     TaskID
	Pieces int
	// PieceSize is in bytes; it decides how many pieces one lease covers.
	PieceSize int64
	// Sequential is set when no chunk map is known: one host reads the whole blob in order.
	Sequential bool
	// Origin is opaque to the scheduler and travels with each lease: where the blob is to be read.
	Origin []byte
}

// MaxPieces is the largest number of pieces a task may have: 16 TiB in the largest pieces. A task with more is ignored, since its
// state would cost memory for nothing.
const MaxPieces = 1 << 20

// Run is the half-open range of pieces [First, End).
type Run struct{ First, End int }

// Config tunes the machine. The zero value of each field means its default.
type Config struct {
	// Neighbours is how many peers one peer is given to exchange pieces with; others are given it, up to twice as many in all. Default 16.
	Neighbours int
	// Crossings is how many pieces of a task may be on their way into a zone at a time once they were seen to come quickly. Default 16.
	Crossings int
	// CrossingBytes is how many bytes may be on their way at first, but at least one piece, and later, if that is more than Crossings pieces.
	// Default 4 MiB: a thin border should bring them within LeaseSilence.
	CrossingBytes int64
	// LeaseBytes is the length of one lease in bytes, rounded to at least one piece, of a host that was not seen to read quickly. Default 4 MiB.
	LeaseBytes int64
	// LeaseTime is how long a lease should take: hosts that need less than half of it get longer ones, up to LeaseMost bytes. The words
	// between two leases take some tens of milliseconds. Default 150 ms.
	LeaseTime time.Duration
	// LeaseMost is the length of the longest lease in bytes. Default 64 MiB.
	LeaseMost int64
	// LeasesPerHost is how many leases of one task one host may read under at a time; who reads quickly has another one to go on with. Default 2.
	LeasesPerHost int
	// Leases is how many leases of one task there may be at a time, as far as every seed may have one. More share the origin's rate, and
	// the first piece of each comes the later. Those to go on with do not count. Default 8.
	Leases int
	// LeaseSilence is how long a lease may go without progress before it is given to another host. Default 3 s.
	LeaseSilence time.Duration
	// RetryAfter is how long a host is left alone after a lease failed there in passing. Default 1 s.
	RetryAfter time.Duration
	// OriginRate is how fast all hosts together may read origins under this scheduler's leases, in bytes a second. Zero is no bound.
	// The event OriginRate changes it.
	OriginRate int64
	// Handover is how long a task that another machine governed before gets no lease: the hosts that read under the other one's leases
	// join meanwhile. Default 250 ms.
	Handover time.Duration
	// Near is the longest round trip between hosts of one zone, for hosts that name none: zones are found by measuring. Zero does not.
	Near time.Duration
}

func (c Config) withDefaults() Config {
	c.Neighbours = cmp.Or(c.Neighbours, 16)
	c.Crossings = cmp.Or(c.Crossings, 16)
	c.CrossingBytes = cmp.Or(c.CrossingBytes, 4<<20)
	c.LeaseBytes = cmp.Or(c.LeaseBytes, 4<<20)
	c.LeaseTime = cmp.Or(c.LeaseTime, 150*time.Millisecond)
	c.LeaseMost = cmp.Or(c.LeaseMost, 64<<20)
	c.LeasesPerHost = cmp.Or(c.LeasesPerHost, 2)
	c.Leases = cmp.Or(c.Leases, 8)
	c.LeaseSilence = cmp.Or(c.LeaseSilence, 3*time.Second)
	c.RetryAfter = cmp.Or(c.RetryAfter, time.Second)
	c.Handover = cmp.Or(c.Handover, 250*time.Millisecond)
	return c
}

// Machine is the state of one scheduler. It is not safe for concurrent use.
type Machine struct {
	cfg      Config
	rng      *rand.Rand
	hosts    map[HostID]*host
	seeds    []*host // sorted
	tasks    map[taskKey]*task
	topology *policy.Topology // nil when round trips are not measured
	out      []Command
}

// taskKey names what is distributed by itself: a blob in a group. Groups have nothing in common but the scheduler and its origin rate, and
// who was told a wrong length of a blob has nothing in common with those who were told another one.
type taskKey struct {
	id     TaskID
	group  string
	pieces int
}

func compareKeys(a, b taskKey) int {
	return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.group, b.group), cmp.Compare(a.pieces, b.pieces))
}

type host struct {
	Host
	tasks map[TaskID]*member
	read  time.Time                // when it was last seen with a lease
	share int64                    // of Config.OriginRate, as it was told; 0 when it was not
	lease int64                    // bytes of its next lease; 0 means Config.LeaseBytes
	trips map[string]time.Duration // that it measured or is to; nil when it has its place
	// knowsSeeds is set when it was told of the seeds there are.
	knowsSeeds bool
}

// task holds what is known of one blob in one group.
type task struct {
	Task
	group   string
	members map[HostID]*member
	order   []*member      // the members in the order they came, for output that does not depend on map order
	wanting int            // members that want pieces
	holders []uint16       // per piece, members that hold it
	leases  []*lease       // in the order they were given
	leased  *bitset.BitSet // pieces under a lease
	zones   []*zone        // those with members, by name
	digests [][]byte       // per piece, only for sequential tasks; nil where unknown
	cursor  int            // below it no piece is idle
	moving  time.Time      // when anything was read or had last, by anybody
	refused string         // why the last possible reader could not read the origin
	moved   bool           // another machine governed it before
	pause   time.Time      // no lease before: who reads under one of that has yet to say so
	// demanded are the pieces that readers wait for and nobody held when they said so, in that order; urgent has the members that wait
	// for each.
	demanded []int
	urgent   map[int][]*member
}

// member is one host's part in one task.
type member struct {
	host       *host
	task       *task
	zone       *zone
	have       *bitset.BitSet
	wants      bool
	partial    bool      // it wants only what it demands
	leases     int       // that it has
	crossings  int       // that it has
	serving    int       // crossings that it was named for as a source
	crossAfter time.Time // no crossing before
	neighbours map[HostID]bool
	linkAfter  time.Time     // when it gets neighbours, unless all are linked anew before; zero when it has some
	denied     bool          // the origin refused this host for good
	notBefore  time.Time     // no lease before
	stuckFrom  time.Time     // since when it gets nothing although a neighbour holds what it wants; zero when not so
	usual      time.Duration // what a piece takes to it from another, as it said last; zero when it did not
	firstByte  time.Duration // that the origin takes, as the host says
	corrupt    int           // times that the origin gave it wrong bytes
}

// lease is the right of one member to read a run of pieces from the origin.
type lease struct {
	to    *member
	run   Run
	given time.Time
	heard time.Time // of the last sign of progress
	// demanded leases are beside those that read the blob as a whole, and do not count among them.
	demanded bool
}

// New returns a machine that draws its random choices from rng.
func New(cfg Config, rng *rand.Rand) *Machine {
	m := &Machine{cfg: cfg.withDefaults(), rng: rng, hosts: map[HostID]*host{}, tasks: map[taskKey]*task{}}
	if cfg.Near > 0 {
		m.topology = policy.NewTopology(cfg.Near)
	}
	return m
}

// Step takes one event at the given time, which must not go backwards, and returns the commands that follow from it, in
// the order they are to be sent. An event that speaks of an unknown host or task has no effect.
func (m *Machine) Step(now time.Time, ev Event) []Command {
	m.out = nil
	switch ev := ev.(type) {
	case HostJoined:
		m.hostJoined(now, ev)
	case HostLeft:
		m.hostLeft(now, ev.Host)
	case TaskJoined:
		m.taskJoined(now, ev)
	case TaskLeft:
		m.taskLeft(now, ev)
	case Progress:
		m.progress(now, ev)
	case LeaseFailed:
		m.leaseFailed(now, ev)
	case Stuck:
		m.stuck(now, ev)
	case Demand:
		m.demand(now, ev)
	case Probed:
		m.probed(now, ev)
	case OriginRate:
		m.originRate(now, ev.Rate)
	case Tick:
		m.tick(now)
	}
	return m.out
}

func (m *Machine) send(to HostID, c Body) { m.out = append(m.out, Command{To: to, Body: c}) }

func (m *Machine) hostJoined(now time.Time, ev HostJoined) {
	if _, ok := m.hosts[ev.Host.ID]; ok {
		m.hostLeft(now, ev.Host.ID) // a new session of a restarted host: its old state is void
	}
	h := &host{Host: ev.Host, tasks: map[TaskID]*member{}}
	m.hosts[h.ID] = h
	m.placed(h)
	if h.Seed {
		at, _ := slices.BinarySearchFunc(m.seeds, h.ID, func(s *host, id HostID) int { return cmp.Compare(s.ID, id) })
		m.seeds = slices.Insert(m.seeds, at, h)
		m.seedsChanged(h.Group)
	}
	m.tellSeeds(h)
}

func (m *Machine) hostLeft(now time.Time, id HostID) {
	h := m.hosts[id]
	if h == nil {
		return
	}
	delete(m.hosts, id) // first, so that no lease goes back to it
	m.seeds = slices.DeleteFunc(m.seeds, func(s *host) bool { return s == h })
	for _, tid := range slices.Sorted(maps.Keys(h.tasks)) {
		m.removeMember(now, h.tasks[tid])
	}
	if m.topology != nil {
		m.topology.Remove(string(id))
	}
	if h.Seed {
		m.seedsChanged(h.Group)
	}
}

func (m *Machine) seedsChanged(group string) {
	for _, h := range m.hosts {
		if h.Group == group {
			h.knowsSeeds = false
		}
	}
}

// unaware returns the hosts that do not know which seeds there are.
func (m *Machine) unaware() []*host {
	var out []*host
	for _, h := range m.hosts {
		if !h.knowsSeeds {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(a, b *host) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// tellSeeds sends hosts the list of their group's seeds, which they fall back on when no scheduler lives: to one that joins at once, to the
// others at a tick, since seeds often come and go together.
func (m *Machine) tellSeeds(to ...*host) {
	groups := map[string][]Host{}
	for _, h := range m.seeds {
		groups[h.Group] = append(groups[h.Group], h.Host)
	}
	for _, h := range to {
		h.knowsSeeds = true
		m.send(h.ID, Seeds{Hosts: slices.Clone(groups[h.Group])})
	}
}

func (m *Machine) taskJoined(now time.Time, ev TaskJoined) {
	h := m.hosts[ev.Host]
	if h == nil || ev.Task.Pieces <= 0 || ev.Task.Pieces > MaxPieces {
		return
	}
	me := h.tasks[ev.Task.ID]
	if me != nil && me.task.Pieces != ev.Task.Pieces {
		defer m.removeMember(now, me) // after it is a member of the other task, else it would be drafted again
		me = nil
	}
	key := taskKey{ev.Task.ID, h.Group, ev.Task.Pieces}
	t := m.tasks[key]
	if t == nil {
		t = newTask(ev.Task, h.Group)
		m.tasks[key] = t
	}
	if ev.Moved && !t.moved {
		t.moved, t.pause = true, now.Add(m.cfg.Handover)
	}
	if t.Sequential && !ev.Task.Sequential && len(t.leases) == 0 {
		t.Sequential = false // somebody brought a chunk map
	}
	if len(ev.Task.Origin) > 0 {
		t.Origin = ev.Task.Origin // the newest asker's view of where to read
	}
	if me == nil {
		me = m.add(t, h)
	}
	me.denied, me.notBefore, me.corrupt = false, time.Time{}, 0
	m.lose(t, me, []Run{{0, t.Pieces}}) // what it says now replaces what it said before
	m.gain(t, me, ev.Have)
	t.wants(me, ev.Wants, ev.Partial)
	m.adopt(now, t, me, ev.Reading)
	m.adoptCrossings(now, t, me, ev.Crossing)
	m.settleCrossings(now, t)
	m.learn(t, h, ev.Digests, nil)
	if ev.Moved && me.whole() {
		me.linkAfter = now.Add(linkMoved) // it has the neighbours that the other machine gave it
	} else {
		m.link(t, me)
	}
	if t.Sequential && ev.Wants {
		m.tellDigests(t, h.ID)
	}
	m.grant(now, t)
}

func newTask(spec Task, group string) *task {
	t := &task{Task: spec, group: group, members: map[HostID]*member{}, holders: make([]uint16, spec.Pieces),
		leased: bitset.New(uint(spec.Pieces)), urgent: map[int][]*member{}}
	t.digests = make([][]byte, spec.Pieces)
	return t
}

// add makes a host a member that holds and wants nothing.
func (m *Machine) add(t *task, h *host) *member {
	me := &member{host: h, task: t, have: newSet(t.Pieces), neighbours: map[HostID]bool{}}
	t.enter(me, m.zone(h))
	h.tasks[t.ID], t.members[h.ID] = me, me
	t.order = append(t.order, me)
	return me
}

// want notes whether a member wants pieces.
func (t *task) want(me *member, wants bool) {
	t.wants(me, wants, me.partial)
}

// wants notes whether a member wants pieces, and whether only what it demands.
func (t *task) wants(me *member, wants, partial bool) {
	before := me.whole()
	me.wants, me.partial = wants, partial
	after := me.whole()
	switch {
	case after && !before:
		t.wanting++
		me.zone.wanting++
		me.zone.newcomers++
	case before && !after:
		t.wanting--
		me.zone.wanting--
	}
}

// whole reports whether a member wants all that it has not.
func (me *member) whole() bool { return me.wants && !me.partial }

func (m *Machine) taskLeft(now time.Time, ev TaskLeft) {
	if _, me := m.find(ev.Host, ev.Task); me != nil {
		m.removeMember(now, me)
	}
}

// removeMember takes a member out; the pieces nobody else holds and the leases it had become idle again.
func (m *Machine) removeMember(now time.Time, me *member) {
	t, id := me.task, me.host.ID
	if me.host.tasks[t.ID] == me {
		delete(me.host.tasks, t.ID)
	}
	delete(t.members, id)
	t.order = slices.DeleteFunc(t.order, func(o *member) bool { return o == me })
	t.want(me, false)
	t.cursor = 0
	for i, ok := me.have.NextSet(0); ok; i, ok = me.have.NextSet(i + 1) {
		t.unhold(me, int(i))
	}
	m.dropLeases(t, func(l *lease) bool { return l.to == me })
	t.dropCrossings(me.zone, func(c *crossing) bool { return c.to == me })
	t.leave(me)
	if len(t.members) == 0 {
		delete(m.tasks, taskKey{t.ID, t.group, t.Pieces})
		return
	}
	m.unlink(t, me)
	m.grant(now, t)
}

func (m *Machine) find(h HostID, id TaskID) (*task, *member) {
	if m.hosts[h] == nil || m.hosts[h].tasks[id] == nil {
		return nil, nil
	}
	me := m.hosts[h].tasks[id]
	return me.task, me
}

// drawn is how many members are looked at for the neighbours of one: many more than policy.Neighbours compares, and few enough to cost microseconds.
const drawn = 256

// draw returns the members, by their place in the order, among whom a member's neighbours are chosen: all, or of very many some at random. Where racks or
// zones are named the choice is among fewer than all already.
func (m *Machine) draw(t *task, me *member) []int {
	n := len(t.order)
	if n <= 4*drawn || me.host.Locality.Rack != "" || len(t.zones) > 1 {
		out := make([]int, n)
		for i := range out {
			out[i] = i
		}
		return out
	}
	out, seen := make([]int, 0, drawn), make(map[int]bool, drawn)
	for len(out) < drawn {
		if i := m.rng.IntN(n); !seen[i] {
			seen[i] = true
			out = append(out, i)
		}
	}
	return out
}

// link gives a member as many neighbours of its zone as it may have and tells both sides.
func (m *Machine) link(t *task, me *member) {
	me.linkAfter = time.Time{}
	var candidates, full []policy.Candidate
	for _, i := range m.draw(t, me) {
		other := t.order[i]
		if other.zone != me.zone || other == me || me.neighbours[other.host.ID] || (!me.wants && !other.wants) {
			continue
		}
		c := policy.Candidate{Key: i, Load: len(other.neighbours), Seed: other.host.Seed,
			Distance: policy.Distance(me.host.Locality, other.host.Locality)}
		if c.Load < 3*m.cfg.Neighbours {
			candidates = append(candidates, c)
		} else {
			full = append(full, c) // who came first would have most links, and everybody would ask it
		}
	}
	if len(candidates) == 0 {
		candidates = full
	}
	chosen := policy.Neighbours(candidates, m.cfg.Neighbours-len(me.neighbours), m.rng)
	for _, i := range chosen {
		other := t.order[i]
		me.neighbours[other.host.ID], other.neighbours[me.host.ID] = true, true
		if !me.wants {
			m.tellNeighbours(t, other) // else it learns of me when I come to ask what it holds
		}
	}
	m.tellNeighbours(t, me)
}

func (m *Machine) tellNeighbours(t *task, me *member) {
	if !me.wants {
		return // it has everything; others come to it
	}
	hosts := make([]Host, 0, len(me.neighbours))
	for _, id := range slices.Sorted(maps.Keys(me.neighbours)) {
		if n := t.members[id]; n != nil {
			hosts = append(hosts, n.host.Host)
		}
	}
	m.send(me.host.ID, Neighbours{Task: t.ID, Hosts: hosts})
}

func newSet(pieces int) *bitset.BitSet { return bitset.New(uint(pieces)) }
