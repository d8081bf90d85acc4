package main

import (
	"testing"
)

// What make bench-fill measures is for quiet machines to say; here it is that each way shows the model, and that complete files are read beside
// plain ones.
func TestRootFirstFillsAreMeasuredBesideNydusd(t *testing.T) {
	ctx, shoal := prepare(t, fillTools()...)
	result, err := fill(ctx, fillConfig{shoal: shoal, size: 16 << 20, rounds: 1, reads: 1, ways: fillWays, log: t.Output()})
	check(t, err)
	for _, f := range result.Fills {
		if f.Rate <= 0 || f.PeakRSS <= 0 {
			t.Errorf("%s: %.0f bytes/s, peak RSS %d: want both measured", f.Way, f.Rate, f.PeakRSS)
		}
	}
	if got, want := len(result.Reads), 2*len(readModes); got != want {
		t.Errorf("%d ways to read the complete model, want %d", got, want)
	}
	for _, r := range result.Reads {
		if r.Ratio <= 0 {
			t.Errorf("%s, %s: ratio %.3f, want it measured", r.Driver, r.Mode, r.Ratio)
		}
	}
}
