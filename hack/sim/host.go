package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/transfer"
	"github.com/shoal-project/shoal/scheduler"
)

// host is one node: the shell around a real planner and the real upload slots, as package peer is.
type host struct {
	sim          *sim
	id           int
	name         scheduler.HostID
	zone         int
	up, down     float64 // bytes a second
	joinAt       time.Duration
	finishAt     time.Duration
	origin, seed bool
	liar, grey   bool
	doomed       bool // will crash or hang
	dead, hung   bool
	dirty        bool // something happened since its loop ran
	wakeAt       time.Duration

	planner  *dispatch.Planner
	slots    *transfer.Slots[piece.Index]
	uploads  []*flow
	asked    map[piece.Index]*request
	have     *piece.Set
	watchers []*host // who is told what it holds
	visitors []*host // who came to watch it
	watching map[dispatch.ParentID]*host
	news     []piece.Index // not told to the watchers yet
	toldAt   time.Duration
	telling  bool

	neighbours []scheduler.Host
	moved      bool // the neighbours changed
	session    bool // of the present scheduler
	begun      bool // the task
	joined     bool // it, there
	queue      []scheduler.Event
	gained     []piece.Index // since the last report
	reading    bool
	crossed    bool // a piece that was leased across the border has come
	urgent     bool // a lease has ended
	reportedAt time.Duration
	opened     time.Duration // when the session has begun
	batches    time.Duration // when as many batches as have left would have, at their mean rate
}

func newHost(s *sim, id int) *host {
	spacing := s.cfg.spacing
	if id < s.cfg.seeds {
		spacing = s.cfg.seedSpacing
	}
	h := &host{sim: s, id: id, name: scheduler.HostID(fmt.Sprintf("h%04d", id)), have: piece.NewSet(s.cfg.pieces),
		slots:    transfer.NewSlots[piece.Index](s.cfg.slots, spacing),
		watching: map[dispatch.ParentID]*host{}, asked: map[piece.Index]*request{}}
	rng := rand.New(rand.NewPCG(s.cfg.seed, uint64(1000+id)))
	h.planner = dispatch.New(s.cfg.planner, s.layout, h.have, nil, rng)
	if s.cfg.stream {
		h.planner.Readers([]dispatch.Run{{First: 0, End: piece.Index(s.cfg.pieces)}})
	}
	return h
}

func (h *host) addr() dispatch.ParentID { return dispatch.ParentID(h.name) }

// gone reports whether the host does nothing any more.
func (h *host) gone() bool { return h.dead || h.hung }

// loop does what the loop of a task does: learn whom to watch, ask, report.
func (h *host) loop() {
	h.dirty, h.wakeAt = false, 0
	if h.gone() || !h.begun {
		return
	}
	s := h.sim
	now := s.clock()
	if h.joined {
		h.complain(h.planner.Stuck(now), false)
		h.complain(h.planner.Withheld(now), true)
		for _, run := range h.planner.Uncrossed() {
			h.send(scheduler.LeaseFailed{Host: h.name, Task: taskID, Run: scheduler.Run{First: int(run.First), End: int(run.End)}, Border: true})
		}
	}
	if h.moved || h.planner.Missing() == 0 && len(h.watching) > 0 {
		h.moved = false
		h.tend()
	}
	for _, r := range h.planner.Overdue(now) {
		s.hedges++
		rq := h.asked[r.Run.First]
		if rq.flow != nil && !rq.flow.ended {
			rq.flow.src.close(rq.flow)
		}
		h.ended(rq, dispatch.Late)
	}
	for _, r := range h.planner.Next(now) {
		if r.Parent == "" {
			h.readOrigin(r)
		} else {
			h.ask(r)
		}
	}
	h.report()
	if at := h.planner.NextWake(now); !at.IsZero() {
		h.wake(at.Sub(time.Unix(1000, 0)))
	}
}

