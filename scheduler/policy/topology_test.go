package policy

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const ms = time.Millisecond

func TestZonesFollowFromRoundTrips(t *testing.T) {
	top := NewTopology(10 * ms)
	site := func(id string) byte { return id[0] }
	measure := func(id string) map[string]time.Duration {
		out := map[string]time.Duration{}
		for _, l := range top.Landmarks() {
			if out[l] = ms; site(l) != site(id) {
				out[l] = 30 * ms
			}
		}
		return out
	}
	if moved := top.Place("a1", measure("a1")); len(moved) != 0 {
		t.Errorf("the first host moved %v", moved)
	}
	top.Place("b1", measure("b1"))
	if z := top.Zone("b1"); z != "" {
		t.Errorf("a host that nobody is near is in zone %q", z)
	}
	if d := cmp.Diff([]string{"b1", "b2"}, top.Place("b2", measure("b2"))); d != "" {
		t.Errorf("moved by the second of a zone (-want +got):\n%s", d)
	}
	for i := range 20 {
		for _, s := range "ab" {
			id := fmt.Sprintf("%c-%d", s, i)
			if d := cmp.Diff([]string{id}, top.Place(id, measure(id))); d != "" {
				t.Errorf("moved (-want +got):\n%s", d)
			}
		}
	}
	want := map[string]string{"a1": "", "a-7": "", "b1": "~b1", "b2": "~b1", "b-7": "~b1", "stranger": ""}
	for id, zone := range want {
		if got := top.Zone(id); got != zone {
			t.Errorf("%s is in zone %q, want %q", id, got, zone)
		}
	}
	top.Remove("b1")
	if d := cmp.Diff([]string{"a1", "b2"}, top.Landmarks()); d != "" {
		t.Errorf("landmarks after one left (-want +got):\n%s", d)
	}
	if top.Place("b9", measure("b9")); top.Zone("b9") != "~b1" {
		t.Errorf("b9 is in zone %q, want that of b2", top.Zone("b9"))
	}
}

func TestHostsFarFromEverybodyAreOneZone(t *testing.T) {
	top := NewTopology(10 * ms)
	for i := range 30 {
		far := map[string]time.Duration{}
		for _, l := range top.Landmarks() {
			far[l] = 30 * ms
		}
		top.Place(fmt.Sprint("h", i), far)
	}
	for i := range 30 {
		if z := top.Zone(fmt.Sprint("h", i)); z != "" {
			t.Errorf("h%d is alone in zone %q", i, z)
		}
	}
	if n := len(top.Landmarks()); n != maxLandmarks {
		t.Errorf("%d landmarks", n)
	}
	for i := range 30 {
		top.Remove(fmt.Sprint("h", i))
	}
	if n := len(top.Landmarks()); n != 0 {
		t.Errorf("%d landmarks without hosts", n)
	}
}
