package peer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/attribute"

	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/transfer"
	"github.com/shoal-project/shoal/scheduler/api"
	"github.com/shoal-project/shoal/tracing"
)

// start carries out one request of the planner.
func (t *task) start(ctx context.Context, r dispatch.Request) {
	if r.Parent == "" {
		leased := t.session != nil && !t.lastResort
		from, authorization, err := t.blob.at(t.authorization)
		if !leased {
			t.peer.metrics.selfReads.Inc()
		}
		hurry := &hurry{run: r.Run, on: make(chan struct{})}
		t.hurries = append(t.hurries, hurry)
		if r.Demanded || t.awaited(r.Run) {
			hurry.up()
		}
		how := reading{t.checks(r.Run), origin{from, authorization, err, hurry}, leased}
		if how.checks == nil && (r.Demanded || t.partial()) {
			how.checks = t.claims(r.Run)
		}
		t.workers.Go(func() { t.readSource(ctx, r, how) })
		return
	}
	check, ok := t.verifier(r.Run.First)
	if !ok {
		panic(fmt.Sprintf("piece %d of %s is asked without a digest", r.Run.First, t.blob.Digest))
	}
	ctx, giveUp := context.WithCancelCause(ctx)
	t.asked[r.Run.First] = giveUp
	t.workers.Go(func() {
		defer giveUp(nil)
		t.readParent(ctx, r, check)
	})
}

// errLate ends a request that takes much longer than others.
var errLate = fmt.Errorf("others are quicker: %w", piece.ErrTransient)

// hedge gives up what takes too long; the planner then asks others.
func (t *task) hedge(now time.Time) {
	for _, r := range t.planner.Overdue(now) {
		t.peer.log.Debug("request is late", "digest", t.blob.Digest, "piece", r.Run.First, "parent", r.Parent)
		t.asked[r.Run.First](errLate)
	}
}

// leased takes the right to read a run from the origin, as far as the blob reaches. Unless it is for readers who wait for just that, it
// means that somebody wants all of the blob.
func (t *task) leased(run dispatch.Run, demanded bool) {
	run.First, run.End = max(run.First, 0), min(run.End, piece.Index(t.st.Layout().Count()))
	if run.First >= run.End {
		return
	}
	t.moved = time.Now()
	t.unfail()
	if demanded {
		t.hurryUp(run)
		t.planner.LeaseFirst(run)
		return
	}
	t.fetchAll()
	t.planner.Lease(run)
}

// readParent gets one piece from a parent, verifies and stores it.
func (t *task) readParent(ctx context.Context, r dispatch.Request, check func([]byte) ([]piece.Digest, error)) {
	i := r.Run.First
	off, length := t.st.Layout().Range(i)
	buf := t.peer.buffers.take(length)
	defer t.peer.buffers.give(buf)
	data := (*buf)[:length]
	outer := ctx
	ctx, span := tracing.Start(ctx, "fetch piece", attribute.Int("shoal.piece", int(i)), attribute.String("shoal.parent", string(r.Parent)))
	err := t.peer.wire.Fetch(ctx, transfer.Wanted{Addr: string(r.Parent), Digest: t.blob.Digest, Off: off, Buf: data, Demanded: r.Demanded, Alone: r.Alone, Came: t.pulse.came})
	var storeErr error
	if err == nil {
		var groups []piece.Digest
		if groups, err = check(data); err == nil {
			storeErr = t.st.Write(i, data, groups)
		}
	}
	tracing.End(outer, span, err)
	outcome := t.outcome(err)
	if outcome == dispatch.Corrupt {
		t.peer.log.Warn("piece from parent is corrupt", "digest", t.blob.Digest, "piece", i, "parent", r.Parent)
		t.peer.metrics.corruptPeer.Inc()
		_ = t.peer.wire.Suspect(ctx, string(r.Parent), t.blob.Digest, i) // a favour to the parent; it may be gone
	}
	t.post(func() {
		delete(t.asked, i)
		switch {
		case storeErr != nil:
			t.planner.Done(time.Now(), r, dispatch.Transient)
			t.storeFailed(storeErr)
		case outcome == dispatch.OK:
			t.peer.metrics.fromPeer.Add(float64(length))
			t.given[r.Parent] += length
			t.planner.Done(time.Now(), r, outcome)
			t.got(i)
			t.lastResort = false // others move again
		default:
			t.planner.Done(time.Now(), r, outcome)
		}
	})
}