// complain tells the scheduler of pieces that do not come.
func (h *host) complain(missing []dispatch.Run, withheld bool) {
	if len(missing) == 0 {
		return
	}
	ev := scheduler.Stuck{Host: h.name, Task: taskID, Withheld: withheld, Usual: h.planner.Usual()}
	for _, run := range missing {
		ev.Runs = append(ev.Runs, scheduler.Run{First: int(run.First), End: int(run.End)})
	}
	h.send(ev)
}

// wake has the loop run at a time, if it does not before.
func (h *host) wake(at time.Duration) {
	if h.wakeAt == 0 || at < h.wakeAt {
		h.wakeAt = at
	}
}

// tend watches the neighbours, and nobody else.
func (h *host) tend() {
	wanted := map[dispatch.ParentID]bool{}
	if h.planner.Missing() > 0 {
		for _, id := range h.parents() {
			wanted[id] = id != h.addr()
		}
	}
	for _, id := range sortedKeys(h.watching) {
		if !wanted[id] {
			other := h.watching[id]
			other.watchers = slices.DeleteFunc(other.watchers, func(w *host) bool { return w == h })
			delete(h.watching, id)
			h.planner.RemoveParent(id)
		}
	}
	for _, id := range h.parents() {
		if !wanted[id] || h.watching[id] != nil || !h.planner.AddParent(id) {
			continue
		}
		h.watch(id)
	}
}

// parents lists the neighbours the scheduler named, and those who came to watch this host, until they fall silent.
func (h *host) parents() []dispatch.ParentID {
	var ids []dispatch.ParentID
	for _, n := range h.neighbours {
		ids = append(ids, dispatch.ParentID(n.ID))
	}
	for _, w := range h.visitors {
		ids = append(ids, w.addr())
	}
	return ids
}

func (h *host) watch(id dispatch.ParentID) {
	other := h.sim.byName(scheduler.HostID(id))
	h.watching[id] = other
	h.sim.after(2*h.sim.latency(h, other), func() {
		if other.gone() || h.watching[id] != other {
			return
		}
		other.watchers = append(other.watchers, h)
		if !slices.Contains(other.visitors, h) {
			other.visitors = append(other.visitors, h)
		}
		other.moved, other.dirty = true, true
		held := slices.Collect(other.have.All())
		for _, i := range held {
			h.planner.ParentHas(id, dispatch.Run{First: i, End: i + 1})
		}
		h.dirty = true
	})
}

// got takes note of a piece that was verified and stored.
func (h *host) got(i piece.Index) {
	s := h.sim
	h.crossed = h.crossed || h.planner.Crosses(i)
	h.planner.Got(i)
	h.dirty = true
	if !h.have.Add(i) {
		return
	}
	h.gained = append(h.gained, i)
	h.news = append(h.news, i)
	if !h.telling {
		h.telling = true
		s.at(max(s.now, h.toldAt+s.cfg.haves), h.tell)
	}
	if h.have.Full() {
		h.finishAt = s.now
	}
}

// tell sends the watchers what is new, at most once in the interval of haves.
func (h *host) tell() {
	h.telling, h.toldAt = false, h.sim.now
	if h.gone() {
		return
	}
	news, watchers := h.news, slices.Clone(h.watchers)
	h.news = nil
	for _, w := range watchers {
		if w.have.Full() {
			continue
		}
		h.sim.after(h.sim.latency(h, w), func() {
			if w.watching[h.addr()] != h {
				return
			}
			for _, i := range news {
				w.planner.ParentHas(h.addr(), dispatch.Run{First: i, End: i + 1})
			}
			w.dirty = true
		})
	}
}

// request is one for a piece, on its way or being answered.
type request struct {
	dispatch.Request
	flow *flow // that answers it; nil before
	over bool
}

