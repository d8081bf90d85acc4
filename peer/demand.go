package peer

import (
	"sync/atomic"
	"time"

	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/scheduler/api"
)

// waited is what a reader waits for.
type waited struct {
	run dispatch.Run
	// short is set when the reader wants this and perhaps no more of the blob.
	short bool
}

// shortRange is the most bytes a reader may ask for at a time without all of the blob being fetched.
const shortRange = 8 << 20

// short reports whether a reader that asks for this wants only a part of the blob.
func short(l piece.Layout, length int64) bool { return length < l.Size && length <= shortRange }

// trail is the set of the pieces that readers have read. It is safe for concurrent use, and costs a reader next to nothing.
type trail []atomic.Uint64

func newTrail(pieces int) trail { return make(trail, (pieces+63)/64) }

func (t trail) add(i piece.Index) {
	if word := &t[i/64]; word.Load()>>(i%64)&1 == 0 {
		word.Or(1 << (i % 64))
	}
}

func (t trail) has(i piece.Index) bool { return t[i/64].Load()>>(i%64)&1 == 1 }

// waitFor notes what a reader waits for.
func (t *task) waitFor(r *Reader, w waited) {
	if last := w.run.First - 1; last >= 0 && t.read.has(last) {
		t.planner.Read(last)
	}
	if t.whole && t.cm == nil && int(w.run.End) == t.st.Layout().Count() {
		w.short = false // it comes with the proof of the whole
	}
	t.readers[r] = w
	if !w.short || !t.apart(w.run) {
		t.fetchAll()
	}
}

// fetchAll has all of the blob fetched from now on.
func (t *task) fetchAll() {
	if t.whole {
		return
	}
	t.whole = true
	if t.session != nil && t.planner.Missing() > 0 {
		t.session.Send(api.Event{Demand: &api.Demand{Task: t.blob.Digest.String(), All: true}})
	}
}

// partial reports whether only what readers of ranges wait for is fetched. What a URL has is read in order, and so as a whole.
func (t *task) partial() bool { return !t.whole && !piece.IsURL(t.blob.Digest) }

// apart reports whether a run can be read before what is in front of it. What a URL has cannot, nor the last piece of a blob without a chunk
// map, which comes with the proof of the whole.
func (t *task) apart(run dispatch.Run) bool {
	return t.cm != nil || !piece.IsURL(t.blob.Digest) && int(run.End) < t.st.Layout().Count()
}

// awaited reports whether readers of this host wait for the run, as a short range, and with it whether nothing else may hold it back.
func (t *task) awaited(run dispatch.Run) bool {
	for _, w := range t.readers {
		if w.short && w.run.First <= run.First && run.First < w.run.End {
			return true
		}
	}
	return false
}

// hurry says of a read of the origin whether readers wait for any of it, so that it does not make way for what readers wait for.
type hurry struct {
	run dispatch.Run
	on  chan struct{} // closed when they do
}

// up has the read make way no more. It is called by the task's loop only.
func (h *hurry) up() {
	select {
	case <-h.on:
	default:
		close(h.on)
	}
}

// hurryUp has the reads of the origin under way that bring any of a run make way no more. Blobs without a chunk map are read as a whole, and what readers
// wait for beside that.
func (t *task) hurryUp(run dispatch.Run) {
	if t.cm == nil {
		return
	}
	for _, h := range t.hurries {
		if h.run.First < run.End && run.First < h.run.End {
			h.up()
		}
	}
}

// again is how long after the scheduler was told what is waited for it is told once more.
const again = time.Second

// demand tells the planner what readers wait for, and the scheduler what of that nobody known holds.
func (t *task) demand(now time.Time) {
	var short, long []dispatch.Run
	for _, w := range t.readers {
		if w.short && t.apart(w.run) {
			short = append(short, w.run)
			t.hurryUp(w.run)
		} else {
			long = append(long, w.run)
		}
	}
	if len(t.readers) > 0 && !t.partial() {
		t.fetchAll()
	}
	t.planner.Demand(short)
	t.planner.Readers(long)
	t.planner.Partial(t.partial())
	t.planner.Calm(t.peer.gate.closed())
	if t.session == nil || len(short) == 0 {
		return
	}
	if t.told == nil || now.Sub(t.toldAt) > again {
		t.told, t.toldAt = piece.NewSet(t.st.Layout().Count()), now
	}
	fresh := piece.NewSet(t.st.Layout().Count())
	t.planner.Demanding(func(i piece.Index) {
		if !t.planner.Held(i) && t.told.Add(i) {
			fresh.Add(i)
		}
	})
	if fresh.Count() > 0 {
		t.session.Send(api.Event{Demand: &api.Demand{Task: t.blob.Digest.String(), Runs: runs(fresh)}})
	}
}

// rushFor is the longest that the rest makes way after what readers wait for has come: the next range is often asked for soon, and links take some
// time to become empty. It makes way no longer than was waited: where ranges come in milliseconds, links become empty as quickly.
const rushFor = 200 * time.Millisecond

// rush has the host hold back what nobody waits for, in all tasks, while this one has something that readers wait for, and a moment longer.
func (t *task) rush(now time.Time) {
	switch rushing := t.planner.Rushing(); {
	case rushing && t.rushFrom.IsZero():
		if t.rushFrom = now; !t.rushing {
			t.rushing = true
			t.peer.gate.close()
		}
	case !rushing && !t.rushFrom.IsZero(): // it has come
		t.rushTill, t.rushFrom = now.Add(min(now.Sub(t.rushFrom), rushFor)), time.Time{}
	case !rushing && !now.Before(t.rushTill):
		t.calm()
	}
}

// calm takes rush back.
func (t *task) calm() {
	if !t.rushing {
		return
	}
	t.rushing = false
	if t.peer.gate.open() {
		for _, other := range t.peer.all() {
			other.post(func() {}) // it may ask for more again
		}
	}
}
