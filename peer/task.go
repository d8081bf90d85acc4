package peer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/scheduler/api"
	"github.com/shoal-project/shoal/tracing"
)

// linger is how long the task of a complete blob waits for the next reader: who reads a blob range by range opens it
// each time, and a new task looks over all pieces.
const linger = 5 * time.Second

// task is the download of one blob. run is its loop: it owns every field below "loop", and others reach it through post.
type task struct {
	peer *Peer
	blob Blob
	refs int // readers and others that keep it alive; guarded by peer.mu

	ready   chan struct{} // closed when the following are set, for good
	openErr error
	st      *store.Blob
	before  *piece.Set  // what was held when the task began
	read    trail       // what readers have read
	asker   trace.Span  // of who opened the blob first; until run begins
	trace   string      // the task's span, for other programs; set by run
	mapped  atomic.Bool // the pieces are right by a chunk map, which says nothing to those without

	mailMu sync.Mutex // guards mail, ended
	mail   []func()
	ended  bool
	ending chan struct{} // closed when no more mail is read
	wake   chan struct{}

	failMu sync.Mutex // guards failed, failCh
	failed error
	failCh chan struct{} // closed when failed is set

	pulse *pulse

	first Blob // as who began the task named it; it does not change

	// loop
	authorization string
	cm            *chunkmap.Map
	digests       []*piece.Digest // by piece; only for tasks without chunk map
	planner       *dispatch.Planner
	workers       sync.WaitGroup
	readers       map[*Reader]waited
	whole         bool       // all of it is fetched, not only what readers of ranges wait for
	hurries       []*hurry   // of the reads of the origin under way
	told          *piece.Set // pieces the scheduler was told that they are waited for
	toldAt        time.Time
	rushing       bool                                    // the gate is closed because of this task
	rushFrom      time.Time                               // since when readers wait; zero while they do not
	rushTill      time.Time                               // until when the gate stays closed since they do not
	neighbours    []api.Host                              // as last named by the scheduler
	asked         map[piece.Index]context.CancelCauseFunc // requests to parents, by what gives them up
	visitors      map[dispatch.ParentID]bool              // peers that came to watch this one, until they fall silent
	watches       map[dispatch.ParentID]context.CancelFunc
	session       *api.Session // where the task is joined
	governed      bool         // a scheduler has heard of it
	have          *piece.Set   // as last reported
	freshDigests  []api.PieceDigest
	urgent        bool          // who hears of it goes on: readers elsewhere with the digests in freshDigests, or the scheduler with the next lease
	reading       bool          // bytes arrived from the origin since the last report
	firstByte     time.Duration // that the origin takes, a moving mean
	crossed       bool          // a piece came that was leased to be fetched across the border, likewise
	reported      time.Time
	moved         time.Time                   // when a piece came last, or somebody asked
	comes         time.Time                   // when the scheduler said last that others fetch what this host waits for
	wantedFrom    time.Time                   // since when something is wanted; zero while nothing is
	left          time.Time                   // when a reference was given up last
	asking        bool                        // a seed is being asked for digests
	lastResort    bool                        // the origin is read without leases although a scheduler lives
	hiccups       int                         // of the origin since a piece came last
	dropped       bool                        // the store's blob is gone: a later reader needs a new task
	given         map[dispatch.ParentID]int64 // bytes by parent since the task began
	fromSource    int64                       // bytes from the origin since then
	yields        bool                        // it ends as soon as nobody refers to it
	unprepared    bool                        // the blob was complete, and no more is: what it is verified against has to be learned
}

func newTask(p *Peer, b Blob, authorization string) *task {
	return &task{peer: p, blob: b, first: b, authorization: authorization, ready: make(chan struct{}), wake: make(chan struct{}, 1), ending: make(chan struct{}),
		pulse: newPulse(), failCh: make(chan struct{}), readers: map[*Reader]waited{}, watches: map[dispatch.ParentID]context.CancelFunc{},
		asked: map[piece.Index]context.CancelCauseFunc{}, visitors: map[dispatch.ParentID]bool{}, given: map[dispatch.ParentID]int64{}}
}

// post has f run in the loop, soon; it never blocks. It reports whether the task still lives.
func (t *task) post(f func()) bool {
	t.mailMu.Lock()
	defer t.mailMu.Unlock()
	if t.ended {
		return false
	}
	t.mail = append(t.mail, f)
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return true
}

