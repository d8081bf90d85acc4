package peer

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/transfer"
	"github.com/shoal-project/shoal/scheduler/api"
)

// rehome joins the task at the scheduler that governs it now, if that has changed.
func (t *task) rehome() {
	s := t.peer.home(t.blob.Digest.String())
	if s == t.session {
		return
	}
	t.session = s
	if s == nil {
		return
	}
	t.have = t.st.Have()
	t.reported, t.freshDigests = time.Time{}, nil // the first report goes at once: others may wait for it
	ev := t.peer.join(t.blob, t.st, t.cm == nil, !t.have.Full())
	ev.Join.Partial, ev.Join.Trace = !t.whole, t.trace
	ev.Join.Moved, t.governed = t.governed, true
	t.told = nil
	for _, r := range t.planner.Leased() {
		ev.Join.Reading = append(ev.Join.Reading, api.Run{int(r.First), int(r.End)})
	}
	for _, r := range t.planner.Crossings() {
		ev.Join.Crossing = append(ev.Join.Crossing, api.Run{int(r.First), int(r.End)})
	}
	s.Send(ev)
}

// unreported reports whether the scheduler does not know yet what this host holds.
func (t *task) unreported() bool {
	return t.session != nil && (t.reading || len(t.freshDigests) > 0 || t.planner.Missing() != t.have.Len()-t.have.Count())
}

// reportDue returns when what the scheduler does not know yet is to be told.
func (t *task) reportDue() time.Time {
	if t.urgent {
		return t.reported
	}
	lost := t.planner.Missing() > t.have.Len()-t.have.Count()
	return t.reported.Add(t.planner.ReportAfter(t.reading || t.crossed || lost || len(t.freshDigests) > 0))
}

// report tells the scheduler what changed since the last report.
func (t *task) report(now time.Time) {
	if !t.unreported() || now.Before(t.reportDue()) {
		return
	}
	held := t.st.Have()
	gained, lost := piece.NewSet(held.Len()), piece.NewSet(held.Len())
	for i := range held.All() {
		if !t.have.Has(i) {
			gained.Add(i)
		}
	}
	for i := range t.have.All() {
		if !held.Has(i) {
			lost.Add(i)
		}
	}
	t.session.Send(api.Event{Progress: &api.Progress{Task: t.blob.Digest.String(), Gained: runs(gained), Lost: runs(lost),
		Reading: t.reading, FirstByteUS: t.firstByte.Microseconds(), Done: held.Full(), Digests: t.freshDigests}})
	t.have, t.freshDigests, t.reading, t.crossed, t.urgent, t.reported = held, nil, false, false, false, now
}

// chooseMode decides whether the origin may be read without leases, and whom to ask when no scheduler lives.
func (t *task) chooseMode(now time.Time) {
	if !t.planner.Wanting() {
		t.planner.Self(false)
		t.wantedFrom = time.Time{}
		return
	}
	if t.wantedFrom.IsZero() {
		t.wantedFrom = now
	}
	if t.session != nil {
		if !t.lastResort && len(t.readers) > 0 && t.stands(now) {
			t.peer.log.Warn("nothing moves, reading the origin without a lease", "digest", t.blob.Digest)
			t.lastResort = true
		}
		t.complain(t.planner.Stuck(now), false)
		t.complain(t.planner.Withheld(now), true)
		for _, run := range t.planner.Uncrossed() {
			t.session.Send(crossingFailed(t.blob.Digest.String(), api.Run{int(run.First), int(run.End)}, "no holder could be reached"))
		}
		t.planner.Self(t.lastResort)
		return
	}
	_, ok := t.substitute()
	t.planner.Self(!ok || t.blob.Origin.none() || t.stands(now)) // no seed reads what takes a secret
}

// complain tells the scheduler of pieces that do not come.
func (t *task) complain(missing []dispatch.Run, withheld bool) {
	if len(missing) == 0 {
		return
	}
	ev := &api.Stuck{Task: t.blob.Digest.String(), Withheld: withheld, UsualUS: t.planner.Usual().Microseconds()}
	for _, run := range missing {
		ev.Runs = append(ev.Runs, api.Run{int(run.First), int(run.End)})
	}
	t.session.Send(api.Event{Stuck: ev})
}

// cross takes the right to fetch a run across the border of the zone.
func (t *task) cross(l *api.Lease) {
	from := make([]dispatch.ParentID, 0, len(l.From))
	for _, h := range l.From {
		from = append(from, dispatch.ParentID(h.Addr))
	}
	t.planner.Cross(toRun(l.Run), from, l.Again)
}

// revoked takes back what was leased and has not begun.
func (t *task) revoked(r *api.Revoked) {
	if r.Border {
		t.planner.RevokeCrossing(toRun(r.Run))
	} else {
		t.planner.Revoke(toRun(r.Run))
	}
}

// crossingFailed tells that a run cannot be fetched across the border, for the time being.
func crossingFailed(task string, run api.Run, text string) api.Event {
	return api.Event{Failed: &api.LeaseFailed{Task: task, Run: run, Failure: failureTransient, Text: text, Border: true}}
}

// stands reports whether the task has had no piece, although it wants some, for so long that a slow origin or parent is no excuse any more, and
// in the end not even the scheduler's word.
func (t *task) stands(now time.Time) bool {
	patience := t.peer.cfg.SelfAfter + time.Duration(t.st.Layout().PieceSize)*time.Microsecond // a piece at 1 MB/s
	still := min(now.Sub(t.moved), now.Sub(t.wantedFrom))
	return still > patience && now.Sub(t.comes) > patience || still > quietTimes*patience
}

