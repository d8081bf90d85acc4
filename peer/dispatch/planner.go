package dispatch

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shoal-project/shoal/peer/piece"
)

// ParentID names a parent: the address of its piece server.
type ParentID string

// Run is the half-open range of pieces [First, End).
type Run struct{ First, End piece.Index }

// Config tunes a Planner. The zero value of each field means its default.
type Config struct {
	// InFlight bounds the requests to parents. Default 8.
	InFlight int
	// Beside bounds the requests to parents while the origin is read: it is the scarcer source, and the host's link must not be full of
	// what others have. Default 6.
	Beside int
	// SourceRuns bounds the concurrent reads of the origin. Default 2.
	SourceRuns int
	// SourceBytes is the length in bytes of one read of the origin that no lease asked for. Default 4 MiB.
	SourceBytes int64
	// Demanded bounds the requests to parents, and the reads of the origin, of what is demanded. They come on top of all others. Default 8.
	Demanded int
	// Window is how many bytes ahead of a reader count as waited for. Default 8 MiB, at least one piece.
	Window int64
	// BusyPause is how long a parent that answered busy is left alone at the least; else it is half of what a request usually takes. The
	// pause is random, between half and all of it. Default 10 ms.
	BusyPause time.Duration
	// SharedPause is how long a piece is not asked again of a parent that sent it to another peer. Default 150 ms.
	SharedPause time.Duration
	// SharedFor is how long a piece may be refused because its only known holder sent it to another peer, before it is asked for as in
	// Request.Alone; four times what requests usually take if that is longer. Default 300 ms.
	SharedFor time.Duration
	// Penalty is how long a parent that failed is left alone, doubling up to eight times. Default 500 ms.
	Penalty time.Duration
	// Hedge is the least time a request may take, if others hold the piece too, before Overdue gives it up. Requests usually get four times
	// what the others took. Default 250 ms.
	Hedge time.Duration
	// StuckAfter is how long a piece may have neither holder nor reader before Stuck reports it. Default 1 s.
	StuckAfter time.Duration
}

func (c Config) withDefaults() Config {
	c.InFlight = cmp.Or(c.InFlight, 8)
	c.Beside = cmp.Or(c.Beside, 6)
	c.SourceRuns = cmp.Or(c.SourceRuns, 2)
	c.SourceBytes = cmp.Or(c.SourceBytes, 4<<20)
	c.Demanded = cmp.Or(c.Demanded, 8)
	c.Window = cmp.Or(c.Window, 8<<20)
	c.BusyPause = cmp.Or(c.BusyPause, 10*time.Millisecond)
	c.SharedPause = cmp.Or(c.SharedPause, 150*time.Millisecond)
	c.SharedFor = cmp.Or(c.SharedFor, 300*time.Millisecond)
	c.Penalty = cmp.Or(c.Penalty, 500*time.Millisecond)
	c.Hedge = cmp.Or(c.Hedge, 250*time.Millisecond)
	c.StuckAfter = cmp.Or(c.StuckAfter, time.Second)
	return c
}

// Request is one thing to do. With an empty Parent it is a read of the origin of all pieces in Run; else Run is one piece.
type Request struct {
	Parent ParentID
	Run    Run
	// Demanded is set when a reader waits for just this.
	Demanded bool
	Border   bool // Parent is beyond the border of this host's zone
	// Alone is set when this host does not get the piece from whoever else the parent sent it to.
	Alone bool
}

// Outcome says how a request ended.
type Outcome int

// The outcomes of a request; all but OK put its pieces back.
const (
	OK        Outcome = iota
	Busy              // the parent has no upload slot free
	Shared            // the parent sent the piece to another peer just now
	Absent            // the parent does not have the piece
	Transient         // timeout, cut, silence
	Late              // given up because Overdue said so
	Corrupt           // wrong bytes: never ask this parent again
)

