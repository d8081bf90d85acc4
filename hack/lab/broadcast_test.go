package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

func TestLimitIsTheSlowestOfWhatHasToCarryTheBlob(t *testing.T) {
	const size = 1195508 // 10 Mbit on the wire
	for _, test := range []struct {
		name string
		cfg  broadcastConfig
		want float64
	}{
		{"nothing", broadcastConfig{}, 0},
		{"links", broadcastConfig{link: 5e6, zones: 1}, 2},
		{"a border", broadcastConfig{link: 5e6, zones: 2, border: 1e6}, 10},
		{"a border that is faster than the links", broadcastConfig{link: 5e6, zones: 2, border: 1e9}, 2},
		{"one zone has no border", broadcastConfig{link: 5e6, zones: 1, border: 1e6}, 2},
		{"the last peer's start", broadcastConfig{link: 5e6, zones: 1, stagger: 3 * time.Second}, 5},
		{"a start without links that limit", broadcastConfig{zones: 1, stagger: 3 * time.Second}, 0},
	} {
		if got := test.cfg.limit(size); got < test.want-0.01 || got > test.want+0.01 {
			t.Errorf("%s: %.2f s, want %.2f", test.name, got, test.want)
		}
	}
}

func TestStaggeredStartsAreEvenAndReachTheEnd(t *testing.T) {
	var got []time.Duration
	for i := range 4 {
		got = append(got, startOf(i, 4, 6*time.Second))
	}
	if d := cmp.Diff([]time.Duration{0, 2 * time.Second, 4 * time.Second, 6 * time.Second}, got); d != "" {
		t.Errorf("starts (-want +got):\n%s", d)
	}
	if got := startOf(0, 1, time.Second); got != 0 {
		t.Errorf("a single peer starts after %v", got)
	}
}

func TestNodesTakeTurnsInZonesAndSeedsStayInTheFirst(t *testing.T) {
	var got []string
	for i := range 3 {
		got = append(got, zoneOf(i, false, 2), zoneOf(i, true, 2), zoneOf(i, false, 1))
	}
	if d := cmp.Diff([]string{"lab", "lab", "lab", "lab-2", "lab", "lab", "lab", "lab", "lab"}, got); d != "" {
		t.Errorf("zones (-want +got):\n%s", d)
	}
}

func TestBordersTellTheMeanOfTheOtherZones(t *testing.T) {
	before, after := borders{[]int64{10, 20}, []int64{1, 2}}, borders{[]int64{110, 320}, []int64{5, 9}}
	in, out, copies := after.since(before, 100)
	if d := cmp.Diff([][]int64{{100, 300}, {4, 7}}, [][]int64{in, out}); d != "" || copies != 2 {
		t.Errorf("%v copies (-want +got):\n%s", copies, d)
	}
	if in, _, copies := (borders{}).since(borders{}, 100); in != nil || copies != 0 {
		t.Errorf("without a border %v and %v copies", in, copies)
	}
}

func TestCPUIsToldByKindAndTheLabsOwnIsNotTheDaemons(t *testing.T) {
	before := usage{cpu: map[kind]cluster.CPU{kindNode: {User: time.Second}, kindLab: {}}}
	after := usage{cpu: map[kind]cluster.CPU{kindNode: {User: 3 * time.Second, System: time.Second}, kindLab: {User: 8 * time.Second}}}
	got, daemons := perGiB(before, after, 2<<30)
	want := map[kind]cpuPerGiB{kindNode: {User: 1, System: 0.5}, kindLab: {User: 4}}
	if d := cmp.Diff(want, got); d != "" || daemons != 1.5 {
		t.Errorf("daemons %v (-want +got):\n%s", daemons, d)
	}
}
