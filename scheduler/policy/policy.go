// Package policy scores candidates: whom a peer should have as a neighbour, and which host should read the origin.
// All functions are pure; ties are broken by the caller's seeded random source, never by map order.
package policy

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sort"
	"time"
)

// Locality is where a host stands. Empty fields are one place of their own, so an unconfigured cluster is one zone.
type Locality struct {
	Zone, Rack string
}

// Distance ranks how far b is from a: 0 within a rack, 1 within a zone, 2 across zones.
func Distance(a, b Locality) int {
	switch {
	case a.Zone != b.Zone:
		return 2
	case a.Rack != b.Rack:
		return 1
	default:
		return 0
	}
}

// Candidate is one host that may be chosen.
type Candidate struct {
	Key      int // the caller's, returned on choice
	Distance int // as the function Distance
	Load     int // links or leases it has already; fewer is better
	Seed     bool
}

// Neighbours returns the keys of up to n candidates to link a peer with, all of its zone: at random but
// rather those with few links. This builds a near-regular random graph, which spreads pieces in a logarithmic number of steps. Where
// racks are named half of them are of the peer's own, as far as there are so many.
func Neighbours(candidates []Candidate, n int, rng *rand.Rand) []int {
	var rack, others []Candidate
	for _, c := range candidates {
		if c.Distance == 0 {
			rack = append(rack, c)
		} else {
			others = append(others, c)
		}
	}
	near := max(n-n/2, n-len(others))
	chosen := mix(rack, near, rng)
	return append(chosen, mix(others, n-len(chosen), rng)...)
}

// Graph links hosts at random, each with as many others, or one or two less: pairs of indices. racks names the rack of each host; where there are several, half
// of a host's neighbours are of its own. degree is even, and should be much less than the number of hosts.
func Graph(racks []string, degree int, rng *rand.Rand) [][2]int {
	everybody, byRack := make([]int, len(racks)), map[string][]int{}
	for i, r := range racks {
		everybody[i] = i
		byRack[r] = append(byRack[r], i)
	}
	pairs := make([][2]int, 0, len(racks)*degree/2)
	ring := func(hosts []int) { // through all of them, in random order
		rng.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
		for i := range hosts {
			if j := (i + 1) % len(hosts); j != i {
				pairs = append(pairs, [2]int{hosts[i], hosts[j]})
			}
		}
	}
	for n := range degree / 2 {
		if n%2 == 0 || len(byRack) == 1 {
			ring(everybody)
			continue
		}
		for _, r := range slices.Sorted(maps.Keys(byRack)) {
			ring(byRack[r])
		}
	}
	return pairs
}

// Sources returns the keys of up to n candidates to fetch a piece from across a border, the least loaded first, at random among equals.
func Sources(candidates []Candidate, n int, rng *rand.Rand) []int { return take(candidates, n, rng) }

// Slow reports whether something took much longer than it does for others, on the mean; zero is no mean yet.
func Slow(took, mean time.Duration) bool { return mean > 0 && took > 4*mean }

// Reader returns the key of the candidate that should read the origin next, the least loaded one at random among
// equals, seeds before all others. ok is false when there is no candidate.
func Reader(candidates []Candidate, rng *rand.Rand) (key int, ok bool) {
	seeds := make([]Candidate, 0, len(candidates))
	for _, c := range candidates {
		if c.Seed {
			seeds = append(seeds, c)
		}
	}
	if len(seeds) > 0 {
		candidates = seeds
	}
	chosen := take(candidates, 1, rng)
	if len(chosen) == 0 {
		return 0, false
	}
	return chosen[0], true
}

// among is how many candidates each choice of a neighbour is made among. All of them would be wrong: the newest members have the fewest
// links, so that each newcomer would link to those who came just before it, and pieces would walk from the first to the last.
const among = 8

// mix returns the keys of n candidates: by turns the one with the least load of a few that are drawn at random, and any.
func mix(candidates []Candidate, n int, rng *rand.Rand) []int {
	rng.Shuffle(len(candidates), func(i, j int) { candidates[i], candidates[j] = candidates[j], candidates[i] })
	n = max(min(n, len(candidates)), 0)
	keys := make([]int, 0, n)
	for len(keys) < n {
		best, few := 0, min(among, len(candidates))
		if len(keys)%2 == 1 && len(candidates) > n-len(keys)+among {
			few = 1 // at random, for links to those who came early too
		}
		for i := range few {
			if candidates[i].Load < candidates[best].Load {
				best = i
			}
		}
		keys = append(keys, candidates[best].Key)
		for i := range few { // who was looked at gives way to others
			if last := len(candidates) - 1 - i; last > i {
				candidates[i], candidates[last] = candidates[last], candidates[i]
			}
		}
		candidates = slices.DeleteFunc(candidates, func(c Candidate) bool { return c.Key == keys[len(keys)-1] })
	}
	return keys
}

// take shuffles the candidates and returns the keys of the n with the least load.
func take(candidates []Candidate, n int, rng *rand.Rand) []int {
	rng.Shuffle(len(candidates), func(i, j int) { candidates[i], candidates[j] = candidates[j], candidates[i] })
	sort.SliceStable(candidates, func(i, j int) bool { return candidates[i].Load < candidates[j].Load })
	n = max(min(n, len(candidates)), 0)
	keys := make([]int, 0, n)
	for _, c := range candidates[:n] {
		keys = append(keys, c.Key)
	}
	return keys
}