// Planner plans one task. It is not safe for concurrent use.
type Planner struct {
	cfg       Config
	rng       *rand.Rand
	layout    piece.Layout
	have      *piece.Set
	known     *piece.Set // pieces whose digest is known, so that they can be taken from a parent
	open      *piece.Set // known, not held, and asked of nobody
	inFlight  map[piece.Index]asked
	service   time.Duration // what a request takes, a moving mean
	lateRow   int           // how often in a row requests were given up, since one has come
	lateFrom  time.Time     // when that was the last time
	lateAll   bool          // none had come then since the time before: all are slow
	parents   map[ParentID]*parent
	order     []*parent // sorted by id
	banned    map[ParentID]bool
	idle      []*parent // room for nextPiece
	avail     []uint16  // per piece, parents that hold it
	readers   []Run
	leases    []Run
	crossings map[piece.Index]crossing // pieces leased to be fetched across the border
	fars      map[ParentID]*far
	uncrossed []Run
	alones    map[piece.Index]alone
	withheld  []piece.Index // that their only holder gave wrong
	reading   []Run
	local     *piece.Set // pieces that are being put together on this host
	kept      *piece.Set // those of them that are leased as well
	self      bool
	selfFrom  time.Time // no read without a lease before
	selfFail  int       // reads of the origin that failed in a row
	idleFrom  time.Time // since when nothing could be done although pieces are missing; zero when not so
	starved   bool      // Stuck has reported, and no parent gave anything since
	stuckAt   time.Time // when it has
	came      bool      // a piece has come since, from wherever
	demands   []Run
	asked     *piece.Set // pieces that were demanded or read, ever
	steady    *piece.Set // those of them that were demanded after the ones before them
	partial   bool       // only what is demanded is fetched
	calm      bool       // as in Calm
	first     []Run      // leases of what is demanded
	rushing   []Run      // reads of the origin of those
}

// asked is a request in flight.
type asked struct {
	of   ParentID
	at   time.Time
	late bool // Overdue has reported it
	rush bool // it is demanded
	told bool // Withheld has reported it
	far  bool // beyond the border
}

type parent struct {
	id       ParentID
	have     *piece.Set
	inFlight int // requests of what is not demanded
	rush     int // and of what is
	notUntil time.Time
	shared   map[piece.Index]time.Time // not to be asked of it before
	failures int
	// sharedEnd is the first of the times in shared, or a time of a piece that is there no more.
	sharedEnd time.Time
}

// forget drops the pauses of pieces that have ended or do not matter any more, and returns when the next one ends. It looks at
// all of them only when one has ended.
func (par *parent) forget(now time.Time, have *piece.Set) time.Time {
	if len(par.shared) == 0 || par.sharedEnd.After(now) {
		return par.sharedEnd
	}
	par.sharedEnd = time.Time{}
	for i, at := range par.shared {
		if have.Has(i) || !at.After(now) {
			delete(par.shared, i)
		} else if par.sharedEnd.IsZero() || at.Before(par.sharedEnd) {
			par.sharedEnd = at
		}
	}
	return par.sharedEnd
}

// New returns a planner for a blob of which have is held. known is the set of pieces whose digests are known;
// nil means all. The sets are copied.
func New(cfg Config, layout piece.Layout, have, known *piece.Set, rng *rand.Rand) *Planner {
	if known == nil {
		known = piece.NewSet(layout.Count())
		known.AddAll()
	}
	p := &Planner{cfg: cfg.withDefaults(), rng: rng, layout: layout, have: have.Clone(), known: known.Clone(),
		open: piece.NewSet(layout.Count()), inFlight: map[piece.Index]asked{}, parents: map[ParentID]*parent{},
		banned: map[ParentID]bool{}, avail: make([]uint16, layout.Count()), local: piece.NewSet(layout.Count()),
		kept: piece.NewSet(layout.Count()), asked: piece.NewSet(layout.Count()), steady: piece.NewSet(layout.Count()), crossings: map[piece.Index]crossing{}, alones: map[piece.Index]alone{}, fars: map[ParentID]*far{}}
	for i := range piece.Index(layout.Count()) {
		p.reopen(i)
	}
	return p
}

