package lazy

import (
	"context"
	"io"
	"sync"
)

// maxIdle is how many readers of a blob are kept for the next who waits.
const maxIdle = 16

// readers gives each who waits for a part of a blob a reader of its own. It is safe for concurrent use.
type readers struct {
	source *origins
	blob   Blob
	// check, if not nil, is asked about each new reader.
	check func(Reader) error

	mu     sync.Mutex // guards both
	idle   []Reader
	closed bool
}

// await waits until [off, off+length) of the blob is there.
func (p *readers) await(ctx context.Context, off, length int64) error {
	return p.use(ctx, func(r Reader) error { return awaitAll(ctx, r, off, length) })
}

// use calls f with a reader that nobody else has. One that fails is not used again: the next may have more luck.
func (p *readers) use(ctx context.Context, f func(Reader) error) error {
	r, err := p.take(ctx)
	if err != nil {
		return err
	}
	if err := f(r); err != nil {
		_ = r.Close() // only read from
		p.drain()     // they share its lot: a new one tries again
		p.source.failed()
		return err
	}
	p.give(r)
	return nil
}

// drain closes the idle readers.
func (p *readers) drain() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, r := range idle {
		_ = r.Close() // only read from
	}
}

func (p *readers) take(ctx context.Context) (Reader, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		r := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return r, nil
	}
	p.mu.Unlock()
	r, err := p.source.Open(ctx, p.blob)
	if err != nil || p.check == nil {
		return r, err
	}
	if err := p.check(r); err != nil {
		_ = r.Close() // only read from
		return nil, err
	}
	return r, nil
}

func (p *readers) give(r Reader) {
	p.mu.Lock()
	keep := !p.closed && len(p.idle) < maxIdle
	if keep {
		p.idle = append(p.idle, r)
	}
	p.mu.Unlock()
	if !keep {
		_ = r.Close() // only read from
	}
}

// close closes the idle readers, and those in use when they are given back.
func (p *readers) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.drain()
}

// awaitAll waits until [off, off+length) of the blob is there.
func awaitAll(ctx context.Context, r Reader, off, length int64) error {
	for length > 0 {
		n, err := r.Await(ctx, off, length)
		if err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

// blobReader reads a blob as it comes. It lives no longer than the call it was made for, whose ctx it carries.
type blobReader struct {
	ctx context.Context
	r   Reader
}

func (b blobReader) ReadAt(p []byte, off int64) (int, error) {
	if err := awaitAll(b.ctx, b.r, off, int64(len(p))); err != nil {
		return 0, err
	}
	f, err := b.r.File()
	if err != nil {
		return 0, err
	}
	return f.ReadAt(p, off)
}

var _ io.ReaderAt = blobReader{}
