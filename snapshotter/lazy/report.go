package lazy

import (
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Of reads that fail so many are told at once, and then one in each pause.
const (
	faultsAtOnce = 10
	faultPause   = time.Second
)

// faults tells of reads that fail: of all by a metric, of some in the log, so that a storm of them costs next to nothing.
type faults struct {
	log     *slog.Logger
	metrics *metrics
	limit   *rate.Limiter

	mu     sync.Mutex // guards untold
	untold int
}

func newFaults(log *slog.Logger, m *metrics) *faults {
	return &faults{log: log, metrics: m, limit: rate.NewLimiter(rate.Every(faultPause), faultsAtOnce)}
}

// tell counts a read that failed, and logs it if it is its turn, with what describe returns.
func (f *faults) tell(cause error, describe func() []any) {
	f.metrics.failed.Inc()
	f.mu.Lock()
	turn := f.limit.Allow()
	untold := f.untold
	if f.untold++; turn {
		f.untold = 0
	}
	f.mu.Unlock()
	if !turn {
		return
	}
	attributes := append(describe(), "error", cause)
	if untold > 0 {
		attributes = append(attributes, "failed_before_untold", untold)
	}
	f.log.Error("lazy read fails", attributes...)
}

// report tells of a read that failed.
func (d *Driver) report(dev *device, off int64, cause error) {
	d.faults.tell(cause, func() []any {
		d.mu.Lock()
		var m *mount
		index := 0
		if len(dev.users) > 0 {
			m = dev.users[0]
			for i := range m.devices {
				if m.devices[i] == dev {
					index = i
				}
			}
		}
		d.mu.Unlock()
		if m == nil {
			return []any{"offset", off}
		}
		name, at := "", off
		if p, err := m.places(); err == nil {
			name, at = p.find(index, off)
		}
		return []any{"image", m.image.Name, "file", name, "offset", at, "target", m.target}
	})
}