// reopen works out whether piece i can be asked from a parent.
func (p *Planner) reopen(i piece.Index) {
	if _, asked := p.inFlight[i]; p.have.Has(i) || !p.known.Has(i) || p.local.Has(i) || asked {
		p.open.Remove(i)
		return
	}
	p.open.Add(i)
}

// AddParent makes a parent known, with nothing held. It reports false for one that was banned; one that is known already
// stays as it is.
func (p *Planner) AddParent(id ParentID) bool {
	if p.banned[id] || id == "" {
		return false
	}
	if p.parents[id] == nil {
		par := &parent{id: id, have: piece.NewSet(p.layout.Count()), shared: map[piece.Index]time.Time{}}
		p.parents[id] = par
		at, _ := slices.BinarySearchFunc(p.order, id, func(o *parent, id ParentID) int { return cmp.Compare(o.id, id) })
		p.order = slices.Insert(p.order, at, par)
	}
	return true
}

// RemoveParent forgets a parent. Requests to it that are in flight still have to be reported with Done.
func (p *Planner) RemoveParent(id ParentID) {
	p.ParentReset(id)
	delete(p.parents, id)
	p.order = slices.DeleteFunc(p.order, func(o *parent) bool { return o.id == id })
}

// ParentReset forgets what a parent holds.
func (p *Planner) ParentReset(id ParentID) {
	par := p.parents[id]
	if par == nil {
		return
	}
	for i := range par.have.All() {
		p.avail[i]--
	}
	par.have = piece.NewSet(p.layout.Count())
}

// Unverifiable returns up to n pieces that a parent holds, that are missing here, and whose digests are not known.
func (p *Planner) Unverifiable(id ParentID, n int) []piece.Index {
	par := p.parents[id]
	if par == nil {
		return nil
	}
	var out []piece.Index
	for i := range par.have.All() {
		if len(out) < n && !p.have.Has(i) && !p.known.Has(i) {
			out = append(out, i)
		}
	}
	return out
}

// Parents returns the known parents in order.
func (p *Planner) Parents() []ParentID {
	ids := make([]ParentID, 0, len(p.order))
	for _, par := range p.order {
		ids = append(ids, par.id)
	}
	return ids
}

// ParentHas records that a parent holds the pieces of run.
func (p *Planner) ParentHas(id ParentID, run Run) {
	par := p.parents[id]
	if par == nil {
		return
	}
	for i := max(run.First, 0); i < run.End && int(i) < p.layout.Count(); i++ {
		if par.have.Add(i) {
			p.avail[i]++
		}
	}
}

// ParentLost records that a parent does not hold piece i.
func (p *Planner) ParentLost(id ParentID, i piece.Index) {
	if par := p.parents[id]; par != nil && par.have.Remove(i) {
		p.avail[i]--
	}
}

// Know records that the digest of piece i is known.
func (p *Planner) Know(i piece.Index) {
	p.known.Add(i)
	p.reopen(i)
}

// Got records that piece i is held, however it came.
func (p *Planner) Got(i piece.Index) {
	p.have.Add(i)
	p.came = true
	p.local.Remove(i)
	p.kept.Remove(i)
	delete(p.crossings, i)
	delete(p.alones, i)
	p.reopen(i)
}

// Hold keeps piece i from being asked of anybody, because it is being put together on this host, until Got or Release. It must not be
// in flight.
func (p *Planner) Hold(i piece.Index) {
	if !p.have.Has(i) {
		p.local.Add(i)
		p.reopen(i)
	}
}

// Release takes Hold back. A lease that covers the piece counts again.
func (p *Planner) Release(i piece.Index) {
	p.local.Remove(i)
	p.reopen(i)
	if p.kept.Remove(i) {
		p.leases = append(p.leases, Run{i, i + 1})
	}
}

// Lost records that piece i is held no more.
func (p *Planner) Lost(i piece.Index) {
	p.have.Remove(i)
	p.reopen(i)
}

// Missing returns how many pieces are not held.
func (p *Planner) Missing() int { return p.have.Len() - p.have.Count() }

// Reachable reports whether any missing piece is held by a known parent.
func (p *Planner) Reachable() bool {
	for i := range p.have.Missing() {
		if p.avail[i] > 0 {
			return true
		}
	}
	return false
}

