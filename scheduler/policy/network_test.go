package policy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func place(zone, rack, group string) Place {
	return Place{Locality: Locality{Zone: zone, Rack: rack}, Group: group}
}

func TestPlacesByAddress(t *testing.T) {
	networks, err := NewNetworks([]Network{
		{CIDR: "10.0.0.0/8", Place: place("a", "", "")},
		{CIDR: "10.1.0.9/16", Place: place("b", "r1", "")}, // the bits behind the prefix do not matter
		{CIDR: "10.1.7.0/24", Place: place("", "r7", "staging")},
		{CIDR: "fd00:1::/32", Place: place("six", "", "")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		addr      string
		own, want Place
	}{
		"in one range":             {"10.9.0.1:7702", Place{}, place("a", "", "")},
		"the smaller one counts":   {"10.1.0.1:7702", Place{}, place("b", "r1", "")},
		"each part by itself":      {"10.1.7.3:7702", Place{}, place("b", "r7", "staging")},
		"its own word counts most": {"10.1.7.3:7702", place("z", "", "g"), place("z", "r7", "g")},
		"of version 6":             {"[fd00:1::5]:7702", Place{}, place("six", "", "")},
		"4 written as 6":           {"[::ffff:10.9.0.1]:7702", Place{}, place("a", "", "")},
		"elsewhere":                {"192.168.0.1:7702", Place{}, Place{}},
		"a name":                   {"node7.example:7702", Place{}, Place{}},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, networks.Complete(tc.own, tc.addr)); d != "" {
				t.Errorf("place (-want +got):\n%s", d)
			}
		})
	}
}

func TestBadNetworksAreNamed(t *testing.T) {
	_, err := NewNetworks([]Network{{CIDR: "10.1.0.0"}, {CIDR: "10.2.0.0/16"}, {CIDR: "10.2.5.0/16"}})
	for _, want := range []string{`"10.1.0.0" is no range`, "10.2.0.0/16 is there twice"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}
