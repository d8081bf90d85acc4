package policy

import (
	"slices"
	"time"
)

// maxLandmarks bounds the virtual zones, and so what a host has to measure.
const maxLandmarks = 8

// Topology finds zones by the round trips that hosts measure, for clusters where nobody has named any. Each zone has a landmark, one of its
// hosts. A host is of the zone of the oldest landmark that is near; when none is, it becomes the landmark of a zone of its own, which counts
// as soon as a second host is near it. Until then, and when there are too many landmarks, a host is of the first zone, whose name is empty,
// so that hosts far from everybody do not end up each alone. It is not safe for concurrent use.
type Topology struct {
	near  time.Duration
	zones []*virtual
	of    map[string]*virtual // by host
}

type virtual struct {
	name     string
	landmark string
	hosts    []string // in the order they came
	counts   bool
}

// NewTopology returns one without hosts. Hosts with a round trip of at most near are near each other.
func NewTopology(near time.Duration) *Topology {
	return &Topology{near: near, of: map[string]*virtual{}}
}

// Landmarks returns the hosts to measure round trips to.
func (t *Topology) Landmarks() []string {
	out := make([]string, 0, len(t.zones))
	for _, z := range t.zones {
		out = append(out, z.landmark)
	}
	return out
}

// Place puts a host, which has no place yet, where its round trips to all landmarks say, and returns the hosts whose zone that may have
// changed. A landmark that is missing was not reached.
func (t *Topology) Place(id string, trips map[string]time.Duration) (moved []string) {
	near := slices.IndexFunc(t.zones, func(z *virtual) bool { // the first: a landmark by mistake gets nobody
		trip, ok := trips[z.landmark]
		return ok && trip <= t.near
	})
	switch {
	case near >= 0:
		z := t.zones[near]
		z.hosts = append(z.hosts, id)
		t.of[id] = z
		if !z.counts {
			z.counts = true
			return slices.Clone(z.hosts)
		}
		return []string{id}
	case len(t.zones) < maxLandmarks:
		z := &virtual{name: "~" + id, landmark: id, hosts: []string{id}}
		if !slices.ContainsFunc(t.zones, func(o *virtual) bool { return o.name == "" }) {
			z.name, z.counts = "", true
		}
		t.zones = append(t.zones, z)
		t.of[id] = z
	}
	return nil
}

// Remove forgets a host. When it was a landmark, another one of its zone takes its place.
func (t *Topology) Remove(id string) {
	z := t.of[id]
	if z == nil {
		return
	}
	delete(t.of, id)
	z.hosts = slices.DeleteFunc(z.hosts, func(o string) bool { return o == id })
	if len(z.hosts) == 0 {
		t.zones = slices.DeleteFunc(t.zones, func(o *virtual) bool { return o == z })
		return
	}
	if z.landmark == id {
		z.landmark = z.hosts[0]
	}
}

// Zone returns the name of a host's zone.
func (t *Topology) Zone(id string) string {
	if z := t.of[id]; z != nil && z.counts {
		return z.name
	}
	return ""
}