// outcome turns an error of a parent into the planner's terms.
func (t *task) outcome(err error) dispatch.Outcome {
	count := func(class string, o dispatch.Outcome) dispatch.Outcome {
		t.peer.metrics.requestFailures.WithLabelValues(class).Inc()
		return o
	}
	switch {
	case err == nil:
		return dispatch.OK
	case errors.Is(err, piece.ErrMismatch):
		return count("corrupt", dispatch.Corrupt)
	case errors.Is(err, errLate):
		return count("late", dispatch.Late)
	case errors.Is(err, transfer.ErrBusy):
		return dispatch.Busy // nothing failed; the sender counts it
	case errors.Is(err, transfer.ErrShared):
		return dispatch.Shared // likewise
	case errors.Is(err, piece.ErrAbsent):
		return count("absent", dispatch.Absent)
	default:
		return count("transient", dispatch.Transient)
	}
}

// Classes of failure as the scheduler knows them.
const (
	failureTransient = "transient"
	failureDenied    = "denied"
	failureAbsent    = "absent"
	failureCorrupt   = "corrupt"
)

func failureOf(err error) string {
	switch {
	case errors.Is(err, store.ErrNoSpace):
		return failureDenied // trying again here is of no use, another host may succeed
	case errors.Is(err, piece.ErrMismatch):
		return failureCorrupt
	case errors.Is(err, piece.ErrDenied):
		return failureDenied
	case errors.Is(err, piece.ErrAbsent):
		return failureAbsent
	default:
		return failureTransient
	}
}

// origin is where to read, or why this host must not.
type origin struct {
	blob          source.Blob
	authorization string
	err           error
	hurry         *hurry
}

// reading says how a run of pieces is read from the origin.
type reading struct {
	checks []check // of the run's pieces; nil when not all digests are known, and the blob has to be read as a whole
	origin origin
	leased bool
}

// check verifies a piece and returns the digests of its groups.
type check func(data []byte) ([]piece.Digest, error)

// checks returns the checks of a run's pieces, or nil when the blob has to be read as a whole: until somebody came to its end and told the
// digest of the last piece, those of the others are only claimed.
func (t *task) checks(run dispatch.Run) []check {
	if n := len(t.digests); t.cm == nil && (n == 1 || t.digests[n-1] == nil) {
		return nil
	}
	var out []check
	for i := run.First; i < run.End; i++ {
		c, ok := t.verifier(i)
		if !ok {
			return nil
		}
		out = append(out, c)
	}
	return out
}

// readSource reads a run of pieces from the origin and reports how that went: of a lease, to the scheduler.
func (t *task) readSource(ctx context.Context, r dispatch.Request, how reading) {
	var err error
	traced, span := tracing.Start(ctx, "read origin", attribute.Int("shoal.first", int(r.Run.First)), attribute.Int("shoal.end", int(r.Run.End)))
	if how.checks != nil {
		err = t.readRun(traced, r.Run, how)
	} else {
		err = t.readWhole(traced, how.origin)
	}
	tracing.End(ctx, span, err)
	if errors.Is(err, piece.ErrMismatch) {
		t.peer.metrics.corruptSource.Inc()
	}
	t.post(func() {
		t.hurries = slices.DeleteFunc(t.hurries, func(h *hurry) bool { return h == how.origin.hurry })
		outcome := dispatch.OK
		if err != nil {
			outcome = dispatch.Transient
		}
		t.planner.Done(time.Now(), r, outcome)
		t.urgent = true
		if err == nil || ctx.Err() != nil {
			return
		}
		if errors.As(err, new(*storeError)) {
			t.storeFailed(err)
		}
		if t.session != nil && how.leased {
			t.session.Send(api.Event{Failed: &api.LeaseFailed{Task: t.blob.Digest.String(),
				Run: api.Run{int(r.Run.First), int(r.Run.End)}, Failure: failureOf(err), Text: err.Error()}})
			return
		}
		t.sourceFailed(failureOf(err), err.Error())
	})
}

