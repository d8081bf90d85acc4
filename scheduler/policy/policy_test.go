package policy

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func rng() *rand.Rand { return rand.New(rand.NewPCG(5, 6)) }

func TestDistance(t *testing.T) {
	here := Locality{Zone: "a", Rack: "1"}
	for _, tc := range []struct {
		other Locality
		want  int
	}{{here, 0}, {Locality{Zone: "a", Rack: "2"}, 1}, {Locality{Zone: "b", Rack: "1"}, 2}} {
		if got := Distance(here, tc.other); got != tc.want {
			t.Errorf("distance to %+v: %d, want %d", tc.other, got, tc.want)
		}
	}
}

func TestNeighbours(t *testing.T) {
	for name, tc := range map[string]struct {
		candidates []Candidate
		n          int
		want       []int // sorted
	}{
		"nobody":                                {nil, 4, []int{}},
		"no room":                               {[]Candidate{{Key: 1}}, 0, []int{}},
		"room taken back":                       {[]Candidate{{Key: 1}}, -3, []int{}},
		"the least linked first":                {[]Candidate{{Key: 1, Load: 9}, {Key: 2, Load: 1}, {Key: 3, Load: 5}}, 2, []int{2, 3}},
		"half of the own rack":                  {[]Candidate{{Key: 1, Distance: 1}, {Key: 2}, {Key: 3, Load: 1}, {Key: 4, Distance: 1, Load: 1}}, 2, []int{1, 2}},
		"others when there are few of the rack": {[]Candidate{{Key: 1, Distance: 1}, {Key: 2}, {Key: 3, Distance: 1}}, 3, []int{1, 2, 3}},
		"the rack when there are few others":    {[]Candidate{{Key: 1, Distance: 1}, {Key: 2}, {Key: 3}, {Key: 4}}, 4, []int{1, 2, 3, 4}},
	} {
		t.Run(name, func(t *testing.T) {
			got := Neighbours(tc.candidates, tc.n, rng())
			slices.Sort(got)
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("neighbours (-want +got):\n%s", d)
			}
		})
	}
}

func TestNeighboursAreSpreadAmongEquals(t *testing.T) {
	seen := map[int]bool{}
	r := rng()
	for range 200 {
		candidates := make([]Candidate, 10)
		for i := range candidates {
			candidates[i].Key = i
		}
		for _, k := range Neighbours(candidates, 1, r) {
			seen[k] = true
		}
	}
	if len(seen) != 10 {
		t.Errorf("only %d of 10 equal candidates were ever chosen", len(seen))
	}
}

func TestReader(t *testing.T) {
	for name, tc := range map[string]struct {
		candidates []Candidate
		want       int
		ok         bool
	}{
		"nobody":                {nil, 0, false},
		"a seed before a peer":  {[]Candidate{{Key: 1}, {Key: 2, Seed: true, Load: 7}}, 2, true},
		"the least loaded seed": {[]Candidate{{Key: 1, Seed: true, Load: 2}, {Key: 2, Seed: true, Load: 1}}, 2, true},
		"a peer without seeds":  {[]Candidate{{Key: 4}}, 4, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := Reader(tc.candidates, rng()); got != tc.want || ok != tc.ok {
				t.Errorf("got %d, %v, want %d, %v", got, ok, tc.want, tc.ok)
			}
		})
	}
}

// TestNeighboursAreNotJustTheNewest links members as they come; a graph in which each links to those just before it would spread pieces slowly.
func TestNeighboursAreNotJustTheNewest(t *testing.T) {
	r, load, far := rng(), make([]int, 400), 0
	for me := 1; me < len(load); me++ {
		var candidates []Candidate
		for i := range me {
			candidates = append(candidates, Candidate{Key: i, Load: load[i]})
		}
		for _, k := range Neighbours(candidates, 16, r) {
			load[k]++
			load[me]++
			if me == len(load)-1 && k < me/2 {
				far++
			}
		}
	}
	if far == 0 {
		t.Error("the last one has no neighbour among the first half")
	}
}

func TestGraphLinksEachHostToEquallyMany(t *testing.T) {
	for name, racks := range map[string]int{"one rack": 1, "four racks": 4} {
		t.Run(name, func(t *testing.T) {
			hosts := make([]string, 200)
			for i := range hosts {
				hosts[i] = string(rune('a' + i%racks))
			}
			links, own := make([]map[int]bool, len(hosts)), 0
			for i := range links {
				links[i] = map[int]bool{}
			}
			for _, p := range Graph(hosts, 16, rng()) {
				links[p[0]][p[1]], links[p[1]][p[0]] = true, true
			}
			for i, l := range links {
				if len(l) < 13 || len(l) > 16 || l[i] {
					t.Errorf("host %d has neighbours %v, want about 16 others", i, l)
				}
				for j := range l {
					if hosts[i] == hosts[j] {
						own++
					}
				}
			}
			if share := float64(own) / float64(16*len(hosts)); racks > 1 && (share < .4 || share > .7) {
				t.Errorf("%.2f of the neighbours are of the own rack, want about half, and what chance adds", share)
			}
		})
	}
}

func TestGraphOfFewHostsHasNoLoops(t *testing.T) {
	for _, n := range []int{0, 1, 2} {
		for _, p := range Graph(make([]string, n), 4, rng()) {
			if p[0] == p[1] {
				t.Errorf("%d hosts: one is its own neighbour", n)
			}
		}
	}
}
