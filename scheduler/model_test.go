package scheduler

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-project/shoal/scheduler/policy"
)

// modelHost is a host that obeys: it reads what it is leased, and takes from its neighbours what they hold.
type modelHost struct {
	Host
	joined     bool
	have       map[int]bool
	leases     []Lease
	neighbours []Host
	visitors   []Host // who was told to be a neighbour, and came
}

// model is a cluster without failures.
type model struct {
	*Machine
	t     *rapid.T
	rng   *rand.Rand
	now   time.Time
	spec  Task
	hosts map[HostID]*modelHost
	order []HostID
	given map[string]int // leases by what they are for
}

func newModel(t *rapid.T) *model {
	seed := rapid.Uint64().Draw(t, "seed")
	m := &model{Machine: New(Config{}, rand.New(rand.NewPCG(seed, 1))), t: t, rng: rand.New(rand.NewPCG(seed, 2)), now: time.Unix(0, 0),
		spec: blob(rapid.IntRange(1, 60).Draw(t, "pieces")), hosts: map[HostID]*modelHost{}, given: map[string]int{}}
	zones, groups := rapid.IntRange(1, 3).Draw(t, "zones"), rapid.IntRange(1, 2).Draw(t, "groups")
	for i := range rapid.IntRange(1, 30).Draw(t, "hosts") {
		h := Host{ID: HostID(fmt.Sprint("h", i)), Locality: policy.Locality{Zone: fmt.Sprint("z", m.rng.IntN(zones))},
			Group: fmt.Sprint("g", m.rng.IntN(groups)), Seed: m.rng.IntN(5) == 0}
		m.hosts[h.ID], m.order = &modelHost{Host: h, have: map[int]bool{}}, append(m.order, h.ID)
		m.step(HostJoined{h})
	}
	return m
}

// step has the machine take an event, and checks what it answers.
func (m *model) step(ev Event) {
	for _, cmd := range m.Step(m.now, ev) {
		to := m.hosts[cmd.To]
		switch b := cmd.Body.(type) {
		case Neighbours:
			to.neighbours, to.visitors = b.Hosts, nil
			for _, n := range b.Hosts {
				if n.Group != to.Group || n.Locality.Zone != to.Locality.Zone || n.ID == to.ID {
					m.t.Fatalf("%+v has neighbour %+v", to.Host, n)
				}
				m.hosts[n.ID].visitors = append(m.hosts[n.ID].visitors, to.Host)
			}
		case Lease:
			to.leases, to.joined = append(to.leases, b), true
			m.leased(to, b)
		case Revoked:
			m.t.Fatalf("%+v was revoked although everybody obeys", b)
		}
	}
}

// leased checks that nothing is leased twice, and that who is to be asked beyond the border holds it.
func (m *model) leased(to *modelHost, l Lease) {
	what := "origin"
	if len(l.From) > 0 {
		what = "into " + to.Locality.Zone
	}
	for i := l.Run.First; i < l.Run.End; i++ {
		key := fmt.Sprint(to.Group, what, i)
		if m.given[key]++; m.given[key] > 1 {
			m.t.Fatalf("%s: leased twice", key)
		}
		for _, h := range l.From {
			if from := m.hosts[h.ID]; !from.have[i] || from.Group != to.Group || from.Locality.Zone == to.Locality.Zone {
				m.t.Fatalf("%s: from %+v", key, from.Host)
			}
		}
	}
}

// act lets a host do one thing.
func (m *model) act(h *modelHost) {
	if !h.joined {
		h.joined = true
		m.step(TaskJoined{Host: h.ID, Task: m.spec, Wants: true})
		return
	}
	var gained []Run
	gain := func(i int) {
		if !h.have[i] {
			h.have[i] = true
			gained = append(gained, Run{i, i + 1})
		}
	}
	for _, l := range h.leases {
		for i := l.Run.First; i < l.Run.End; i++ {
			gain(i)
		}
	}
	h.leases = nil
	for _, n := range slices.Concat(h.neighbours, h.visitors) {
		for i := range m.spec.Pieces {
			if m.hosts[n.ID].have[i] && m.rng.IntN(2) == 0 {
				gain(i)
			}
		}
	}
	if len(gained) > 0 {
		m.step(Progress{Host: h.ID, Task: m.spec.ID, Gained: gained, Done: len(h.have) == m.spec.Pieces})
	}
}

func (m *model) finished() bool {
	for _, h := range m.hosts {
		if (h.joined || !h.Seed) && len(h.have) < m.spec.Pieces {
			return false
		}
	}
	return true
}

// TestWithoutFailuresEverybodyFinishesAndNothingIsLeasedTwice runs clusters of hosts that obey: each group reads each piece of the origin once,
// and has it cross into each of its zones once.
func TestWithoutFailuresEverybodyFinishesAndNothingIsLeasedTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		for round := 0; !m.finished(); round++ {
			if round == 400 {
				t.Fatalf("not everybody has everything after %d rounds: %+v", round, m.Snapshot())
			}
			m.rng.Shuffle(len(m.order), func(i, j int) { m.order[i], m.order[j] = m.order[j], m.order[i] })
			for _, id := range m.order {
				if m.rng.IntN(3) > 0 && (!m.hosts[id].Seed || m.hosts[id].joined) {
					m.act(m.hosts[id])
				}
			}
			m.now = m.now.Add(50 * time.Millisecond)
			m.step(Tick{})
			for _, task := range m.tasks {
				if fault := zoneFault(task); fault != "" {
					t.Fatal(fault)
				}
			}
		}
	})
}
