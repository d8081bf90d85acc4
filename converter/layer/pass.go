package layer

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
)

// ahead is how many bytes of a file are read before the slowest of those that go over them has taken the first.
const ahead = 6 << 20

// part is some bytes of a file, and how many have yet to go over them.
type part struct {
	bytes []byte
	left  atomic.Int32
}

// pool is the parts that nobody goes over, for one file after another.
type pool chan *part

func newPool(partSize uint32) pool {
	free := make(pool, max(2, ahead/int64(partSize)))
	for range cap(free) {
		free <- &part{}
	}
	return free
}

// pass is one reading of a file: its parts go to all takers. Each goes over all of them in order and at its own pace, so that a
// processor has work as long as any taker has, not only until the slowest is done with a part.
type pass struct {
	free    pool
	belts   []chan *part // of each taker
	takers  sync.WaitGroup
	stopped atomic.Bool // a taker failed
}

// taker adds one that goes over the parts; take must not keep the bytes. After its first error it is not called any more, and
// the reading ends. The error may be read once run has returned.
func (p *pass) taker(take func(b []byte) error) *error {
	belt, failure := make(chan *part, cap(p.free)), new(error)
	p.belts = append(p.belts, belt)
	p.takers.Go(func() {
		for part := range belt {
			if *failure == nil {
				*failure = take(part.bytes)
			}
			if *failure != nil {
				p.stopped.Store(true)
			}
			if part.left.Add(-1) == 0 {
				p.free <- part
			}
		}
	})
	return failure
}

// run reads size bytes in parts and returns when all takers went over what was read. The error is that of the reader or the context.
func (p *pass) run(ctx context.Context, r io.Reader, size, partSize int64) error {
	defer p.takers.Wait()
	defer func() {
		for _, belt := range p.belts {
			close(belt)
		}
	}()
	for done := int64(0); done < size && !p.stopped.Load(); {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		next, n := <-p.free, min(partSize, size-done)
		if int64(cap(next.bytes)) < n {
			next.bytes = make([]byte, n)
		}
		next.bytes = next.bytes[:n]
		if _, err := io.ReadFull(r, next.bytes); err != nil {
			return shorter(err)
		}
		done += n
		next.left.Store(int32(len(p.belts)))
		for _, belt := range p.belts {
			belt <- next
		}
	}
	return nil
}
