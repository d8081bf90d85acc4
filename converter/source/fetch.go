package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"
)

const (
	maxDelay   = 30 * time.Second // between two requests
	maxAsked   = 5 * time.Minute  // that a service may ask us to wait
	maxResumed = 1000             // times one file goes on after a cut
)

var errStalled = errors.New("it was silent for too long")

// transient is an error after which it helps to ask again.
type transient struct {
	err   error
	why   string        // in a few words, for those who wait
	after time.Duration // that the service asks to wait
}

func (e *transient) Error() string { return e.err.Error() }
func (e *transient) Unwrap() error { return e.err }

// delay is how long to wait after the n-th failure in a row, counted from 0: double each time, with jitter, so that those who
// failed together do not come back together.
func (s *session) delay(n int, asked time.Duration) time.Duration {
	d := maxDelay
	if n < 16 {
		d = min(s.RetryDelay<<n, maxDelay)
	}
	return max(d/2+rand.N(d/2+1), asked)
}

// pause waits before the next try. It returns the error if there is to be none.
func (s *session) pause(ctx context.Context, n int, err error) error {
	t, ok := errors.AsType[*transient](err)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case !ok:
		return err
	case n >= s.Retries:
		return t.err
	case t.after > maxAsked:
		return fmt.Errorf("%w; it asks to wait for %s, run again then", t.err, t.after)
	}
	delay := s.delay(n, t.after)
	if s.Waiting != nil {
		s.Waiting(t.why, delay)
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// retry calls do until it works, fails for good, or failed too often.
func (s *session) retry(ctx context.Context, do func(context.Context) error) error {
	for n := 0; ; n++ {
		w := s.watch(ctx)
		err := w.verdict(do(w.ctx))
		w.stop()
		if err == nil {
			return nil
		}
		if err = s.pause(ctx, n, err); err != nil {
			return err
		}
	}
}

// watch ends a request that hears nothing for too long.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
}

func (s *session) watch(ctx context.Context) *watch {
	w := &watch{stall: s.Stall}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(w.stall, func() { w.cancel(errStalled) })
	return w
}

func (w *watch) rest()  { w.timer.Stop() }
func (w *watch) begin() { w.timer.Reset(w.stall) }

func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// verdict tells a request that was ended for its silence from one that the caller ended.
func (w *watch) verdict(err error) error {
	if err != nil && errors.Is(context.Cause(w.ctx), errStalled) {
		return &transient{err: classify(ErrService, "%w: %w", errStalled, err), why: "the source is silent"}
	}
	return err
}

// span is the half-open range of bytes of a file that is wanted.
type span struct {
	from int64
	to   int64 // 0: the end, wherever it is
}

// whole reports whether all of the file is wanted, so that its size and checksums can be compared.
func (s span) whole() bool { return s == span{} }

// header is the range as HTTP has it.
func (s span) header() string {
	if s.to == 0 {
		return fmt.Sprintf("bytes=%d-", s.from)
	}
	return fmt.Sprintf("bytes=%d-%d", s.from, s.to-1)
}

// part is what a service answers to a request for a file from an offset on.
type part struct {
	body      io.ReadCloser
	rangeless bool       // the service sent the whole file, and what was not wanted of it was skipped
	size      int64      // of the whole file; -1: not told
	tag       string     // changes when the content does; "" if there is none
	sums      []checksum // of the whole file; told with the whole file only
}

// remoteFile is a file at a service.
type remoteFile struct {
	name string // for errors
	size int64  // -1: not known
	tag  string // "": not known
	get  func(ctx context.Context, want span, tag string) (*part, error)
}

// openRemote begins to read a file.
func (s *session) openRemote(ctx context.Context, f *remoteFile, want span) (io.ReadCloser, error) {
	r := &resumer{ctx: ctx, s: s, name: f.name, get: f.get, want: want, size: f.size, tag: f.tag}
	if f.size >= 0 && want.from > 0 && want.from >= f.size {
		return io.NopCloser(strings.NewReader("")), nil
	}
	if err := r.again(nil); err != nil {
		return nil, err
	}
	if !want.whole() {
		return r, nil
	}
	return &verifier{ReadCloser: r, name: f.name, size: r.size, sums: r.sums}, nil
}

