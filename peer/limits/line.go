package limits

import (
	"slices"
	"time"

	"golang.org/x/time/rate"
)

const (
	minStep  = 4 << 10   // bytes
	maxStep  = 256 << 10 // bytes
	freeStep = 1 << 20   // bytes, where nothing is held back
)

// stepFor returns how many bytes pass at a time: 64 steps a second, within bounds.
func stepFor(r Rate) int {
	if r == 0 {
		return freeStep
	}
	return int(min(max(r/64, minStep), maxStep))
}

// burstFor is what a bucket holds: a fifth of a second, and two steps, so that a timer that is late loses nothing.
func burstFor(r Rate) int { return max(2*stepFor(r), int(r/5)) }

// line is who waits at a bucket. It is pure: the time comes in, nothing is locked, and no timer runs.
type line struct {
	total   *rate.Limiter // nil without a limit
	perTask Rate
	flows   map[string]*flow
	turn    int64 // of the flow served last, see flow.turn
	flowed  int   // flows there were
}

// flow is one task's part in a line.
type flow struct {
	number  int           // decides between those whose turn is the same
	bucket  *rate.Limiter // nil without a limit
	waiting []*ticket     // in the order they came
	turn    int64         // bytes it was given, or would have been while it was away; the lowest comes next
}

// ticket is one step of a stream that waits.
type ticket struct {
	n     int // bytes
	ready chan struct{}
}

func newLimiter(now time.Time, r Rate) *rate.Limiter {
	if r == 0 {
		return nil
	}
	l := rate.NewLimiter(rate.Limit(r), burstFor(r))
	l.AllowN(now, 0) // its time begins now
	return l
}

// set replaces the rates. Who sets them often gets no more for it: buckets that are replaced are empty.
func (l *line) set(now time.Time, total, perTask Rate) {
	if was := l.total; total == 0 || was == nil || was.Limit() != rate.Limit(total) {
		l.total = emptied(now, total)
	}
	if l.perTask == perTask {
		return
	}
	l.perTask = perTask
	for _, f := range l.flows {
		f.bucket = emptied(now, perTask)
	}
}

// emptied returns a limiter whose bucket has nothing in it.
func emptied(now time.Time, r Rate) *rate.Limiter {
	l := newLimiter(now, r)
	if l != nil {
		take(l, now, l.Burst())
	}
	return l
}

// join puts a ticket at the end of its task's queue.
func (l *line) join(now time.Time, task string, t *ticket) {
	f := l.flows[task]
	if f == nil {
		l.flowed++
		f = &flow{number: l.flowed, bucket: newLimiter(now, l.perTask)}
		l.flows[task] = f
	}
	if len(f.waiting) == 0 {
		f.turn = max(f.turn, l.turn) // who was away has saved nothing up
	}
	f.waiting = append(f.waiting, t)
}

// leave takes a ticket out that is not wanted any more.
func (l *line) leave(task string, t *ticket) {
	if f := l.flows[task]; f != nil {
		f.waiting = slices.DeleteFunc(f.waiting, func(x *ticket) bool { return x == t })
	}
}

// serve closes the tickets that may pass now and returns when to ask again; zero when nobody waits.
func (l *line) serve(now time.Time) time.Duration {
	for {
		f, wait := l.next(now)
		if f == nil {
			l.sweep(now)
			return wait
		}
		n := f.waiting[0].n
		if wait := lack(l.total, now, n); wait > 0 {
			return wait
		}
		take(l.total, now, n)
		take(f.bucket, now, n)
		close(f.waiting[0].ready)
		f.waiting = f.waiting[1:]
		l.turn = f.turn
		f.turn += int64(n)
	}
}

// next returns the flow whose turn it is among those that their own limit lets pass, or else how long until there is one.
func (l *line) next(now time.Time) (best *flow, wait time.Duration) {
	for _, f := range l.flows {
		if len(f.waiting) == 0 {
			continue
		}
		if lacking := lack(f.bucket, now, f.waiting[0].n); lacking > 0 {
			if wait == 0 || lacking < wait {
				wait = lacking
			}
			continue
		}
		if best == nil || f.turn < best.turn || f.turn == best.turn && f.number < best.number {
			best = f
		}
	}
	return best, wait
}

// sweep forgets the flows that are as good as new.
func (l *line) sweep(now time.Time) {
	for task, f := range l.flows {
		if len(f.waiting) == 0 && (f.bucket == nil || f.bucket.TokensAt(now) >= float64(f.bucket.Burst())) {
			delete(l.flows, task)
		}
	}
}

// lack returns how long until n bytes are in the bucket.
func lack(b *rate.Limiter, now time.Time, n int) time.Duration {
	if b == nil {
		return 0
	}
	missing := float64(min(n, b.Burst())) - b.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	return time.Duration(missing/float64(b.Limit())*float64(time.Second)) + time.Microsecond // rounded up
}

// take takes n bytes out of the bucket, which has them; of more than it can hold, all.
func take(b *rate.Limiter, now time.Time, n int) {
	if b != nil {
		b.AllowN(now, min(n, b.Burst()))
	}
}
