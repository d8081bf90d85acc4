package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// TestRootContainerdsPullWhateverFails runs the part of make e2e-containerd that asks most of the mirror: the oldest and the newest containerd,
// the latter with layers in parallel chunks.
func TestRootContainerdsPullWhateverFails(t *testing.T) {
	cases := map[string][]string{
		"1.6 single":   {"mirror-hung", "mirror-no-files"},
		"2.3 parallel": {"mirror-restarted", "peers-lie"},
	}
	for _, who := range contestants(testCache()) {
		for _, test := range batteryCases() {
			if !slices.Contains(cases[who.String()], test.name) {
				continue
			}
			t.Run(who.String()+"/"+test.name, func(t *testing.T) {
				ctx, shoal := prepare(t, append(batteryTools(), who.bin+"/containerd", who.bin+"/ctr")...)
				b := battery{shoal: shoal, runs: 1, log: t.Output()}
				r := b.suffer(ctx, who, test)
				if !r.OK {
					t.Errorf("%s: %s", test.what, r.Error)
				}
				t.Logf("added %.2f s, the bound is %.2f s", r.AddedSeconds, r.BoundSeconds)
			})
		}
	}
}

func TestTheLabSupervisesAsTheUnitSays(t *testing.T) {
	unit, err := os.ReadFile("../../deploy/systemd/shoal-node.service")
	if err != nil {
		t.Fatal(err)
	}
	s := cluster.UnitSupervision()
	for _, line := range []string{
		fmt.Sprintf("WatchdogSec=%dms", s.Watchdog.Milliseconds()), fmt.Sprintf("TimeoutAbortSec=%dms", s.Abort.Milliseconds()),
		fmt.Sprintf("RestartSec=%.0f", s.Restart.Seconds()), "Restart=always",
	} {
		if !strings.Contains(string(unit), line+"\n") {
			t.Errorf("the unit has no line %s", line)
		}
	}
}

func TestBatteryTableHasARowForEachCase(t *testing.T) {
	cases := []batteryCase{{name: "a", what: "x", bound: 1}, {name: "b", what: "y"}}
	who := []contestant{{version: "1.6"}, {version: "2.3", parallel: true}}
	got := batteryTable(cases, who, []batteryResult{
		{Case: "a", Containerd: "1.6", Mode: "single", OK: true, WithinBound: true, AddedSeconds: 0.5},
		{Case: "a", Containerd: "2.3", Mode: "parallel", OK: true, AddedSeconds: 5},
		{Case: "b", Containerd: "1.6", Mode: "single", Error: "x"},
		{Case: "b", Containerd: "2.3", Mode: "parallel", OK: true, WithinBound: true},
	})
	want := `| case | what happens | bound, s | 1.6 single | 2.3 parallel |
| --- | --- | --- | --- | --- |
| a | x | 0.00 | 0.50 | **5.00** |
| b | y | 0.00 | **FAILED** | 0.00 |
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