// Readers replaces what is waited for: from the piece that each reader needs next to the last one it will read.
func (p *Planner) Readers(spans []Run) { p.readers = spans }

// Lease permits reading a run from the origin.
func (p *Planner) Lease(run Run) { p.leases = append(p.leases, run) }

// Revoke takes back a lease that has not begun.
func (p *Planner) Revoke(run Run) {
	p.leases = slices.DeleteFunc(p.leases, func(l Run) bool { return l == run })
	p.first = slices.DeleteFunc(p.first, func(l Run) bool { return l == run })
	for i := run.First; i < run.End; i++ {
		p.kept.Remove(i)
	}
}

// Leased returns the runs that a lease or Self let be read and that were not reported with Done.
func (p *Planner) Leased() []Run {
	out := slices.Concat(p.rushing, p.first, p.reading, p.leases)
	for i := range p.kept.All() {
		out = append(out, Run{i, i + 1})
	}
	return out
}

// Retry forgets that the origin failed.
func (p *Planner) Retry() { p.selfFrom, p.selfFail = time.Time{}, 0 }

// Self tells whether the origin may be read without leases, for want of a scheduler.
func (p *Planner) Self(on bool) { p.self = on }

// Next returns what to do now. Each request must be reported with Done once.
func (p *Planner) Next(now time.Time) []Request {
	out := p.nextDemanded(now)
	for len(p.reading) < p.cfg.SourceRuns {
		run, ok := p.nextSource(now)
		if !ok {
			break
		}
		p.reading = append(p.reading, run)
		out = append(out, Request{Run: run})
	}
	most := p.cfg.InFlight
	if len(p.reading) > 0 {
		most = min(most, p.cfg.Beside)
	}
	if p.calm {
		most = min(most, 2)
	}
	for len(p.inFlight)-p.rushes() < most {
		f, i, ok := p.nextCrossing(now)
		if !ok {
			break
		}
		out = append(out, p.askFar(now, f, i, false))
	}
	for len(p.inFlight)-p.rushes() < most {
		par, i, ok := p.nextPiece(now)
		if !ok {
			break
		}
		par.inFlight++
		p.inFlight[i] = asked{of: par.id, at: now}
		p.reopen(i)
		out = append(out, Request{Parent: par.id, Run: Run{i, i + 1}, Alone: p.alone(now, par.id, i)})
	}
	p.watch(now)
	return out
}

// nextPiece picks an idle parent at random and the best piece it can give.
func (p *Planner) nextPiece(now time.Time) (*parent, piece.Index, bool) {
	perParent := 1
	if len(p.parents) == 1 && !p.calm {
		perParent = 2 // hide the round trip where no other parent can
	}
	idle := p.idle[:0]
	for _, par := range p.order {
		if par.inFlight < perParent && !now.Before(par.notUntil) {
			idle = append(idle, par)
		}
	}
	p.idle = idle
	p.rng.Shuffle(len(idle), func(i, j int) { idle[i], idle[j] = idle[j], idle[i] })
	for _, par := range idle {
		if i, ok := p.demanded(now, par); ok {
			return par, i, true
		}
	}
	for _, par := range idle {
		if p.partial {
			break
		}
		if i, ok := p.rarest(now, par, Run{0, piece.Index(p.layout.Count())}); ok {
			return par, i, true
		}
	}
	return nil, 0, false
}

// demanded picks among the pieces that readers wait for: the rarest within Config.Window ahead of each. Not the very next
// one: readers of the same blob stand at the same place, and would all take the same piece from its only holder.
// A reader of a short range has a short span, and gets just that.
func (p *Planner) demanded(now time.Time, par *parent) (piece.Index, bool) {
	ahead := piece.Index(max(p.cfg.Window/max(p.layout.PieceSize, 1), 1))
	for _, r := range p.readers {
		if i, ok := p.rarest(now, par, Run{r.First, min(r.End, r.First+ahead)}); ok {
			return i, true
		}
	}
	return 0, false
}

