package main

import (
	"cmp"
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/scheduler"
)

// config is one run.
type config struct {
	peers, pieces, seeds        int
	seed                        uint64
	rate                        float64 // of a host's link, bytes a second
	pieceSize                   int64
	stream                      bool // hosts read the blob in order, as containerd does, instead of prefetching it
	latency, crossing           time.Duration
	firstByte                   time.Duration // that the origin takes
	machine                     scheduler.Config
	planner                     dispatch.Config
	slots                       int // uploads of a host at a time
	spacing, seedSpacing, haves time.Duration
}

// sim is one run: a clock, events at exact times, and bytes that move in steps of a quarter of the time a piece takes.
type sim struct {
	cfg    config
	sc     scenario
	layout piece.Layout
	now    time.Duration
	stepBy time.Duration
	events eventHeap
	serial int
	net    network
	hosts  []*host
	origin *host

	machine *scheduler.Machine // nil while no scheduler lives
	epoch   int                // of the scheduler
	lost    time.Duration      // when the scheduler was lost last
	leases  map[leaseKey]*host

	messages, requests   int
	busy, shared, hedges int
	stuck                int
	wrong                int // pieces that failed their check
	faults               []string
	originDone           time.Duration
}

func newSim(cfg config, sc scenario) *sim {
	s := &sim{cfg: cfg, sc: sc, leases: map[leaseKey]*host{}}
	s.layout = piece.Layout{Size: int64(cfg.pieces) * cfg.pieceSize, PieceSize: cfg.pieceSize}
	s.stepBy = s.seconds(float64(cfg.pieceSize) / cfg.rate / 4)
	s.people()
	s.origin = &host{id: len(s.hosts), origin: true, up: sc.origin * cfg.rate}
	n := len(s.hosts) + 1
	s.net = network{up: make([]float64, n), down: make([]float64, n), nUp: make([]int32, n), nDown: make([]int32, n), border: sc.border * cfg.rate}
	s.startScheduler()
	return s
}

func (s *sim) seconds(v float64) time.Duration { return time.Duration(v * float64(time.Second)) }

// clock is now as the real code wants it.
func (s *sim) clock() time.Time { return time.Unix(1000, 0).Add(s.now) }

func (s *sim) startScheduler() {
	cfg := s.cfg.machine
	if s.sc.unlabelled {
		cfg.Near = 10 * time.Millisecond
	}
	s.machine = scheduler.New(cfg, rand.New(rand.NewPCG(s.cfg.seed, uint64(100+s.epoch))))
	epoch := s.epoch
	var tick func()
	tick = func() {
		if s.epoch == epoch {
			s.step(scheduler.Tick{})
			s.at(s.now+scheduler.NextTick, tick)
		}
	}
	s.at(s.now, tick)
}

// run lets time pass until every host that is to live has everything, and returns what came of it.
func (s *sim) run() result {
	limit := s.sc.idle + 20*s.seconds(s.bound()) + time.Minute
	for s.now < limit && !s.finished() {
		next := s.now + s.stepBy
		for len(s.events) > 0 && s.events[0].at <= next {
			ev := heap.Pop(&s.events).(event)
			s.now = max(s.now, ev.at)
			ev.do()
		}
		s.now = next
		for _, h := range s.hosts {
			if h.dirty || h.wakeAt > 0 && h.wakeAt <= s.now {
				h.loop()
			}
		}
		for _, f := range s.net.step(s.hosts, s.origin, s.stepBy.Seconds()) {
			f.done(f)
		}
		if len(s.faults) > 0 {
			break
		}
	}
	return s.result()
}

func (s *sim) finished() bool {
	for _, h := range slices.Backward(s.hosts) {
		if !h.doomed && h.finishAt == 0 {
			return false
		}
	}
	return true
}

// fault notes that something that must always hold did not.
func (s *sim) fault(format string, args ...any) {
	s.faults = append(s.faults, fmt.Sprintf("at %v: ", s.now)+fmt.Sprintf(format, args...))
}

// event is something to be done at a time; serial keeps the order of those at the same time.
type event struct {
	at     time.Duration
	serial int
	do     func()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].serial < h[j].serial
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	ev := old[len(old)-1]
	old[len(old)-1] = event{}
	*h = old[:len(old)-1]
	return ev
}

func (s *sim) at(when time.Duration, do func()) {
	s.serial++
	heap.Push(&s.events, event{at: when, serial: s.serial, do: do})
}

func (s *sim) after(d time.Duration, do func()) { s.at(s.now+d, do) }

// latency is the time a small message takes.
func (s *sim) latency(a, b *host) time.Duration {
	if a.zone != b.zone {
		return cmp.Or(s.sc.crossing, s.cfg.crossing)
	}
	return s.cfg.latency
}
