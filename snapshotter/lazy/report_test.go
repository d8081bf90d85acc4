package lazy

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// A storm of reads that fail is counted, told of in some lines, and reads the bootstrap once.
func TestManyFaultsAreToldInFewLines(t *testing.T) {
	var log logbook
	logger := slog.New(slog.NewTextHandler(&log, nil))
	d := &Driver{log: logger, metrics: newMetrics(nil)}
	d.faults = newFaults(logger, d.metrics)
	dev := &device{}
	m := &mount{image: Image{Name: "example.com/image:tag"}, devices: []*device{dev}}
	reads := 0
	m.places = func() (*places, error) {
		reads++
		return placesOf(small()), nil
	}
	dev.users = []*mount{m}
	const storm = 10_000
	for range storm {
		d.report(dev, 4096+7, errors.New("nobody has it"))
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) < faultsAtOnce || len(lines) > 3*faultsAtOnce || reads != len(lines) {
		t.Errorf("%d lines, for which files were looked for %d times", len(lines), reads)
	}
	if !strings.Contains(lines[0], "file=dir/c offset=7") {
		t.Errorf("the first line is %s", lines[0])
	}
	if n := testutil.ToFloat64(d.metrics.failed); n != storm {
		t.Errorf("%v faults are counted, want %d", n, storm)
	}
	if len(lines) > faultsAtOnce && !strings.Contains(lines[faultsAtOnce], "failed_before_untold=") {
		t.Errorf("line %s does not tell of what was left out", lines[faultsAtOnce])
	}
}

func TestTheBootstrapOfAMountIsReadOnce(t *testing.T) {
	raw, err := bootstrap.Encode(&bootstrap.Image{ChunkSize: 1 << 20, Root: &bootstrap.Inode{Mode: bootstrap.TypeDir | 0o755}})
	check(t, err)
	boot := filepath.Join(t.TempDir(), "boot")
	check(t, os.WriteFile(boot, raw, 0o600))
	f := (&Driver{}).placesIn(boot)
	first, err := f()
	check(t, err)
	check(t, os.Remove(boot))
	if again, err := f(); again != first || err != nil {
		t.Errorf("read again: %v", err)
	}
}