// ask sends a request for one piece.
func (h *host) ask(r dispatch.Request) {
	s, src := h.sim, h.sim.byName(scheduler.HostID(r.Parent))
	s.requests++
	rq := &request{Request: r}
	h.asked[r.Run.First] = rq
	s.after(s.latency(h, src), func() {
		if !rq.over {
			src.serve(h, rq)
		}
	})
}

// serve answers a request as the server of package transfer does.
func (h *host) serve(dst *host, r *request) {
	s := h.sim
	i := r.Run.First
	f := &flow{src: h, dst: dst, piece: i, left: float64(s.cfg.pieceSize)}
	switch {
	case h.dead:
		dst.outcome(h, r, dispatch.Transient)
	case h.hung:
		s.after(transfer.DefaultStall, func() { dst.ended(r, dispatch.Transient) })
	case !h.slots.Take():
		s.busy++
		dst.outcome(h, r, dispatch.Busy)
	case !h.have.Has(i):
		h.slots.Release()
		dst.outcome(h, r, dispatch.Absent)
	case !r.Alone && !h.slots.Begin(s.clock(), i, func() bool { return !f.ended }):
		h.slots.Release()
		s.shared++
		dst.outcome(h, r, dispatch.Shared)
	default:
		f.done = func(f *flow) { h.sent(f, r) }
		f.request, r.flow = r, f
		h.uploads = append(h.uploads, f)
		s.after(s.latency(h, dst), func() {
			if !f.ended {
				s.net.flows = append(s.net.flows, f)
			}
		})
	}
}

// outcome brings a refusal to the one who asked.
func (h *host) outcome(from *host, r *request, o dispatch.Outcome) {
	h.sim.after(h.sim.latency(from, h), func() { h.ended(r, o) })
}

// ended reports the end of a request to the planner.
func (h *host) ended(r *request, o dispatch.Outcome) {
	if h.gone() || r.over {
		return
	}
	r.over = true
	delete(h.asked, r.Run.First)
	h.planner.Done(h.sim.clock(), r.Request, o)
	h.dirty = true
}

// sent is the arrival of a piece: it is verified before anything else happens.
func (h *host) sent(f *flow, r *request) {
	h.close(f)
	if h.liar {
		h.sim.wrong++
		f.dst.ended(r, dispatch.Corrupt)
		return
	}
	if !h.have.Has(f.piece) {
		h.sim.fault("%s sent piece %d, which it does not hold", h.name, f.piece)
	}
	f.dst.ended(r, dispatch.OK)
	f.dst.got(f.piece)
}

// close ends an upload.
func (h *host) close(f *flow) {
	f.ended = true
	h.slots.Came(h.sim.clock(), f.piece)
	h.slots.Release()
	h.uploads = slices.DeleteFunc(h.uploads, func(x *flow) bool { return x == f })
}

// readOrigin reads a run from the origin, piece after piece.
func (h *host) readOrigin(r dispatch.Request) {
	s := h.sim
	f := &flow{src: s.origin, dst: h, piece: r.Run.First, left: float64(s.cfg.pieceSize)}
	f.done = func(f *flow) {
		h.reading, s.originDone = true, s.now
		h.got(f.piece)
		if f.piece++; f.piece < r.Run.End {
			f.left += float64(s.cfg.pieceSize)
			return
		}
		f.ended = true
		h.planner.Done(s.clock(), r, dispatch.OK)
		h.dirty, h.urgent = true, true
	}
	s.after(s.cfg.firstByte, func() { s.net.flows = append(s.net.flows, f) })
	h.beat(f, f.left)
}

// beat says again and again that bytes of a read of the origin have come, as package peer does, until it ends. left is what the piece
// lacked before.
func (h *host) beat(f *flow, left float64) {
	h.sim.after(beatEvery, func() {
		if f.ended {
			return
		}
		if f.left != left {
			h.reading, h.dirty = true, true
		}
		h.beat(f, f.left)
	})
}

// beatEvery is how often package peer does.
const beatEvery = 250 * time.Millisecond