// readMail runs what was posted.
func (t *task) readMail() {
	t.mailMu.Lock()
	mail := t.mail
	t.mail = nil
	t.mailMu.Unlock()
	for _, f := range mail {
		f()
	}
}

// release gives up a reference.
func (t *task) release() {
	t.peer.mu.Lock()
	t.refs--
	t.peer.mu.Unlock()
	t.post(func() { t.left = time.Now() })
}

// abandon ends a task that was never run.
func (t *task) abandon(err error) {
	t.forget()
	t.openErr = fmt.Errorf("blob %s: %w", t.blob.Digest, err)
	t.end()
	close(t.ready)
}

// end refuses further mail.
func (t *task) end() {
	t.mailMu.Lock()
	defer t.mailMu.Unlock()
	if !t.ended {
		close(t.ending)
	}
	t.ended, t.mail = true, nil
}

// fail tells the readers that no more is to be expected. A later piece or another try clears it.
func (t *task) fail(err error) {
	t.failMu.Lock()
	defer t.failMu.Unlock()
	if t.failed == nil {
		t.failed = fmt.Errorf("blob %s: %w", t.blob.Digest, err)
		close(t.failCh)
		if !errors.Is(err, ErrClosed) {
			t.peer.log.Warn("task fails", "digest", t.blob.Digest, "error", err)
		}
	}
}

// unfail clears a failure and reports whether there was one. The end of the task is final.
func (t *task) unfail() bool {
	t.failMu.Lock()
	defer t.failMu.Unlock()
	failed := t.failed != nil && !errors.Is(t.failed, ErrClosed)
	if failed {
		t.failed, t.failCh = nil, make(chan struct{})
	}
	return failed
}

// failure returns what ended the task for readers, and a channel that is closed when that happens.
func (t *task) failure() (failing <-chan struct{}, err error) {
	t.failMu.Lock()
	defer t.failMu.Unlock()
	return t.failCh, t.failed
}

// run opens the store's blob and downloads what is missing until nobody needs the task any more.
func (t *task) run(ctx context.Context) {
	t.peer.metrics.tasks.Inc()
	defer t.peer.metrics.tasks.Dec()
	ctx = trace.ContextWithSpan(ctx, t.asker)
	outer := ctx
	ctx, span := tracing.Start(ctx, "task", attribute.String("shoal.blob", t.blob.Digest.String()), attribute.Int64("shoal.size", t.blob.Size))
	t.asker, t.trace = nil, tracing.Parent(ctx)
	err := t.create()
	defer func() { tracing.End(outer, span, err) }()
	if err == nil {
		err = t.vet(ctx)
	}
	if err != nil {
		if t.st != nil {
			_ = t.st.Close() // a reference for reading: there is nothing to lose
		}
		t.abandon(err)
		return
	}
	t.before, t.read = t.st.Have(), newTrail(t.st.Layout().Count())
	t.have, t.moved, t.left = t.st.Have(), time.Now(), time.Now()
	close(t.ready)
	ctx, cancel := context.WithCancel(ctx)
	t.prepare(ctx)
	t.loop(ctx)
	cancel()
	t.workers.Wait()
	t.calm()
	t.close()
}

