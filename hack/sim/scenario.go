package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// scenario says what differs from the plain case: all hosts alike and there at once, nothing fails. Shares are of the hosts, times are
// in units of F/C, the time that a host's link takes for the blob.
type scenario struct {
	name, about string
	origin      float64 // what the origin can send, in units of C
	hetero      bool    // a fifth of the hosts has half the rate, a tenth has twice the rate
	arrive      float64 // hosts come at random within this time
	crash, hang float64 // share of the hosts that die at a random time: connections are reset; all falls silent
	grey        float64 // share of the hosts whose uplink has 2 % of its rate
	liars       float64 // share of the hosts that send wrong bytes
	zones       int
	border      float64       // what the link between two zones carries each way, in units of C
	crossing    time.Duration // what a message takes across the border; 0 is 2 ms
	idle        time.Duration // how long the hosts are there before the blob is wanted
	unlabelled  bool          // nobody says a zone: they are found by probing
	failover    bool          // at half time the scheduler is lost and an empty one takes over
	seedLoss    bool          // at half time a seed crashes
	late        bool          // one more host comes when the others should be through
}

// scenarios lists all, in the order of the table.
func scenarios() []scenario {
	return []scenario{
		{name: "hard", about: "all rates equal, the origin's too", origin: 1},
		{name: "half", about: "the origin sends at half the rate of a host", origin: .5},
		{name: "hetero", about: "20 % of the hosts at half the rate, 10 % at twice", origin: 1, hetero: true},
		{name: "arrival", about: "hosts come over half of the time", origin: 1, arrive: .5},
		{name: "fail2", about: "2 % of the hosts crash", origin: 1, crash: .02},
		{name: "fail10", about: "10 % of the hosts crash", origin: 1, crash: .1},
		{name: "hang2", about: "2 % of the hosts fall silent", origin: 1, hang: .02},
		{name: "grey2", about: "2 % of the hosts send at 2 % of their rate", origin: 1, grey: .02},
		{name: "liars", about: "2 % of the hosts send wrong bytes", origin: 1, liars: .02},
		{name: "zones", about: "two zones, a link of 4 rates between them", origin: 1, zones: 2, border: 4},
		{name: "probed", about: "as zones, 30 ms to the other and back, and nobody names them: hosts measure", origin: 1, zones: 2, border: 4,
			crossing: 15 * time.Millisecond, idle: 2 * time.Second, unlabelled: true},
		{name: "failover", about: "the scheduler dies at half time, an empty one takes over", origin: 1, failover: true},
		{name: "seedloss", about: "a seed crashes at half time", origin: 1, seedLoss: true},
		{name: "late", about: "one more host comes at twice the time", origin: 1, late: true},
		{name: "all", about: "hetero, arrival, fail2, grey2, liars, zones, failover and seedloss at once", origin: 1, hetero: true, arrive: .25,
			crash: .02, grey: .02, liars: .02, zones: 2, border: 4, failover: true, seedLoss: true},
	}
}

// pick returns the scenarios of a comma-separated list of names; "every" names all.
func pick(names string) ([]scenario, error) {
	all := scenarios()
	if names == "every" {
		return all, nil
	}
	var out []scenario
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(s scenario) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("unknown scenario %q; --list names them", name)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// people makes the hosts of a scenario. The seeds come first, and stand in the first zone with the origin.
func (s *sim) people() {
	rng := rand.New(rand.NewPCG(s.cfg.seed, 11))
	sc, full := s.sc, s.seconds(float64(s.cfg.pieces)*float64(s.cfg.pieceSize)/s.cfg.rate)
	chosen := func(share float64) map[int]bool { // that share of the hosts, at least one; no seeds
		out, order := map[int]bool{}, rng.Perm(s.cfg.peers-s.cfg.seeds)
		for _, i := range order[:min(len(order), int(math.Ceil(share*float64(s.cfg.peers))))] {
			out[s.cfg.seeds+i] = true
		}
		return out
	}
	grey, liars, crash, hang := chosen(sc.grey), chosen(sc.liars), chosen(sc.crash), chosen(sc.hang)
	within := func(share float64) time.Duration { return time.Duration(rng.Float64() * share * float64(full)) }
	n := s.cfg.peers
	for i := range n {
		h := newHost(s, i)
		h.seed = i < s.cfg.seeds
		h.up, h.down = s.cfg.rate, s.cfg.rate
		if h.joinAt = time.Duration(rng.Int64N(int64(20 * time.Millisecond))); h.seed {
			h.joinAt = 0
		}
		if sc.hetero && !h.seed {
			switch f := rng.Float64(); {
			case f < .2:
				h.up, h.down = h.up/2, h.down/2
			case f < .3:
				h.up, h.down = h.up*2, h.down*2
			}
		}
		if sc.zones > 1 && !h.seed {
			h.zone = i * sc.zones / n
		}
		if sc.late && i == n-1 {
			h.joinAt = 2 * full
		}
		if sc.arrive > 0 && !h.seed {
			h.joinAt = within(sc.arrive)
		}
		if grey[i] {
			h.grey, h.up = true, h.up*.02
		}
		h.liar = liars[i]
		if crash[i] {
			s.at(h.joinAt+within(1), func() { s.crash(h) })
			h.doomed = true
		} else if hang[i] {
			s.at(h.joinAt+within(1), func() { s.hang(h) })
			h.doomed = true
		}
		s.hosts = append(s.hosts, h)
		s.at(h.joinAt, func() { s.arrive(h) })
		h.joinAt += sc.idle
	}
	if sc.seedLoss && s.cfg.seeds > 1 {
		s.hosts[0].doomed = true
		s.at(full/2, func() { s.crash(s.hosts[0]) })
	}
	if sc.failover {
		s.at(full/2, s.loseScheduler)
	}
}

// bound is the fluid lower bound of the time until the last host has everything: no way of spreading is faster.
func (s *sim) bound() float64 {
	size := float64(s.cfg.pieces) * float64(s.cfg.pieceSize)
	origin := s.sc.origin * s.cfg.rate
	t, up, n := size/origin, origin, 0.0
	for _, h := range s.hosts {
		if h.doomed {
			continue
		}
		t = max(t, (h.joinAt-s.sc.idle).Seconds()+size/h.down)
		if !h.liar {
			up += h.up
		}
		n++
	}
	if s.sc.arrive == 0 {
		t = max(t, n*size/up)
	}
	if s.sc.border > 0 {
		t = max(t, size/(s.sc.border*s.cfg.rate))
	}
	return t
}