// resumer reads a file in as many requests as it takes. Its context is that of the one who opened the file.
type resumer struct {
	ctx  context.Context
	s    *session
	name string
	get  func(ctx context.Context, want span, tag string) (*part, error)

	want  span // what is still to come
	size  int64
	tag   string
	sums  []checksum
	begun bool
	// rangeless: the service sends the whole file again when it is asked for the rest.
	rangeless bool
	failures  int // in a row
	resumed   int
	body      io.ReadCloser
	watch     *watch
}

// again connects anew after an error, or for the first time after none.
func (r *resumer) again(err error) error {
	for {
		if err != nil {
			if err = r.s.pause(r.ctx, r.failures, err); err != nil {
				return err
			}
			r.failures++
			if r.resumed++; r.resumed > maxResumed {
				return classify(ErrService, "%s: its connection was cut %d times", r.name, maxResumed)
			}
		}
		if err = r.connect(); err == nil {
			return nil
		}
	}
}

func (r *resumer) connect() error {
	w := r.s.watch(r.ctx)
	p, err := r.get(w.ctx, r.want, r.tag)
	w.rest()
	if err == nil {
		if err = r.accept(p); err != nil {
			p.body.Close()
		}
	}
	if err != nil {
		err = w.verdict(err)
		w.stop()
		return err
	}
	r.body, r.watch, r.begun = p.body, w, true
	r.rangeless = r.rangeless || p.rangeless
	return nil
}

// accept compares an answer with what is known of the file.
func (r *resumer) accept(p *part) error {
	switch {
	case r.size >= 0 && p.size >= 0 && p.size != r.size && !r.begun && r.tag == "":
		return classify(ErrDigest, "%s: it has %d bytes, its listing says %d", r.name, p.size, r.size)
	case r.size >= 0 && p.size >= 0 && p.size != r.size, r.tag != "" && p.tag != "" && p.tag != r.tag:
		return changed(r.name)
	}
	if r.size < 0 {
		r.size = p.size
	}
	if r.tag == "" {
		r.tag = p.tag
	}
	if r.sums == nil {
		r.sums = p.sums
	}
	return nil
}

func changed(name string) error { return fmt.Errorf("%s: %w", name, ErrChanged) }

// end is where the last byte that is wanted was, if that is known.
func (r *resumer) end() (int64, bool) {
	if r.want.to > 0 {
		return r.want.to, true
	}
	return r.size, r.size >= 0
}

func (r *resumer) Read(p []byte) (int, error) {
	for {
		end, known := r.end()
		if r.body == nil || r.want.to > 0 && r.want.from >= end {
			return 0, io.EOF
		}
		if r.want.to > 0 {
			p = p[:min(int64(len(p)), end-r.want.from)]
		}
		r.watch.begin()
		n, err := r.body.Read(p)
		r.watch.rest()
		r.want.from += int64(n)
		if n > 0 {
			r.failures = 0
		}
		complete := known && r.want.from == end
		switch {
		case known && r.want.from > end:
			return 0, changed(r.name)
		case err == nil || complete && n > 0:
			return n, nil
		case complete, errors.Is(err, io.EOF) && !known:
			return n, io.EOF
		}
		r.hangUp()
		err = cutAt(r.name, r.want.from, r.rangeless, err)
		if err = r.again(err); err != nil || n > 0 {
			return n, err
		}
	}
}

// cutAt is what became of a connection. Without ranges all that was read comes again, which a service that breaks off again and again never
// ends.
func cutAt(name string, at int64, rangeless bool, err error) error {
	why := fmt.Sprintf("%s: its connection was cut at byte %d", name, at)
	if rangeless {
		return &transient{err: classify(ErrService, "%s, and the server gives no ranges to go on from there; run it again (%w)", why, err), why: why}
	}
	return &transient{err: classify(ErrService, "%s: %w", why, err), why: why}
}

func (r *resumer) hangUp() {
	if r.body != nil {
		r.body.Close()
		r.watch.stop()
		r.body = nil
	}
}

// Close ends the request that is under way.
func (r *resumer) Close() error {
	r.hangUp()
	return nil
}
