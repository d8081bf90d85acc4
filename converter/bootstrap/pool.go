package bootstrap

import (
	"runtime"
	"sync"
)

// maxPackers bounds the goroutines of a Packer, and with them the memory: each has two chunks on its way.
const maxPackers = 8

// packPool hashes and compresses chunks side by side and hands them back in the order they came.
type packPool struct {
	queue   []*packJob // started and not handed back
	spare   []*packJob
	jobs    chan *packJob
	workers sync.WaitGroup
	ended   bool
}

// packJob is one chunk on its way. Its buffers are used again.
type packJob struct {
	file   int // whose chunk it is
	offset int64
	data   []byte

	digest [32]byte
	stored []byte // as the blob will hold it; may be data
	packed []byte // the buffer for stored
	err    error
	done   chan struct{}
}

func newPackPool(kind Compressor, chunkSize int) (*packPool, error) {
	count := min(runtime.GOMAXPROCS(0), maxPackers)
	p := &packPool{jobs: make(chan *packJob, 2*count)}
	for range 2 * count {
		p.spare = append(p.spare, &packJob{data: make([]byte, 0, min(chunkSize, 64<<10)), done: make(chan struct{}, 1)})
	}
	for range count {
		c, err := newCompressor(kind, chunkSize)
		if err != nil {
			p.close()
			return nil, err
		}
		p.workers.Go(func() { p.work(c) })
	}
	return p, nil
}

func (p *packPool) work(c *compressor) {
	defer c.close()
	for j := range p.jobs {
		j.digest = Blake3.sum(j.data)
		j.stored, j.err = c.pack(j.data)
		if j.err == nil && &j.stored[0] != &j.data[0] { // the compressor's buffer is its own
			j.packed = append(j.packed[:0], j.stored...)
			j.stored = j.packed
		}
		j.done <- struct{}{}
	}
}

// job returns a job for a chunk of length bytes. The pool must not be full.
func (p *packPool) job(length int) *packJob {
	j := p.spare[len(p.spare)-1]
	p.spare = p.spare[:len(p.spare)-1]
	if cap(j.data) < length {
		j.data = make([]byte, length)
	}
	j.data = j.data[:length]
	return j
}

func (p *packPool) full() bool  { return len(p.spare) == 0 }
func (p *packPool) empty() bool { return len(p.queue) == 0 }

func (p *packPool) start(j *packJob) {
	p.queue = append(p.queue, j)
	p.jobs <- j // it holds as many as there are
}

// next waits for the first of the queue.
func (p *packPool) next() *packJob {
	j := p.queue[0]
	p.queue = p.queue[1:]
	<-j.done
	return j
}

func (p *packPool) free(j *packJob) { p.spare = append(p.spare, j) }

// close ends the goroutines. Jobs that were started are done, and nobody's.
func (p *packPool) close() {
	if !p.ended {
		p.ended = true
		close(p.jobs)
		p.workers.Wait()
	}
}
