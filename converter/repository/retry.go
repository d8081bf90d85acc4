package repository

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Retry says how patient a Registry is. The zero value stands for the defaults.
type Retry struct {
	// Attempts is how often in a row something may fail without having moved; default 8.
	Attempts int
	// Pause is the first pause between two attempts, doubled each time; default 0.5 s.
	Pause time.Duration
	// MaxPause bounds a pause; default 30 s. A longer Retry-After is kept up to MaxRetryAfter, default 5 min.
	MaxPause, MaxRetryAfter time.Duration
	// Idle is how long a request may stand still; default 60 s. Commit is the same for the end of an upload, when registries
	// move the whole blob; default 15 min.
	Idle, Commit time.Duration

	waiting func(err error, pause time.Duration) // see Config.Waiting; nil: nobody is told
}

func (r Retry) withDefaults() Retry {
	r.Attempts = orDefault(r.Attempts, 8)
	r.Pause = orDefault(r.Pause, 500*time.Millisecond)
	r.MaxPause = orDefault(r.MaxPause, 30*time.Second)
	r.MaxRetryAfter = orDefault(r.MaxRetryAfter, 5*time.Minute)
	r.Idle = orDefault(r.Idle, time.Minute)
	r.Commit = orDefault(r.Commit, 15*time.Minute)
	return r
}

func orDefault[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// tries counts the attempts at one thing.
type tries struct {
	retry  Retry
	failed int // in a row
}

// moved says that an attempt got somewhere before it failed, so that counting begins anew.
func (t *tries) moved() { t.failed = 0 }

// again waits before the next attempt after err and returns nil, or it returns why there is none.
func (t *tries) again(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	after, ok := temporary(err)
	if t.failed++; !ok || t.failed >= t.retry.Attempts {
		return err
	}
	pause := t.retry.pause(t.failed, after)
	if t.retry.waiting != nil {
		t.retry.waiting(err, pause)
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pause returns how long to wait after the given number of failures, the first being 1. A quarter of it is left to chance, so
// that many clients do not come back at once.
func (r Retry) pause(failed int, after time.Duration) time.Duration {
	p := r.Pause << min(failed-1, 20)
	p = max(min(p, r.MaxPause), min(after, r.MaxRetryAfter))
	return p + time.Duration(rand.Int64N(int64(p)/4+1))
}

// do repeats f until it succeeds or fails for good.
func (r Retry) do(ctx context.Context, f func(ctx context.Context) error) error {
	t := tries{retry: r}
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if err := t.again(ctx, err); err != nil {
			return err
		}
	}
}

// statusError is an answer of a registry that was not wanted.
type statusError struct {
	answer *transport.Error
	after  time.Duration // as Retry-After said
}

func (e *statusError) Error() string { return e.answer.Error() }
func (e *statusError) Unwrap() error { return e.answer }

// wantStatus returns nil if the response has one of the statuses; otherwise it reads what the registry says about it.
func wantStatus(resp *http.Response, statuses ...int) error {
	err := transport.CheckError(resp, statuses...)
	terr, ok := errors.AsType[*transport.Error](err)
	if !ok {
		return err
	}
	return &statusError{terr, retryAfter(resp.Header.Get("Retry-After"), time.Now())}
}

// status returns the HTTP status an error tells of, 0 if it tells of none.
func status(err error) int {
	if terr, ok := errors.AsType[*transport.Error](err); ok {
		return terr.StatusCode
	}
	return 0
}

// retryAfter reads the header: seconds, or a date.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil {
		return time.Duration(min(max(seconds, 0), 1<<20)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// temporary reports whether another attempt may succeed, and when the server wants to see it.
func temporary(err error) (after time.Duration, ok bool) {
	if serr, ok := errors.AsType[*statusError](err); ok {
		after = serr.after
	}
	if _, ok := errors.AsType[*retryable](err); ok {
		return after, true
	}
	switch s := status(err); {
	case s == http.StatusRequestTimeout, s == http.StatusTooEarly, s == http.StatusTooManyRequests, s >= 500 && s != http.StatusNotImplemented:
		return after, true
	case s != 0:
		return 0, false
	}
	return 0, !permanent(err)
}

// permanent reports whether an error without a status is one that comes again: all but those of the connection.
func permanent(err error) bool {
	if _, ok := errors.AsType[*ownError](err); ok {
		return true
	}
	// A registry that may speak plain HTTP is asked over TLS too: what broke off counts more than that it speaks no TLS.
	for _, broken := range []error{errIdle, syscall.ECONNRESET, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, broken) {
			return false
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok || errors.Is(err, http.ErrSchemeMismatch) {
		return true
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.IsNotFound
	}
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok || errors.Is(err, ErrDigest) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrLost)
}

// retryable marks an error after which something begins anew, whatever it says.
type retryable struct{ err error }

func (e *retryable) Error() string { return e.err.Error() }
func (e *retryable) Unwrap() error { return e.err }

// reason says of an error, after which there is another attempt, what the server did, in a few words.
func reason(err error) string {
	s := status(err)
	switch {
	case s != 0:
		return fmt.Sprintf("answered %d", s)
	case errors.Is(err, errIdle):
		return "does not move"
	case errors.Is(err, ErrLost):
		return "has lost an upload"
	case unreachable(err):
		return "cannot be reached"
	}
	for _, broken := range []error{syscall.ECONNRESET, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, broken) {
			return "closed the connection"
		}
	}
	if urlErr, ok := errors.AsType[*url.Error](err); ok {
		err = urlErr.Err // its text repeats the URL, which may hold a secret
	}
	return "did not answer (" + err.Error() + ")"
}

// unreachable reports whether nobody could be talked to.
func unreachable(err error) bool {
	_, dns := errors.AsType[*net.DNSError](err)
	return dns || errors.Is(err, syscall.ECONNREFUSED)
}

// ownError marks what is not the server's fault: the bytes to be sent could not be had, or the received ones not be kept.
type ownError struct{ err error }

func (e *ownError) Error() string { return e.err.Error() }
func (e *ownError) Unwrap() error { return e.err }

// errIdle is why a request was given up that stood still.
var errIdle = errors.New("the server did not move")

// watch cancels a request that stands still.
type watch struct {
	cancel context.CancelCauseFunc
	idle   time.Duration

	mu    sync.Mutex
	timer *time.Timer // guarded by mu; nil once ended
}

// newWatch returns a context that ends with errIdle when alive was not called for the time given. The watch has to be ended.
func newWatch(ctx context.Context, idle time.Duration) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{cancel: cancel, idle: idle}
	w.timer = time.AfterFunc(idle, func() { cancel(errIdle) })
	return ctx, w
}

func (w *watch) alive() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Reset(w.idle)
	}
}

func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	w.cancel(context.Canceled)
}
