package main

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/transfer"
	"github.com/shoal-project/shoal/scheduler"
	"github.com/shoal-project/shoal/scheduler/policy"
)

const (
	taskID      = scheduler.TaskID("sha256:blob")
	batchDelay  = 20 * time.Millisecond   // as in scheduler/api
	batchBurst  = 4                       // and this
	hostSilence = 1250 * time.Millisecond // as in scheduler/server
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func (s *sim) byName(id scheduler.HostID) *host {
	i, _ := strconv.Atoi(string(id[1:])) // the names are our own
	return s.hosts[i]
}

func (s *sim) task() scheduler.Task {
	return scheduler.Task{ID: taskID, Pieces: s.cfg.pieces, PieceSize: s.cfg.pieceSize}
}

// arrive is the start of a host: it opens a session, and after a while begins the task, unless it is a seed, which waits for work.
func (s *sim) arrive(h *host) {
	if h.gone() {
		return
	}
	h.open()
	if !h.seed {
		s.after(s.sc.idle, h.join)
	}
}

// open opens a session with the scheduler that lives.
func (h *host) open() {
	s := h.sim
	if s.machine == nil || h.gone() {
		return
	}
	h.session, h.queue = true, nil
	zone := strconv.Itoa(h.zone)
	if s.sc.unlabelled {
		zone = ""
	}
	epoch := s.epoch
	h.opened = s.now + 2*s.cfg.latency
	s.at(h.opened, func() {
		if s.epoch == epoch && !h.gone() {
			s.step(scheduler.HostJoined{Host: scheduler.Host{ID: h.name, Addr: string(h.name), Seed: h.seed,
				Locality: policy.Locality{Zone: zone}}})
		}
	})
}

// join announces the task.
func (h *host) join() {
	moved := h.begun
	h.begun, h.dirty = true, true
	if !h.session {
		return
	}
	ev := scheduler.TaskJoined{Host: h.name, Task: h.sim.task(), Have: runs(slices.Collect(h.have.All())), Wants: !h.have.Full(), Moved: moved}
	for _, r := range h.planner.Leased() {
		ev.Reading = append(ev.Reading, scheduler.Run{First: int(r.First), End: int(r.End)})
	}
	for _, r := range h.planner.Crossings() {
		ev.Crossing = append(ev.Crossing, scheduler.Run{First: int(r.First), End: int(r.End)})
	}
	h.joined, h.gained, h.reportedAt = true, nil, h.sim.now
	h.send(ev)
}

// send queues an event for the scheduler; events leave in batches, a few at once after a pause.
func (h *host) send(ev scheduler.Event) {
	if !h.session {
		return
	}
	s, epoch := h.sim, h.sim.epoch
	h.queue = append(h.queue, ev)
	if len(h.queue) > 1 {
		return
	}
	at := max(s.now, h.opened, h.batches-(batchBurst-1)*batchDelay)
	h.batches = max(s.now, h.batches) + batchDelay
	s.at(at+s.cfg.latency, func() {
		events := h.queue
		h.queue = nil
		if s.epoch != epoch || h.gone() {
			return
		}
		for _, ev := range events {
			s.step(ev)
		}
	})
}

// report tells the scheduler what came since the last report.
func (h *host) report() {
	if !h.joined || len(h.gained) == 0 && !h.reading {
		return
	}
	s := h.sim
	if due := h.reportedAt + h.planner.ReportAfter(h.reading || h.crossed); s.now < due && !h.urgent {
		h.wake(due)
		return
	}
	h.send(scheduler.Progress{Host: h.name, Task: taskID, Gained: runs(h.gained), Reading: h.reading, FirstByte: s.cfg.firstByte, Done: h.have.Full()})
	h.gained, h.reading, h.crossed, h.urgent, h.reportedAt = nil, false, false, false, s.now
}

// runs turns pieces into runs.
func runs(pieces []piece.Index) []scheduler.Run {
	slices.Sort(pieces)
	var out []scheduler.Run
	for _, i := range pieces {
		if n := len(out); n > 0 && out[n-1].End == int(i) {
			out[n-1].End++
		} else {
			out = append(out, scheduler.Run{First: int(i), End: int(i) + 1})
		}
	}
	return out
}

// step has the machine take an event, counts messages, and carries out the commands.
func (s *sim) step(ev scheduler.Event) {
	if s.machine == nil {
		return
	}
	if _, ok := ev.(scheduler.Tick); !ok {
		s.messages++
	}
	s.returned(ev)
	st, stuck := ev.(scheduler.Stuck)
	stuck = stuck && !st.Withheld
	epoch := s.epoch
	for _, cmd := range s.machine.Step(s.clock(), ev) {
		s.messages++
		h := s.byName(cmd.To)
		if stuck {
			s.stuck++ // reads for itself what others hold; such a lease is its own
		} else {
			s.granted(h, cmd.Body)
		}
		s.after(s.cfg.latency, func() {
			if s.epoch == epoch && !h.gone() {
				h.command(cmd.Body)
			}
		})
	}
}

// command carries out what the scheduler says.
func (h *host) command(b scheduler.Body) {
	h.dirty = true
	switch b := b.(type) {
	case scheduler.Neighbours:
		h.neighbours, h.visitors, h.moved = b.Hosts, nil, true // the list has who came to watch, too
	case scheduler.Lease:
		if len(b.From) > 0 {
			h.planner.Cross(dispatch.Run{First: piece.Index(b.Run.First), End: piece.Index(b.Run.End)}, parentIDs(b.From), b.Again)
			return
		}
		if !h.joined {
			h.join()
		}
		h.planner.Lease(dispatch.Run{First: piece.Index(b.Run.First), End: piece.Index(b.Run.End)})
	case scheduler.Probe:
		h.probe(b.Hosts)
	case scheduler.Revoked:
		if b.Border {
			h.planner.RevokeCrossing(dispatch.Run{First: piece.Index(b.Run.First), End: piece.Index(b.Run.End)})
			return
		}
		h.planner.Revoke(dispatch.Run{First: piece.Index(b.Run.First), End: piece.Index(b.Run.End)})
	}
}

// probe measures the round trips to hosts, as package peer does.
func (h *host) probe(hosts []scheduler.Host) {
	var slowest time.Duration
	ev := scheduler.Probed{Host: h.name}
	for _, o := range hosts {
		if other := h.sim.byName(o.ID); !other.gone() {
			rtt := 2 * h.sim.latency(h, other)
			ev.Trips = append(ev.Trips, scheduler.Trip{To: o.ID, RTT: rtt})
			slowest = max(slowest, rtt)
		}
	}
	h.sim.after(3*slowest, func() { h.send(ev) })
}

func parentIDs(hosts []scheduler.Host) []dispatch.ParentID {
	ids := make([]dispatch.ParentID, 0, len(hosts))
	for _, h := range hosts {
		ids = append(ids, dispatch.ParentID(h.ID))
	}
	return ids
}

// leaseKey names what may be leased once at a time: a piece of the origin, or one across the border of a zone.
type leaseKey struct {
	piece, zone int
}

// theOrigin stands for a zone in the key of a lease of the origin.
const theOrigin = -1

// granted checks that no piece is leased twice.
func (s *sim) granted(h *host, b scheduler.Body) {
	switch b := b.(type) {
	case scheduler.Lease:
		for i := b.Run.First; i < b.Run.End; i++ {
			s.lease(h, leaseKey{i, h.leasedFrom(len(b.From) > 0)})
		}
	case scheduler.Revoked:
		for i := b.Run.First; i < b.Run.End; i++ {
			delete(s.leases, leaseKey{i, h.leasedFrom(b.Border)})
		}
	}
}

func (h *host) leasedFrom(border bool) int {
	if border {
		return h.zone
	}
	return theOrigin
}

func (s *sim) lease(h *host, k leaseKey) {
	if other := s.leases[k]; other != nil {
		s.fault("piece %d is leased to %s, while %s has the lease", k.piece, h.name, other.name)
	}
	s.leases[k] = h
}

// returned notes the leases that an event ends.
func (s *sim) returned(ev scheduler.Event) {
	switch ev := ev.(type) {
	case scheduler.TaskJoined:
		s.held(s.byName(ev.Host).zone, ev.Have)
	case scheduler.Progress:
		s.held(s.byName(ev.Host).zone, ev.Gained)
	case scheduler.LeaseFailed:
		h := s.byName(ev.Host)
		for i := ev.Run.First; i < ev.Run.End; i++ {
			if k := (leaseKey{i, h.leasedFrom(ev.Border)}); s.leases[k] == h {
				delete(s.leases, k)
			}
		}
	case scheduler.HostLeft:
		maps.DeleteFunc(s.leases, func(_ leaseKey, h *host) bool { return h.name == ev.Host })
	}
}

// held ends the leases of what a host of a zone holds.
func (s *sim) held(zone int, runs []scheduler.Run) {
	for _, r := range runs {
		for i := r.First; i < r.End; i++ {
			delete(s.leases, leaseKey{i, theOrigin})
			delete(s.leases, leaseKey{i, zone})
		}
	}
}

// crash kills a host: its connections are reset.
func (s *sim) crash(h *host) {
	if h.gone() {
		return
	}
	h.dead = true
	for _, f := range slices.Clone(h.uploads) {
		h.close(f)
		f.dst.outcome(h, f.request, dispatch.Transient)
	}
	s.deaf(h, 0)
	s.after(s.cfg.latency, func() { s.forget(h) })
	s.after(s.cfg.latency, func() { s.step(scheduler.HostLeft{Host: h.name}) })
}

// hang stops a host: its connections stay open and silent.
func (s *sim) hang(h *host) {
	if h.gone() {
		return
	}
	h.hung = true
	for _, f := range slices.Clone(h.uploads) {
		s.after(transfer.DefaultStall, func() {
			if !f.ended {
				h.close(f)
				f.dst.ended(f.request, dispatch.Transient)
			}
		})
	}
	s.deaf(h, transfer.DefaultUploadStall)
	s.after(transfer.DefaultSilence, func() { s.forget(h) })
	s.after(hostSilence, func() { s.step(scheduler.HostLeft{Host: h.name}) })
}

// deaf ends what others, and the origin, send to a host that takes no more.
func (s *sim) deaf(h *host, after time.Duration) {
	for _, f := range s.net.flows {
		if f.dst != h || f.ended {
			continue
		}
		s.after(after, func() {
			if !f.ended && !f.src.origin {
				f.src.close(f)
			}
			f.ended = true
		})
	}
}

// forget is what the watchers of a host do when its stream ends.
func (s *sim) forget(h *host) {
	for _, w := range h.watchers {
		w.visitors, w.moved = slices.DeleteFunc(w.visitors, func(v *host) bool { return v == h }), true
		w.planner.ParentReset(h.addr())
		w.dirty = true
	}
	h.watchers = nil
}

// loseScheduler lets the scheduler die and an empty one take over; the hosts come back to it within 0.2 s.
func (s *sim) loseScheduler() {
	s.epoch++
	s.lost = s.now
	s.leases = map[leaseKey]*host{}
	s.startScheduler()
	rng := newRand(s.cfg.seed, 77)
	for _, h := range s.hosts {
		if !h.session {
			continue
		}
		joined := h.joined
		h.session, h.joined = false, false
		s.after(50*time.Millisecond+time.Duration(rng.Int64N(int64(100*time.Millisecond))), func() {
			h.open()
			if joined {
				h.join()
			}
			h.dirty = true
		})
	}
}
