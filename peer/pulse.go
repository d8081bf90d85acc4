package peer

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/shoal-project/shoal/peer/piece"
)

// pulse remembers when a task was last seen to move: when 256 KiB of it had come to this host, of whatever pieces, or the scheduler said that
// others fetch what this host waits for. A trickle does not count. It is safe for concurrent use.
type pulse struct {
	since time.Time
	last  atomic.Int64 // nanoseconds after since
	bytes atomic.Int64 // that have come since then
}

func newPulse() *pulse { return &pulse{since: time.Now()} }

func (p *pulse) beat() { p.last.Store(int64(time.Since(p.since))) }

func (p *pulse) came(n int) {
	if p.bytes.Add(int64(n)) >= piece.GroupSize {
		p.bytes.Store(0)
		p.beat()
	}
}

func (p *pulse) at() time.Time { return p.since.Add(time.Duration(p.last.Load())) }

// quietTimes is how many times as long as it may be quiet a caller of AwaitMoving waits at the most.
const quietTimes = 12

// AwaitMoving is Await for a caller who could get the bytes elsewhere. It fails when the task has not moved for the time quiet, or bytes at
// off are not there after twelve times as long. A cluster that is slow, because its origin is, its links are thin or the pieces are large, is not left as long as it
// moves: everybody would go to the same origin.
func (r *Reader) AwaitMoving(ctx context.Context, off, length int64, quiet time.Duration) (int64, error) {
	for began := time.Now(); ; {
		still := time.Since(r.task.pulse.at())
		waited := time.Since(began)
		patience := min(quiet-min(still, waited), quietTimes*quiet-waited)
		out := fmt.Errorf("no byte for %v", (waited + patience).Round(time.Millisecond))
		inTime, cancel := context.WithTimeoutCause(ctx, patience, out)
		n, err := r.Await(inTime, off, length)
		cancel()
		if err == nil || !errors.Is(err, out) || time.Since(r.task.pulse.at()) >= quiet || time.Since(began) >= quietTimes*quiet {
			return n, err
		}
	}
}
