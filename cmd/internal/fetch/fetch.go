package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
)

const (
	// changes is how often a file is begun anew because the origin has another content.
	changes = 3
	// nodeTries and originTries are how often in a row a place may fail without a byte.
	nodeTries   = 2
	originTries = 5
)

// Progress hears how it goes on. Its methods are called from one goroutine.
type Progress interface {
	Step(text string)
	Plan(bytes int64)
	Done(bytes int64)
}

// Part is the part of a content that is wanted, in bytes.
type Part struct {
	Off    int64 // from the end if negative
	Length int64 // negative: to the end
}

// Config says what is to be fetched, from where, and where to.
type Config struct {
	Target Target
	// Output is the file to write; empty writes to Stdout.
	Output string
	Stdout io.Writer
	// Part, if not nil, is the part that is wanted.
	Part *Part
	// Digest is what all of a URL's bytes must have; of a blob it is known.
	Digest digest.Digest
	// Header, Ignore and Share are as in local.ContentRequest.
	Header http.Header
	Ignore []string
	Share  bool
	// Keep leaves a file alone that has the size and the time of the content, and gives files that time.
	Keep bool
	// Node is the node to read URLs through, Mirror reads blobs through it; nil does without.
	Node   *local.Client
	Mirror *source.Source
	// Origin reads the origin itself. NoFallback refuses to where there is a node.
	Origin     *source.Source
	NoFallback bool
	// Pause is what is waited before the origin is asked again, twice that the next time. Zero is 500 ms.
	Pause time.Duration
	// Progress and Log may be nil.
	Progress Progress
	Log      *slog.Logger
}

// known returns the digest that is known of the whole, or none.
func (cfg Config) known() digest.Digest {
	if cfg.Target.URL == "" {
		return cfg.Target.Blob.Digest
	}
	return cfg.Digest
}

// Result tells what was fetched.
type Result struct {
	Target   string        `json:"target"` // without what may be secret
	Output   string        `json:"output,omitempty"`
	Identity digest.Digest `json:"identity,omitempty"` // by which the cluster shares it
	Digest   digest.Digest `json:"digest"`             // of the bytes that were written
	Size     int64         `json:"size"`               // of the bytes that were written
	Total    int64         `json:"total"`              // of all that the target has
	Verified bool          `json:"verified"`           // the digest was known before
	Stale    string        `json:"stale,omitempty"`    // the origin was down; it had this at that time
	Bytes    Bytes         `json:"bytes"`
	Seconds  float64       `json:"seconds"`
}

// Bytes tells where the bytes came from.
type Bytes struct {
	Kept   int64 `json:"kept"`   // from an earlier call
	Node   int64 `json:"node"`   // through the node
	Origin int64 `json:"origin"` // from the origin itself
}

// ErrFallback means that the node could not and the origin was not to be asked.
var ErrFallback = errors.New("not through the node, and --no-fallback forbids to ask the origin")

// errAnew means that what there is cannot be gone on with.
var errAnew = errors.New("it cannot be gone on with")

// RequestError is a fault of what was asked for: an output that cannot be one, a part the content does not have.
type RequestError struct{ Err error }

func (e *RequestError) Error() string { return e.Err.Error() }

// Unwrap returns the fault.
func (e *RequestError) Unwrap() error { return e.Err }

// fetcher is one call.
type fetcher struct {
	Config
	node, origin place
	began        time.Time
	result       Result
}

