package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
)

// Reader reads one blob while it is being fetched; every byte it lets out is verified. Its methods may be called
// concurrently, but waiting at several offsets at once is best done with several readers, since the last offset waited
// for is what is fetched first.
type Reader struct {
	task *task
	blob *store.Blob
	long atomic.Bool // it has asked for more than a short range, and reads on
	once sync.Once
}

func newReader(t *task) (*Reader, error) {
	b, err := t.peer.store.Get(t.blob.Digest)
	if err != nil {
		t.release()
		return nil, fmt.Errorf("blob %s: %w", t.blob.Digest, err)
	}
	return &Reader{task: t, blob: b}, nil
}

// Size returns the size of the blob in bytes.
func (r *Reader) Size() int64 { return r.blob.Layout().Size }

// Complete reports whether the whole blob is on this host.
func (r *Reader) Complete() bool { return r.blob.Complete() }

// File returns an open file of the blob's bytes, for sendfile. Only ranges that Await returned may be read from it. It is
// valid until Close.
func (r *Reader) File() (*os.File, error) { return r.blob.File() }

// Verified reports whether the whole blob is on this host and was verified by this process not long ago.
func (r *Reader) Verified() bool { return r.blob.Verified() }

// Await blocks until bytes at off are held and verified and returns how many of [off, off+length) are, at least one. It
// raises the priority of these pieces, of a long range those ahead of off. A long range, of more than 8 MiB or the whole blob, has all of the
// blob fetched. It fails when ctx ends, or when nobody can deliver them.
func (r *Reader) Await(ctx context.Context, off, length int64) (int64, error) {
	l := r.blob.Layout()
	if off < 0 || length <= 0 || off+length > l.Size {
		return 0, fmt.Errorf("blob %s: range [%d, %d) is not within its %d bytes", r.blob.Digest(), off, off+length, l.Size)
	}
	if !short(l, length) {
		r.long.Store(true)
	}
	for told := false; ; {
		changed := r.blob.Changed()
		n := r.held(off, length)
		if n > 0 {
			err := r.blob.EnsureVerified(off, n)
			if err == nil {
				i := l.At(off)
				r.task.read.add(i)
				if r.task.before.Has(i) {
					r.task.peer.metrics.fromCache.Add(float64(n))
				}
				return n, nil
			}
			if !errors.Is(err, piece.ErrMismatch) && !errors.Is(err, piece.ErrAbsent) {
				return 0, err
			}
			r.task.post(r.task.resync) // what was on the disk is not what was written: fetch it again
			continue
		}
		if !told {
			first, end := l.Span(off, length)
			w := waited{run: dispatch.Run{First: first, End: end}, short: !r.long.Load()}
			told = r.task.post(func() { r.task.waitFor(r, w) })
		}
		failing, failed := r.task.failure()
		if failed != nil {
			return 0, failed
		}
		if !told {
			return 0, fmt.Errorf("blob %s: %w", r.blob.Digest(), ErrClosed)
		}
		select {
		case <-changed:
		case <-failing:
		case <-ctx.Done():
			return 0, fmt.Errorf("blob %s at byte %d: %w", r.blob.Digest(), off, context.Cause(ctx))
		}
	}
}

// held returns how many bytes from off on are in the store without a gap, at most length and at most about one
// piece, so that a reader of much is not kept waiting for the verification of all.
func (r *Reader) held(off, length int64) int64 {
	l := r.blob.Layout()
	i := l.At(off)
	if !r.blob.Has(i) {
		return 0
	}
	start, n := l.Range(i)
	return min(start+n-off, length)
}

// AwaitAll blocks until the whole blob is held and verified and returns its size.
func (r *Reader) AwaitAll(ctx context.Context) (int64, error) {
	for off := int64(0); off < r.Size(); {
		n, err := r.Await(ctx, off, r.Size()-off)
		if err != nil {
			return 0, err
		}
		off += n
	}
	return r.Size(), nil
}

// ReadAt reads len(p) bytes at off, waiting for them under ctx.
func (r *Reader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= r.Size() {
			return done, io.EOF
		}
		n, err := r.Await(ctx, at, min(int64(len(p)-done), r.Size()-at))
		if err != nil {
			return done, err
		}
		m, err := r.blob.ReadAt(p[done:done+int(n)], at)
		done += m
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// Section returns the blob as a stream that waits under ctx.
func (r *Reader) Section(ctx context.Context) io.Reader { return &section{r: r, ctx: ctx} }

// section is an io.Reader over a Reader; it lives no longer than the call it was made for, whose ctx it carries.
type section struct {
	r   *Reader
	ctx context.Context
	off int64
}

func (s *section) Read(p []byte) (int, error) {
	if s.off >= s.r.Size() {
		return 0, io.EOF
	}
	n, err := s.r.Await(s.ctx, s.off, s.r.Size()-s.off)
	if err != nil {
		return 0, err
	}
	m, err := s.r.blob.ReadAt(p[:min(n, int64(len(p)))], s.off)
	s.off += int64(m)
	return m, err
}

// Prefetch has all of the blob fetched.
func (r *Reader) Prefetch() { r.task.post(r.task.fetchAll) }

// Close gives the reader up. The download goes on for a while without it.
func (r *Reader) Close() error {
	var err error
	r.once.Do(func() {
		r.task.post(func() { delete(r.task.readers, r) })
		err = r.blob.Close()
		r.task.release()
	})
	return err
}
