package lazy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// expandedRun is the most bytes of a blob that are waited for at a time to expand what one read needs.
const expandedRun = 4 << 20

// expanded is a device that is a file of the driver's own, with the chunks of a blob expanded. Which are there is known to the process only:
// what an earlier one has left is read back and verified before it counts.
type expanded struct {
	blob   *bootstrap.Blob
	chunks []bootstrap.Chunk // in the order of the device
	file   *shelved
	pool   *readers
	x      *bootstrap.Expander
	cpus   chan struct{}
	// buffers are of *[]byte.
	buffers sync.Pool

	mu      sync.Mutex // guards the fields below
	done    []bool     // by chunk
	missing int
	busy    map[int]chan struct{}
}

// viewName names the file for a blob with the chunks as an image lists them. Who lists others gets another file: what one image
// says of a blob must not decide what another one reads.
func viewName(b *bootstrap.Blob, chunks []bootstrap.Chunk) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d %d %d\n", b.Digest, b.Compressor, b.Digester, b.DeviceSize)
	for i := range chunks {
		c := &chunks[i]
		_ = binary.Write(h, binary.LittleEndian, []int64{c.Offset, int64(c.Length), c.DeviceOffset, int64(c.Size)}) // a hash never fails
		_, _ = h.Write(c.Digest[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// ordered sorts chunks by their place on the device. Those that stand there twice are the same; others must not overlap.
func ordered(chunks []bootstrap.Chunk) ([]bootstrap.Chunk, error) {
	slices.SortFunc(chunks, func(a, b bootstrap.Chunk) int { return cmp.Compare(a.DeviceOffset, b.DeviceOffset) })
	out := chunks[:0]
	for _, c := range chunks {
		if n := len(out); n > 0 && c.DeviceOffset < out[n-1].DeviceOffset+int64(out[n-1].Size) {
			if last := out[n-1]; c.DeviceOffset == last.DeviceOffset && c.Size == last.Size && c.Digest == last.Digest {
				continue
			}
			return nil, fmt.Errorf("chunks overlap at %d of the device: %w", c.DeviceOffset, bootstrap.ErrInvalid)
		}
		out = append(out, c)
	}
	return out, nil
}

func openExpanded(on *shelf, source *origins, b *bootstrap.Blob, chunks []bootstrap.Chunk) (filler, *os.File, error) {
	if err := b.Readable(); err != nil {
		return nil, nil, err
	}
	chunks, err := ordered(chunks)
	if err != nil {
		return nil, nil, err
	}
	e := &expanded{blob: b, chunks: chunks, pool: &readers{source: source, blob: Blob{b.Digest, b.Size}}, done: make([]bool, len(chunks)),
		missing: len(chunks), busy: map[int]chan struct{}{}, cpus: make(chan struct{}, runtime.GOMAXPROCS(0)), buffers: sync.Pool{New: func() any { return new([]byte) }}}
	if e.x, err = bootstrap.NewExpander(); err != nil {
		return nil, nil, err
	}
	if e.file, err = on.open(viewName(b, chunks), b.DeviceSize); err != nil {
		e.x.Close()
		return nil, nil, err
	}
	return e, e.file.File, nil
}

func (e *expanded) fill(ctx context.Context, off, length int64) error {
	first, _ := slices.BinarySearchFunc(e.chunks, off, func(c bootstrap.Chunk, off int64) int {
		return cmp.Compare(c.DeviceOffset+int64(c.Size)-1, off)
	})
	for first < len(e.chunks) {
		end, run := first, int64(0)
		for end < len(e.chunks) && e.chunks[end].DeviceOffset-off < length && (end == first || run+int64(e.chunks[end].Length) <= expandedRun) {
			run += int64(e.chunks[end].Length)
			end++
		}
		if end == first {
			return nil
		}
		if err := e.fillRun(ctx, first, end); err != nil {
			return err
		}
		first = end
	}
	return nil
}

// fillRun fills chunks [first, end), for which it waits at once where they lie together in the blob.
func (e *expanded) fillRun(ctx context.Context, first, end int) error {
	for first < end && e.has(first) {
		first++
	}
	if first == end {
		return nil
	}
	return e.pool.use(ctx, func(r Reader) error {
		low, high := e.chunks[first].Offset, int64(0)
		for _, c := range e.chunks[first:end] {
			low, high = min(low, c.Offset), max(high, c.Offset+int64(c.Length))
		}
		if high-low <= expandedRun && !e.file.left {
			if err := awaitAll(ctx, r, low, high-low); err != nil {
				return err
			}
		}
		for i := first; i < end; i++ {
			if err := e.ensure(ctx, r, i); err != nil {
				return err
			}
		}
		return nil
	})
}

func (e *expanded) has(i int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.done[i]
}

// ensure has chunk i in the file. One at a time brings it, the others wait.
func (e *expanded) ensure(ctx context.Context, r Reader, i int) error {
	mine := make(chan struct{})
	for {
		e.mu.Lock()
		other := e.busy[i]
		if e.done[i] || other == nil {
			break
		}
		e.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if e.done[i] {
		e.mu.Unlock()
		return nil
	}
	e.busy[i] = mine
	e.mu.Unlock()
	err := e.bring(ctx, r, &e.chunks[i])
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.busy, i)
	close(mine)
	if err == nil {
		e.done[i] = true
		e.missing--
	}
	return err
}

// bring writes a chunk, unless it is there already.
func (e *expanded) bring(ctx context.Context, r Reader, c *bootstrap.Chunk) error {
	if e.file.left && e.found(c) {
		return nil
	}
	if err := awaitAll(ctx, r, c.Offset, int64(c.Length)); err != nil {
		return err
	}
	e.cpus <- struct{}{} // it is not held while anybody is waited for
	defer func() { <-e.cpus }()
	buf := e.buffers.Get().(*[]byte)
	defer e.buffers.Put(buf)
	data, err := e.x.Chunk(*buf, blobReader{ctx, r}, e.blob, c)
	if err != nil {
		return err
	}
	*buf = data
	if err := e.file.book(int64(len(data))); err != nil {
		return err
	}
	if _, err = e.file.WriteAt(data, c.DeviceOffset); err != nil {
		e.file.unbook(int64(len(data)))
	}
	return err
}

// found reports whether the chunk's bytes are in the file.
func (e *expanded) found(c *bootstrap.Chunk) bool {
	conn, err := e.file.SyscallConn()
	if err != nil {
		return false
	}
	hole := true
	ctl := conn.Control(func(fd uintptr) {
		at, err := unix.Seek(int(fd), c.DeviceOffset, unix.SEEK_DATA) // nobody reads at the file's own offset
		hole = err != nil || at >= c.DeviceOffset+int64(c.Size)
	})
	if ctl != nil || hole {
		return false
	}
	e.cpus <- struct{}{}
	defer func() { <-e.cpus }()
	there, plain := *c, *e.blob
	there.Offset, there.Length, plain.Compressor = c.DeviceOffset, c.Size, bootstrap.None
	_, err = e.x.Chunk(nil, e.file, &plain, &there)
	return err == nil
}

func (e *expanded) fetch(ctx context.Context, progress func(done int64)) error {
	return e.pool.use(ctx, func(r Reader) error {
		r.Prefetch()
		for i := range e.chunks {
			if err := e.ensure(ctx, r, i); err != nil {
				return err
			}
			progress(e.chunks[i].Offset + int64(e.chunks[i].Length))
		}
		return nil
	})
}

func (e *expanded) whole() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.missing == 0
}

func (e *expanded) close(discard bool) error {
	e.pool.close()
	e.x.Close()
	return e.file.close(discard)
}