// prepare learns what the pieces are verified against, makes the planner, and joins at the scheduler.
func (t *task) prepare(ctx context.Context) {
	t.unprepared = false
	if !t.st.Complete() {
		t.cm = t.loadMap(ctx)
	}
	t.mapped.Store(t.cm != nil)
	layout := t.st.Layout()
	cfg := t.peer.cfg.Dispatch
	var known *piece.Set
	if t.cm == nil {
		cfg.SourceRuns, cfg.SourceBytes = 1, layout.Size // read as a whole or not at all
		t.digests = make([]*piece.Digest, layout.Count())
		if known = piece.NewSet(layout.Count()); t.single() {
			known.AddAll()
		}
	}
	if len(t.peer.cfg.Peers) > 0 {
		t.neighbours = t.peer.neighbours()
	}
	t.session, t.moved = nil, time.Now()
	t.planner = dispatch.New(cfg, layout, t.st.Have(), known, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	t.reuse(ctx)
	t.rehome()
}

// loop plans, waits for something to happen, and takes note of it.
func (t *task) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil && !t.dropped && !t.finished() {
		if t.unprepared {
			t.prepare(ctx)
		}
		now := time.Now()
		t.demand(now) // first: what is wanted decides all else
		t.chooseMode(now)
		t.tend(ctx)
		t.askDigests(ctx)
		t.hedge(now)
		for _, r := range t.planner.Next(now) {
			t.start(ctx, r)
		}
		t.rush(now)
		t.report(now)
		timer.Reset(t.wait(now))
		select {
		case <-t.wake:
			t.readMail()
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// wait returns how long the loop may sleep when nothing happens.
func (t *task) wait(now time.Time) time.Duration {
	if t.rushing && t.rushFrom.IsZero() {
		return min(t.waitMore(now), max(t.rushTill.Sub(now), time.Millisecond))
	}
	return t.waitMore(now)
}

// waitMore is wait for all that has nothing to do with the gate.
func (t *task) waitMore(now time.Time) time.Duration {
	if t.planner.Missing() == 0 && len(t.watches) == 0 && !t.unreported() {
		return time.Second
	}
	d := 250 * time.Millisecond
	if t.unreported() {
		d = min(d, max(t.reportDue().Sub(now), 0))
	}
	if at := t.planner.NextWake(now); !at.IsZero() {
		d = min(d, at.Sub(now))
	}
	return d
}

// finished reports, and settles under the peer's lock, that the task is needed no more. A seed goes on for as long as pieces
// come, since it reads for others.
func (t *task) finished() bool {
	idle, patience := t.left, min(t.peer.cfg.Grace, linger)
	if t.planner.Missing() > 0 {
		patience = t.peer.cfg.Grace
		if t.peer.cfg.Host.Seed {
			idle = t.moved
		}
	}
	if !t.yields && (t.unreported() || time.Since(idle) < patience) {
		return false
	}
	t.peer.mu.Lock()
	defer t.peer.mu.Unlock()
	if t.refs > 0 {
		return false
	}
	t.farewell(failureTransient, "the task has ended")
	delete(t.peer.tasks, t.blob.Digest)
	return true
}

// farewell tells the scheduler what will not be read and what stays behind. It goes before the blob can get a new task, whose
// join it must not undo.
func (t *task) farewell(failure, text string) {
	if t.session == nil {
		return
	}
	id, held := t.blob.Digest.String(), t.st.Have()
	if failure == failureCorrupt { // stays a member that was refused, so that it is not asked again at once, and wants nothing
		t.session.Send(api.Event{Progress: &api.Progress{Task: id, Lost: runs(t.have), Done: true}})
	}
	for _, run := range t.planner.Leased() {
		t.session.Send(api.Event{Failed: &api.LeaseFailed{Task: id, Run: api.Run{int(run.First), int(run.End)}, Failure: failure, Text: text}})
	}
	for _, run := range t.planner.Crossings() {
		t.session.Send(crossingFailed(id, api.Run{int(run.First), int(run.End)}, text))
	}
	switch {
	case failure == failureCorrupt:
	case held.Count() == 0:
		t.session.Send(api.Event{Leave: &api.Leave{Task: id}})
	case !held.Full():
		t.session.Send(api.Event{Join: &api.Join{Task: t.blob.task(t.cm == nil), Have: runs(held)}})
	}
	t.session = nil
}

// drop ends the task because what it stored of the blob was wrong. The next reader begins anew.
func (t *task) drop(err error) {
	if t.dropped {
		return
	}
	t.dropped = true
	_ = t.st.Drop() // fails only when the disk does, and then so will the next use
	t.farewell(failureCorrupt, err.Error())
	t.forget()
	t.fail(err) // last: a reader who asks again at once finds the way free
}

// forget makes room for a new task of the blob.
func (t *task) forget() {
	t.peer.mu.Lock()
	defer t.peer.mu.Unlock()
	if t.peer.tasks[t.blob.Digest] == t {
		delete(t.peer.tasks, t.blob.Digest)
	}
}

func (t *task) close() {
	t.forget()
	t.fail(ErrClosed)
	t.end()
	_ = t.st.Close() // a reference for reading: there is nothing to lose
}

// offer takes what a further reader brings: credentials, and perhaps the place of a chunk map. Credentials go to nobody but the registry and
// repository that they came for: who names another one names both. What had failed is tried again.
func (t *task) offer(b Blob, authorization string, failed bool) {
	switch at := &t.blob.Origin; {
	case at.none():
		*at, t.authorization = b.Origin, authorization
	case b.Origin.Registry == "" || at.Registry == "":
	case b.Origin.Registry != at.Registry || b.Origin.Repository != at.Repository:
		at.Registry, at.Repository, t.authorization = b.Origin.Registry, b.Origin.Repository, authorization
	case authorization != "":
		t.authorization = authorization
	}
	if b.Access.URL != "" {
		t.blob.Access = b.Access
	}
	t.moved, t.yields = time.Now(), false
	if failed {
		t.hiccups, t.session = 0, nil
		t.planner.Retry()
		t.rehome()
	}
}

// single reports whether the blob's own digest checks its only piece.
func (t *task) single() bool { return t.st.Layout().Count() == 1 && !piece.IsURL(t.blob.Digest) }

// verifier returns the check that piece i must pass before it is stored; it returns the digests of the piece's groups. ok is
// false when nothing is known to check against.
func (t *task) verifier(i piece.Index) (check func(data []byte) ([]piece.Digest, error), ok bool) {
	switch {
	case t.cm != nil:
		want := t.cm.PieceDigest(t.st.Layout(), i)
		return func(data []byte) ([]piece.Digest, error) { return piece.Verify(i, data, want) }, true
	case t.digests[i] != nil:
		want := *t.digests[i]
		return func(data []byte) ([]piece.Digest, error) { return piece.Verify(i, data, want) }, true
	case t.single():
		return func(data []byte) ([]piece.Digest, error) {
			return piece.HashGroups(data), verifyBlob(t.blob.Digest, t.blob.Digest.Algorithm().FromBytes(data))
		}, true
	default:
		return nil, false
	}
}

func verifyBlob(want, got digest.Digest) error {
	if got != want {
		return &piece.MismatchError{Unit: "blob", Want: want.Encoded(), Got: got.Encoded()}
	}
	return nil
}

// learn takes the digests of who reads the blob now. When they contradict what is held, that came from a reader who did not
// come to the blob's end, and nothing of it can be believed; the last one may not be held before this is known.
func (t *task) learn(digests []api.PieceDigest) {
	if t.cm != nil || t.planner.Missing() == 0 || t.single() {
		return
	}
	for _, d := range digests {
		if d.Piece < 0 || d.Piece >= len(t.digests) || len(d.Digest) != len(piece.Digest{}) {
			continue
		}
		want, i := (*piece.Digest)(d.Digest), piece.Index(d.Piece)
		if groups, err := t.st.Groups(i); err == nil && piece.Root(groups) != *want {
			t.drop(&piece.MismatchError{Unit: "piece", Index: i, Want: want.String(), Got: piece.Root(groups).String()})
			return
		}
		t.digests[i] = want
		t.planner.Know(i)
	}
}

// coming takes the scheduler's word that others fetch what this host waits for.
func (t *task) coming() {
	t.comes = time.Now()
	t.pulse.beat()
}

// got takes note of a piece that is now in the store.
func (t *task) got(i piece.Index) {
	t.pulse.beat()
	t.crossed = t.crossed || t.planner.Crosses(i)
	t.planner.Got(i)
	t.moved, t.hiccups = time.Now(), 0
	t.unfail()
	t.settled()
}

// resync compares the planner's view with the store's after a bad piece was dropped there.
func (t *task) resync() {
	now := t.st.Have()
	for i := range piece.Index(now.Len()) {
		if !now.Has(i) {
			t.planner.Lost(i)
		}
	}
	t.moved = time.Now()
	t.unprepared = t.cm == nil && t.planner.Missing() > 0 && t.have.Full()
}

// storeFailed ends the task for its readers when the store cannot take pieces; they have other ways to the bytes.
func (t *task) storeFailed(err error) {
	if errors.Is(err, store.ErrNoSpace) {
		err = fmt.Errorf("%w; free disk or lower store.max_percent, meanwhile the origin is read directly", err)
	}
	t.fail(err)
}