// storeError marks an error of the own store among those of the origin.
type storeError struct{ err error }

func (e *storeError) Error() string { return e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

// readRun reads pieces whose digests are known; each is verified by itself.
func (t *task) readRun(ctx context.Context, run dispatch.Run, how reading) error {
	l := t.st.Layout()
	off, _ := l.Range(run.First)
	last, length := l.Range(run.End - 1)
	body, err := t.fetch(ctx, off, last+length-off, how.origin)
	if err != nil {
		return err
	}
	defer body.Close()
	for i := run.First; i < run.End; i++ {
		if err := t.readPiece(body, i, how.checks[i-run.First]); err != nil {
			return err
		}
	}
	return nil
}

// readWhole reads a blob without a chunk map in order. Every piece but the last is stored as it comes, which is all that can be said of
// it; the last one, and with it the blob, only when the digest of the whole was right. What a URL had has no such digest: there the
// source lets out the last byte only when the origin still had the same content at the end.
func (t *task) readWhole(ctx context.Context, o origin) error {
	hashed := !piece.IsURL(t.blob.Digest)
	if hashed && t.blob.Digest.Algorithm() != digest.SHA256 {
		return fmt.Errorf("blob %s: only sha256 digests can be verified here: %w", t.blob.Digest, piece.ErrAbsent)
	}
	l := t.st.Layout()
	body := gaps{task: t, origin: o}
	defer body.close()
	h := sha256.New()
	for i := range piece.Index(l.Count()) {
		if hashed && body.skip(h, i) {
			continue
		}
		err := body.seek(ctx, i)
		if err == nil {
			err = t.readPiece(&body, i, func(data []byte) ([]piece.Digest, error) {
				if hashed {
					_, _ = h.Write(data) // a hash never fails to write
				}
				if hashed && int(i) == l.Count()-1 {
					if err := verifyBlob(t.blob.Digest, digest.NewDigestFromBytes(digest.SHA256, h.Sum(nil))); err != nil {
						return nil, err
					}
				}
				return t.claim(i, data)
			})
		}
		if err != nil {
			t.dropIfWrong(err)
			return err
		}
	}
	return nil
}

// dropIfWrong drops all of a blob without chunk map when a part of it was wrong: what came before is as wrong, and nothing of it may be
// read again.
func (t *task) dropIfWrong(err error) {
	if errors.Is(err, piece.ErrMismatch) {
		t.post(func() { t.drop(err) })
	}
}

// readPiece reads piece i from the body, has it verified, and stores it.
func (t *task) readPiece(body io.Reader, i piece.Index, verify func([]byte) ([]piece.Digest, error)) error {
	off, length := t.st.Layout().Range(i)
	buf := t.peer.buffers.take(length)
	defer t.peer.buffers.give(buf)
	data := (*buf)[:length]
	if _, err := io.ReadFull(body, data); err != nil {
		return fmt.Errorf("origin of %s, at byte %d: %w", t.blob.Digest, off, err)
	}
	groups, err := verify(data)
	if err != nil {
		return fmt.Errorf("origin of %s: %w", t.blob.Digest, err)
	}
	if err := t.st.Write(i, data, groups); err != nil {
		return &storeError{err}
	}
	t.post(func() {
		t.peer.metrics.fromSource.Add(float64(length))
		t.reading = true
		t.fromSource += length
		t.got(i)
	})
	return nil
}

// fetch opens a range at the origin. The stream keeps to the host's limits, and reports to the loop that bytes arrive, which keeps a
// lease alive. What nobody waits for is held back while others wait for something.
func (t *task) fetch(ctx context.Context, off, length int64, o origin) (io.ReadCloser, error) {
	if o.err != nil {
		return nil, o.err
	}
	body := newSteady(ctx, func(ctx context.Context, at, left int64) (io.ReadCloser, error) {
		if w := o.blob.Web; at > off && w != nil && w.Confirm && !w.Validator.Resumable() {
			// Nothing says that this would be the rest of what has come.
			return nil, fmt.Errorf("broke off at byte %d, and cannot be gone on with: %w", at, source.ErrRangeIgnored)
		}
		return t.peer.source.Fetch(ctx, o.blob, at, left, o.authorization)
	}, off, length)
	asked := time.Now()
	body.again = func(reason string) { t.peer.metrics.askedAgain.WithLabelValues(reason).Inc() }
	if err := body.reopen(); err != nil {
		return nil, err
	}
	chain := t.peer.cfg.Limits.FromOrigin()
	return &beating{ReadCloser: body, step: func() int { return min(chain.Step(), t.peer.gate.step()) }, beat: func(first bool) {
		took := time.Since(asked)
		t.post(func() {
			if t.reading = true; first {
				t.answered(took)
			}
		})
	},
		pace: func(n int) error {
			t.pulse.came(n)
			t.peer.gate.pass(ctx, n, o.hurry.on)
			return chain.Pace(ctx, t.blob.Digest.String(), n)
		}}, nil
}

// answered takes note of how long the origin took to the first byte of something.
func (t *task) answered(took time.Duration) {
	if t.firstByte == 0 {
		t.firstByte = took
	}
	t.firstByte += (took - t.firstByte) / 4
}

// beating calls beat when bytes were read, the first time and then a few times a second, and pace for all of them.
type beating struct {
	io.ReadCloser
	step func() int
	pace func(n int) error
	beat func(first bool)
	last time.Time
}

func (b *beating) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), b.step())])
	if n == 0 {
		return n, err
	}
	if now := time.Now(); now.Sub(b.last) > 250*time.Millisecond {
		first := b.last.IsZero()
		b.last = now
		b.beat(first)
	}
	if paceErr := b.pace(n); err == nil {
		err = paceErr
	}
	return n, err
}