// rarest picks the piece of a run that a parent can give and that the fewest parents hold, at random among equals.
func (p *Planner) rarest(now time.Time, par *parent, run Run) (best piece.Index, ok bool) {
	ties := 0
	for i := range par.have.Common(p.open, run.First, run.End) {
		if len(par.shared) > 0 && now.Before(par.shared[i]) {
			continue
		}
		switch {
		case !ok || p.avail[i] < p.avail[best]:
			best, ok, ties = i, true, 1
		case p.avail[i] == p.avail[best]:
			if ties++; p.rng.IntN(ties) == 0 {
				best = i
			}
		}
	}
	return best, ok
}

// nextLease takes the next run of leased pieces that are neither held nor being read.
func (p *Planner) nextLease() (Run, bool) { return p.takeLease(&p.leases, p.isRead) }

// takeLease takes the next run out of leases of pieces that are neither held nor, as read says, being read.
func (p *Planner) takeLease(leases *[]Run, read func(piece.Index) bool) (Run, bool) {
	idle := func(i piece.Index) bool {
		if p.local.Has(i) {
			p.kept.Add(i)
			return false
		}
		return !p.have.Has(i) && !read(i)
	}
	for len(*leases) > 0 {
		run := (*leases)[0]
		for run.First < run.End && !idle(run.First) {
			run.First++
		}
		end := run.First
		for end < run.End && idle(end) {
			end++
		}
		if end < run.End {
			(*leases)[0].First = end
		} else {
			*leases = (*leases)[1:]
		}
		if run.First < end {
			return Run{run.First, end}, true
		}
	}
	return Run{}, false
}

// nextSource takes the next lease, or, without a scheduler, a run of pieces that nobody known holds.
func (p *Planner) nextSource(now time.Time) (Run, bool) {
	if run, ok := p.nextLease(); ok {
		return run, true
	}
	if !p.self || now.Before(p.selfFrom) {
		return Run{}, false
	}
	most := piece.Index(max(p.cfg.SourceBytes/max(p.layout.PieceSize, 1), 1))
	free := func(i piece.Index) bool {
		_, asked := p.inFlight[i]
		return !p.have.Has(i) && !p.local.Has(i) && !asked && (p.avail[i] == 0 || !p.known.Has(i)) && !p.isRead(i)
	}
	for _, part := range p.wanted() {
		for i := part.First; i < part.End; i++ {
			if !free(i) {
				continue
			}
			end := i + 1
			for end < i+most && end < part.End && free(end) {
				end++
			}
			return Run{i, end}, true
		}
	}
	return Run{}, false
}

// wanted returns where to look for pieces to read from the origin: where readers wait, then from the beginning.
func (p *Planner) wanted() []Run {
	end := piece.Index(p.layout.Count())
	out := slices.Clone(p.demands)
	if p.partial {
		return out
	}
	for _, r := range p.readers {
		out = append(out, Run{r.First, end})
	}
	return append(out, Run{0, end})
}

func (p *Planner) isRead(i piece.Index) bool {
	return holdsRun(p.reading, i) || holdsRun(p.rushing, i)
}

// elsewhere reports whether a piece that was asked of somebody could come from another one.
func (p *Planner) elsewhere(i piece.Index, a asked) bool {
	if a.far {
		return p.avail[i] > 0 && !p.crossings[i].again // it has come to the zone by another way
	}
	return p.avail[i] > 1 || p.Crosses(i)
}

// Overdue returns requests to parents that take much longer than others do, each once; the caller gives them up and reports them as Late.
// A piece that nobody else is known to hold is waited for: giving up would only begin the same wait anew.
func (p *Planner) Overdue(now time.Time) []Request {
	var out []Request
	for i, a := range p.inFlight {
		if !a.late && p.elsewhere(i, a) && now.Sub(a.at) >= p.patience() {
			a.late = true
			p.inFlight[i] = a
			out = append(out, Request{Parent: a.of, Run: Run{i, i + 1}})
		}
	}
	slices.SortFunc(out, func(a, b Request) int { return cmp.Compare(a.Run.First, b.Run.First) })
	return out
}