// substitute returns the seed that stands in for the scheduler: the known one that wins the rendezvous and still answers.
// It is not ok when that is this host itself or when there is none.
func (t *task) substitute() (api.Host, bool) {
	t.peer.mu.Lock()
	seeds := slices.Clone(t.peer.seeds)
	t.peer.mu.Unlock()
	id := t.blob.Digest.String()
	slices.SortFunc(seeds, func(a, b api.Host) int {
		if rendezvous(a.ID, id) > rendezvous(b.ID, id) {
			return -1
		}
		return 1
	})
	for _, s := range seeds {
		if s.ID == t.peer.cfg.Host.ID {
			return api.Host{}, false
		}
		if !t.peer.unreachable(s.Addr) {
			return s, true
		}
	}
	return api.Host{}, false
}

// tend watches what the neighbours hold, and nobody else. A dead scheduler's last list stays, and then the seed that
// stands in for it is asked too, which makes it fetch the blob.
func (t *task) tend(ctx context.Context) {
	wanted := map[dispatch.ParentID]bool{}
	var asked dispatch.ParentID // to fetch
	if t.planner.Missing() > 0 {
		for _, h := range t.neighbours {
			wanted[dispatch.ParentID(h.Addr)] = h.ID != t.peer.cfg.Host.ID
		}
		for id := range t.visitors {
			wanted[id] = string(id) != t.peer.cfg.Host.Addr
		}
		if seed, ok := t.substitute(); ok && t.session == nil {
			asked = dispatch.ParentID(seed.Addr)
			wanted[asked] = true
		}
	}
	for id, stop := range t.watches {
		if !wanted[id] {
			stop()
			delete(t.watches, id)
			t.planner.RemoveParent(id)
		}
	}
	for id, ok := range wanted {
		if !ok || t.watches[id] != nil || !t.planner.AddParent(id) {
			continue
		}
		watchCtx, stop := context.WithCancel(ctx)
		t.watches[id] = stop
		spec := t.blob.ask(t.peer.cfg.Host.Addr, id == asked) // here, since a later reader may bring another origin
		t.workers.Go(func() { t.watch(watchCtx, id, spec) })
	}
}

// named takes the list of neighbours. It has those who came to watch, too, as far as they are neighbours still.
func (t *task) named(hosts []api.Host) {
	t.neighbours = hosts
	clear(t.visitors)
}

// maxVisitors bounds the neighbours that nobody but themselves named.
const maxVisitors = 64

// visited takes note of a peer that watches what this one holds: it is a neighbour, and may be asked too. The scheduler tells only one side of a
// new pair, which goes to the other at once.
func (t *task) visited(addr string) {
	if len(t.visitors) < maxVisitors {
		t.visitors[dispatch.ParentID(addr)] = true
	}
}

// watch feeds the planner with what a parent holds until the parent falls silent or the task needs it no more.
func (t *task) watch(ctx context.Context, id dispatch.ParentID, spec json.RawMessage) {
	for ctx.Err() == nil {
		began := time.Now()
		err := t.peer.wire.Watch(ctx, string(id), t.blob.Digest, spec, func(h transfer.Have) error {
			t.post(func() { t.parentHas(id, h) })
			return nil
		})
		if ctx.Err() != nil {
			return
		}
		t.peer.log.Debug("parent lost", "parent", id, "digest", t.blob.Digest, "error", err)
		t.post(func() {
			t.planner.ParentReset(id)
			delete(t.visitors, id)
		})
		if time.Since(began) < 5*time.Second && !errors.Is(err, piece.ErrAbsent) { // who says that has answered
			t.peer.markUnreachable(string(id))
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (t *task) parentHas(id dispatch.ParentID, h transfer.Have) {
	if h.All != nil {
		t.planner.ParentReset(id)
		for _, r := range runs(h.All) {
			t.planner.ParentHas(id, toRun(r))
		}
	}
	if t.session == nil {
		for _, addr := range h.Watchers {
			t.visited(addr)
		}
	}
	for _, i := range h.Added {
		t.planner.ParentHas(id, dispatch.Run{First: i, End: i + 1})
	}
	for _, i := range h.Removed {
		t.planner.ParentLost(id, i)
	}
}

// digestsAtOnce is how many pieces' digests are asked for before the loop looks again.
const digestsAtOnce = 64

// askDigests asks the seeds among the parents for the digests of the pieces they hold, when the blob has no chunk map and no
// scheduler lives to relay them. A seed may be asked because it vouches for what it read; nobody else's word counts.
func (t *task) askDigests(ctx context.Context) {
	if t.cm != nil || t.session != nil || t.asking {
		return
	}
	for _, id := range t.planner.Parents() {
		if !t.peer.isSeed(string(id)) {
			continue
		}
		if ask := t.planner.Unverifiable(id, digestsAtOnce); len(ask) > 0 {
			t.asking = true
			t.workers.Go(func() { t.readDigests(ctx, id, ask) })
			return
		}
	}
}

func (t *task) readDigests(ctx context.Context, id dispatch.ParentID, ask []piece.Index) {
	for _, i := range ask {
		groups, err := t.peer.wire.Groups(ctx, string(id), t.blob.Digest, i)
		if err != nil {
			t.post(func() { t.planner.ParentLost(id, i) }) // until its next word
			break
		}
		root := piece.Root(groups)
		t.post(func() { t.learn([]api.PieceDigest{{Piece: int(i), Digest: root[:]}}) })
	}
	t.post(func() { t.asking = false })
}