// maxHiccups is how many failures in passing, each retried later than the one before, readers wait for without a word.
const maxHiccups = 3

// sourceFailed takes note that nobody can read the rest from the origin. When a peer may still have it, readers wait until
// their own deadline; when the origin's word is final and nobody holds anything, they are told.
func (t *task) sourceFailed(failure, text string) {
	if held := t.st.Have(); failure == failureCorrupt && t.cm == nil && held.Count() > 0 && !held.Full() {
		t.drop(fmt.Errorf("%s: %w", text, piece.ErrMismatch)) // what is held came from there
		return
	}
	switch failure {
	case failureTransient:
		t.hiccups++
	case failureDenied:
		t.authorization = "" // a token that has run out; who has another one brings it
	}
	if t.planner.Reachable() || failure == failureTransient && t.hiccups < maxHiccups {
		return
	}
	class := piece.ErrTransient
	switch failure {
	case failureDenied:
		class = piece.ErrDenied
	case failureAbsent:
		class = piece.ErrAbsent
	case failureCorrupt:
		class = piece.ErrMismatch
	}
	t.fail(fmt.Errorf("%s: %w", text, class))
}

// buffers lends out buffers of piece length.
type buffers struct{ pools sync.Map } // of *sync.Pool by capacity

func (b *buffers) take(length int64) *[]byte {
	size := piece.SizeFor(0)
	for size < length {
		size *= 2
	}
	pool, _ := b.pools.LoadOrStore(size, &sync.Pool{New: func() any {
		buf := make([]byte, size)
		return &buf
	}})
	return pool.(*sync.Pool).Get().(*[]byte)
}

func (b *buffers) give(buf *[]byte) {
	if pool, ok := b.pools.Load(int64(cap(*buf))); ok {
		pool.(*sync.Pool).Put(buf)
	}
}
