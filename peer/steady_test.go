package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
)

// rangeServer opens ranges of data; each open takes the next of its answers, and works when there is none.
type rangeServer struct {
	mu      sync.Mutex
	data    []byte
	answers []func(ctx context.Context, r io.Reader) (io.Reader, error)
	asked   []int64 // offsets
	closed  int
}

type counted struct {
	io.Reader
	close func()
}

func (c counted) Close() error { c.close(); return nil }

func (s *rangeServer) open(ctx context.Context, off, length int64) (io.ReadCloser, error) {
	s.mu.Lock()
	s.asked = append(s.asked, off)
	var answer func(context.Context, io.Reader) (io.Reader, error)
	if len(s.answers) > 0 {
		answer, s.answers = s.answers[0], s.answers[1:]
	}
	s.mu.Unlock()
	var r io.Reader = bytes.NewReader(s.data[off : off+length])
	if answer != nil {
		var err error
		if r, err = answer(ctx, r); err != nil {
			return nil, err
		}
	}
	return counted{r, sync.OnceFunc(func() {
		s.mu.Lock()
		s.closed++
		s.mu.Unlock()
	})}, nil
}

func refuse(err error) func(context.Context, io.Reader) (io.Reader, error) {
	return func(context.Context, io.Reader) (io.Reader, error) { return nil, err }
}

// cut ends the stream with the error after n bytes.
func cut(n int64, err error) func(context.Context, io.Reader) (io.Reader, error) {
	return func(_ context.Context, r io.Reader) (io.Reader, error) {
		return io.MultiReader(io.LimitReader(r, n), iotest.ErrReader(err)), nil
	}
}

func hang(ctx context.Context, _ io.Reader) (io.Reader, error) {
	<-ctx.Done()
	return nil, fmt.Errorf("%w: %w", piece.ErrTransient, ctx.Err())
}

func TestSteadyReadsThroughFailuresInPassing(t *testing.T) {
	transient := fmt.Errorf("cut: %w", piece.ErrTransient)
	gone := fmt.Errorf("gone: %w", piece.ErrAbsent)
	later := &source.StatusError{Status: 503, RetryAfter: time.Minute}
	for name, test := range map[string]struct {
		answers []func(context.Context, io.Reader) (io.Reader, error)
		asked   []int64
		want    error
	}{
		"nothing":            {nil, []int64{10}, nil},
		"cut twice":          {[]func(context.Context, io.Reader) (io.Reader, error){cut(30, transient), cut(5, transient)}, []int64{10, 40, 45}, nil},
		"ends too early":     {[]func(context.Context, io.Reader) (io.Reader, error){cut(30, io.EOF)}, []int64{10, 40}, nil},
		"refuses four times": {slices.Repeat([]func(context.Context, io.Reader) (io.Reader, error){refuse(transient)}, 4), []int64{10, 10, 10, 10, 10}, nil},
		"refuses for good":   {slices.Repeat([]func(context.Context, io.Reader) (io.Reader, error){refuse(transient)}, 9), []int64{10, 10, 10, 10, 10}, transient},
		"absent":             {[]func(context.Context, io.Reader) (io.Reader, error){refuse(gone)}, []int64{10}, gone},
		"turns absent":       {[]func(context.Context, io.Reader) (io.Reader, error){cut(30, transient), refuse(gone)}, []int64{10, 40}, gone},
		"asks for time":      {[]func(context.Context, io.Reader) (io.Reader, error){refuse(later)}, []int64{10}, later},
		"no ranges":          {[]func(context.Context, io.Reader) (io.Reader, error){cut(30, transient), refuse(source.ErrRangeIgnored)}, []int64{10, 40}, source.ErrRangeIgnored},
		"hangs once":         {[]func(context.Context, io.Reader) (io.Reader, error){hang}, []int64{10, 10}, nil},
		"hangs twice":        {[]func(context.Context, io.Reader) (io.Reader, error){hang, hang}, []int64{10, 10, 10}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &rangeServer{data: bytes.Repeat([]byte("0123456789"), 20), answers: test.answers}
				r := newSteady(t.Context(), s.open, 10, 100)
				r.pause, r.hedge = time.Microsecond, 100*time.Millisecond
				again := 0
				r.again = func(string) { again++ }
				got, err := io.ReadAll(r)
				if !errors.Is(err, test.want) || test.want == nil && err != nil {
					t.Fatalf("error %v, want %v", err, test.want)
				}
				if test.want == nil && !bytes.Equal(got, s.data[10:110]) {
					t.Errorf("got %d bytes, and not those of the range", len(got))
				}
				if !slices.Equal(s.asked, test.asked) {
					t.Errorf("asked at %v, want %v", s.asked, test.asked)
				}
				if want := len(test.asked) - 1; again != want {
					t.Errorf("told of %d questions after the first, want %d", again, want)
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestSteadyEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		s := &rangeServer{data: make([]byte, 100), answers: slices.Repeat([]func(context.Context, io.Reader) (io.Reader, error){hang}, 9)}
		r := newSteady(ctx, s.open, 0, 100)
		r.pause, r.hedge = time.Microsecond, 5*time.Millisecond
		if _, err := io.ReadAll(r); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want that of the context", err)
		}
		if len(s.asked) != 1+hedges {
			t.Errorf("asked %d times, want %d", len(s.asked), 1+hedges)
		}
	})
}
