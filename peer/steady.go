package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
)

// How failures of the origin in passing are met before they become a failed lease, which costs more: other hosts are drafted, and
// readers who are told go to the origin themselves, all at once.
const (
	// hedgeAfter is how long an answer may be awaited before the same is asked once more beside it.
	hedgeAfter = time.Second
	// hedges bounds the questions asked beside the first.
	hedges = 2
	// firstPause is waited after the first failure in a row, twice as long after each other one.
	firstPause = 100 * time.Millisecond
	// maxFailures in a row, without a byte between them, are too many.
	maxFailures = 5
)

// openRange opens bytes [off, off+length) of what is read.
type openRange func(ctx context.Context, off, length int64) (io.ReadCloser, error)

// A steady reads a range through failures in passing: where a stream breaks off it is opened anew at that byte, and a question that gets
// no answer is asked again beside the first. Errors that say more than "try again" pass through. It is not safe for concurrent use.
type steady struct {
	ctx       context.Context // of the reading, as that of a request
	open      openRange
	off, left int64
	pause     time.Duration // the first
	hedge     time.Duration
	again     func(reason string) // told of each question after the first: late or failed
	body      io.ReadCloser       // nil when it has to be opened
	failures  int                 // since the last byte
}

// newSteady makes a steady for the range; reopen opens it.
func newSteady(ctx context.Context, open openRange, off, length int64) *steady {
	return &steady{ctx: ctx, open: open, off: off, left: length, pause: firstPause, hedge: hedgeAfter, again: func(string) {}}
}

// Read implements io.Reader.
func (s *steady) Read(p []byte) (int, error) {
	for s.left > 0 {
		if s.body == nil {
			if err := s.reopen(); err != nil {
				return 0, err
			}
		}
		n, err := s.body.Read(p[:min(int64(len(p)), s.left)])
		s.off, s.left = s.off+int64(n), s.left-int64(n)
		if n > 0 {
			s.failures = 0
		}
		if err != nil && s.left > 0 {
			_ = s.Close() // it broke already
			if err := s.failed(err); err != nil {
				return n, err
			}
		}
		if n > 0 || s.left == 0 {
			return n, nil
		}
	}
	return 0, io.EOF
}

// Close implements io.Closer.
func (s *steady) Close() error {
	if s.body == nil {
		return nil
	}
	err := s.body.Close()
	s.body = nil
	return err
}

// reopen opens the stream where it stands, and tries again for as long as that may help.
func (s *steady) reopen() error {
	for {
		body, err := s.hedged()
		if err == nil {
			s.body = body
			return nil
		}
		if err := s.failed(err); err != nil {
			return err
		}
	}
}

// failed waits before the next try, or returns the error when there is to be none.
func (s *steady) failed(err error) error {
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", piece.ErrTransient, io.ErrUnexpectedEOF)
	}
	pause := s.pause << s.failures
	if refused, ok := errors.AsType[*source.StatusError](err); ok && refused.RetryAfter > pause {
		return err // the scheduler has others meanwhile
	}
	s.failures++
	if s.failures >= maxFailures || !errors.Is(err, piece.ErrTransient) || errors.Is(err, source.ErrRangeIgnored) || s.ctx.Err() != nil {
		return err
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		s.again("failed")
		return nil
	case <-s.ctx.Done():
		return fmt.Errorf("%w: %w", context.Cause(s.ctx), err)
	}
}

type answer struct {
	i    int
	body io.ReadCloser
	err  error
}

// hedged asks for the rest of the range, once more after each s.hedge without an answer, and takes what comes first. The others are called
// off before a byte of theirs is read.
func (s *steady) hedged() (io.ReadCloser, error) {
	answers := make(chan answer)
	var cancels []context.CancelFunc
	ask := func() {
		ctx, cancel := context.WithCancel(s.ctx)
		i, off, left := len(cancels), s.off, s.left
		cancels = append(cancels, cancel)
		go func() { // ends with its context; one receive for each is below
			body, err := s.open(ctx, off, left)
			answers <- answer{i, body, err}
		}()
	}
	ask()
	ticker := time.NewTicker(s.hedge)
	defer ticker.Stop()
	var got answer
	for waiting := 1; ; {
		select {
		case <-ticker.C:
			if len(cancels) <= hedges {
				s.again("late")
				ask()
				waiting++
			}
			continue
		case got = <-answers:
			waiting--
		}
		if got.err != nil && waiting > 0 && errors.Is(got.err, piece.ErrTransient) {
			cancels[got.i]()
			continue // another may still answer
		}
		for i, cancel := range cancels {
			if i != got.i || got.err != nil {
				cancel()
			}
		}
		for range waiting {
			if late := <-answers; late.err == nil {
				_ = late.body.Close() // of no use any more
			}
		}
		if got.err != nil {
			return nil, got.err
		}
		return &closing{got.body, cancels[got.i]}, nil
	}
}

// closing frees the context of a stream with it.
type closing struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c *closing) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}