// Run fetches. Errors of the origin have a class of package piece; bytes with another digest are piece.ErrMismatch.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	if cfg.Output != "" {
		if _, _, err := checkOutput(cfg.Output); err != nil {
			return nil, &RequestError{err}
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Pause == 0 {
		cfg.Pause = 500 * time.Millisecond
	}
	f := &fetcher{Config: cfg, began: time.Now(), result: Result{Target: cfg.Target.String(), Output: cfg.Output}}
	var err error
	if f.node, f.origin, err = cfg.places(); err != nil {
		return nil, err
	}
	if f.node == nil && cfg.NoFallback {
		return nil, fmt.Errorf("there is no node: %w", ErrFallback)
	}
	for i := 1; ; i++ {
		err := f.once(ctx)
		if cfg.Output != "" && i < changes && ctx.Err() == nil {
			if errors.Is(err, source.ErrChanged) {
				cfg.Log.Warn("the content changed meanwhile, beginning anew", "target", f.result.Target)
				continue
			}
			if f.result.Bytes.Node > 0 && i == 1 && errors.Is(err, piece.ErrMismatch) {
				cfg.Log.Warn("wrong bytes, which the cluster may have had of another URL, and drops; beginning anew once", "target", f.result.Target, "error", err)
				continue
			}
			if errors.Is(err, errAnew) {
				cfg.Log.Warn("the download broke and the origin does not let it be gone on with, beginning anew", "target", f.result.Target)
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		f.result.Seconds = time.Since(f.began).Seconds()
		return &f.result, nil
	}
}

// once fetches one content.
func (f *fetcher) once(ctx context.Context) error {
	c, from, err := f.head(ctx)
	if err != nil {
		return err
	}
	s, err := f.span(c)
	if err != nil {
		return err
	}
	if f.node != from && f.known() != "" && c.size >= 0 && s.length != c.size {
		return fmt.Errorf("a part cannot be checked against the digest of the whole without a node: %w", piece.ErrDenied)
	}
	if f.keeps(c) {
		return nil
	}
	out, err := f.openSink(c.id, s)
	if err != nil {
		return err
	}
	if f.Keep {
		out.modified = c.modified()
	}
	f.result.Identity, f.result.Total, f.result.Stale, f.result.Bytes = c.id, c.size, c.stale, Bytes{Kept: out.have}
	f.plan(s, out.have)
	err = f.transfer(ctx, c, s, out, from)
	if err == nil && (s.length < 0 || s.length == c.size) {
		err = f.verify(out)
	}
	if err != nil {
		out.abandon(c.id != "" && !errors.Is(err, piece.ErrMismatch) && !errors.Is(err, errAnew))
		return err
	}
	if err := out.commit(); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	f.result.Size, f.result.Total = out.have, max(c.size, out.have)
	f.result.Digest = digest.NewDigestFromBytes(algorithmOf(f.known()), out.hash.Sum(nil))
	return nil
}

func algorithmOf(d digest.Digest) digest.Algorithm {
	if d != "" {
		return d.Algorithm()
	}
	return digest.SHA256
}

// verify compares the whole with the digest that is known of it.
func (f *fetcher) verify(out *sink) error {
	want := f.known()
	if want == "" {
		return nil
	}
	if got := digest.NewDigestFromBytes(want.Algorithm(), out.hash.Sum(nil)); got != want {
		return fmt.Errorf("%s: %w", f.result.Target, &piece.MismatchError{Unit: "content", Want: want.Encoded(), Got: got.Encoded()})
	}
	f.result.Verified = true
	return nil
}

// head asks what the content is, the node first.
func (f *fetcher) head(ctx context.Context) (content, place, error) {
	if f.node != nil {
		c, err := f.node.head(ctx)
		if err == nil {
			if c.stale != "" {
				f.Log.Warn("the origin is down; this is what it had", "at", c.stale)
			}
			return c, f.node, nil
		}
		if err := f.mayFallBack(ctx, err); err != nil {
			return c, nil, err
		}
	}
	var c content
	err := f.again(ctx, func() (err error) {
		c, err = f.origin.head(ctx)
		return err
	})
	return c, f.origin, err
}

// mayFallBack returns nil, and says so, when the origin may be asked itself after the node failed with err.
func (f *fetcher) mayFallBack(ctx context.Context, err error) error {
	refused, ok := errors.AsType[*local.Error](err)
	switch {
	case ctx.Err() != nil, errors.As(err, new(*writeError)), errors.Is(err, source.ErrChanged):
		return err
	case ok && (refused.Code == local.CodeBad || refused.Code == local.CodeRange):
		return err
	case ok && refused.Code == local.CodeMismatch:
		return fmt.Errorf("%w: %w", piece.ErrMismatch, err)
	case f.NoFallback && ok && refused.Code == local.CodeDenied:
		return fmt.Errorf("%w: %w", err, piece.ErrDenied)
	case f.NoFallback && ok && refused.Code == local.CodeAbsent:
		return fmt.Errorf("%w: %w", err, piece.ErrAbsent)
	case f.NoFallback:
		return fmt.Errorf("%w: %w", err, ErrFallback)
	}
	f.Log.Warn("the origin is read directly", "because", err.Error())
	return nil
}

// again repeats what failed in passing.
func (f *fetcher) again(ctx context.Context, do func() error) error {
	pause := f.Pause
	for i := 1; ; i++ {
		err := do()
		if err == nil || i == originTries || !errors.Is(err, piece.ErrTransient) || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
		pause *= 2
	}
}

// span returns the part of the content that is wanted.
func (f *fetcher) span(c content) (span, error) {
	if f.Part == nil {
		return span{0, c.size}, nil
	}
	if c.size < 0 {
		return span{}, fmt.Errorf("no part of %s can be had: the origin does not tell its length", f.result.Target)
	}
	off, length := f.Part.Off, f.Part.Length
	if off < 0 {
		off = max(c.size+off, 0)
	}
	if off >= c.size {
		return span{}, &RequestError{fmt.Errorf("byte %d is not within the %d bytes of %s", off, c.size, f.result.Target)}
	}
	if length < 0 || length > c.size-off {
		length = c.size - off
	}
	return span{off, length}, nil
}

func (f *fetcher) plan(s span, have int64) {
	if f.Progress != nil {
		f.Progress.Plan(max(s.length, 0))
		f.Progress.Done(have)
	}
}

// transfer brings the rest of the part into the sink.
func (f *fetcher) transfer(ctx context.Context, c content, s span, out *sink, from place) error {
	pause, failed := f.Pause, 0
	for s.length < 0 || out.have < s.length {
		if f.Progress != nil {
			f.Progress.Step(f.describe(from))
		}
		before := out.have
		err := f.copy(ctx, c, s, out, from)
		if err == nil {
			return nil
		}
		if failed++; out.have > before {
			pause, failed = f.Pause, 1
		}
		final := !errors.Is(err, piece.ErrTransient)
		switch {
		case ctx.Err() != nil || errors.As(err, new(*writeError)) || errors.Is(err, source.ErrChanged):
			return err
		case from == f.node && failed >= nodeTries:
			if err := f.mayFallBack(ctx, err); err != nil {
				return err
			}
			from, failed = f.origin, 0
			if out.have > 0 && !f.resumable(c) {
				return fmt.Errorf("%w: %w", err, errAnew)
			}
			if s.length != c.size && f.known() != "" {
				return fmt.Errorf("a part cannot be checked against the digest of the whole without a node: %w", piece.ErrDenied)
			}
			continue
		case from == f.origin && out.have > 0 && (!f.resumable(c) || errors.Is(err, source.ErrRangeIgnored)):
			return fmt.Errorf("%w: %w", err, errAnew)
		case from == f.origin && (final || failed >= originTries):
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
		pause *= 2
	}
	return nil
}

// resumable reports whether parts from different answers of the origin may be put together.
func (f *fetcher) resumable(c content) bool {
	return c.size >= 0 && (f.known() != "" || c.validator.Resumable())
}

func (f *fetcher) describe(from place) string {
	if from == f.node {
		return f.result.Target
	}
	return f.result.Target + ", from the origin"
}

// copy reads from one place until it ends.
func (f *fetcher) copy(ctx context.Context, c content, s span, out *sink, from place) error {
	rest := span{s.off + out.have, s.length - out.have}
	body, err := from.open(ctx, c, rest)
	if err != nil {
		return err
	}
	defer body.Close()
	buf := make([]byte, 256<<10)
	for {
		n, err := body.Read(buf)
		if s.length >= 0 && int64(n) > s.length-out.have {
			return fmt.Errorf("%s: more bytes than the %d announced", f.result.Target, s.length)
		}
		if n > 0 {
			if _, err := out.Write(buf[:n]); err != nil {
				return err
			}
			f.note(from, int64(n))
		}
		switch {
		case err == io.EOF && s.length >= 0 && out.have < s.length:
			return fmt.Errorf("%s: %w after %d of %d bytes", f.result.Target, io.ErrUnexpectedEOF, out.have, s.length)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

func (f *fetcher) note(from place, n int64) {
	if from == f.node {
		f.result.Bytes.Node += n
	} else {
		f.result.Bytes.Origin += n
	}
	if f.Progress != nil {
		f.Progress.Done(n)
	}
}
