package converter

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/peer/chunkmap"
	"golang.org/x/sync/errgroup"
)

// readBuffer is how many bytes of a blob are read at once.
const readBuffer = 1 << 20

// rafsChunk is a RAFS chunk with the blob that has it, as one of the bootstraps describes it.
type rafsChunk struct {
	blob  *bootstrap.Blob
	chunk *bootstrap.Chunk
}

// noteChunks lists the RAFS chunks of an image with the blobs they are in.
func (c *checker) noteChunks(img *bootstrap.Image) error {
	if c.variants != nil && c.variants[0].content.image.ChunkSize != img.ChunkSize {
		return classify(ErrVerify, "%s: the bootstraps cut files at %d and at %d bytes", c.cfg.Image, c.variants[0].content.image.ChunkSize, img.ChunkSize)
	}
	for i := range img.Blobs {
		b := &img.Blobs[i]
		if err := b.Readable(); err != nil {
			return classify(ErrVerify, "%s: %w", c.cfg.Image, err)
		}
		if b.Digester != bootstrap.Blake3 {
			return classify(ErrVerify, "%s: the RAFS chunks of blob %s have digests that are not BLAKE3", c.cfg.Image, b.Digest)
		}
	}
	if !c.cfg.Deep {
		return nil
	}
	for i := range img.Chunks {
		ch := &img.Chunks[i]
		b := &img.Blobs[ch.Blob]
		known := c.blobs[b.Digest] // namesBlobs has seen that it is a layer
		known.rafs = append(known.rafs, rafsChunk{b, ch})
	}
	return nil
}

// order sorts the RAFS chunks of a blob by their place, each once. Those of two platforms are the same; none overlap, so that a
// hostile bootstrap cannot have bytes hashed again and again.
func (b *checkedBlob) order() error {
	slices.SortFunc(b.rafs, func(x, y rafsChunk) int {
		return cmp.Or(cmp.Compare(x.chunk.Offset, y.chunk.Offset), cmp.Compare(x.chunk.Length, y.chunk.Length))
	})
	b.rafs = slices.CompactFunc(b.rafs, func(x, y rafsChunk) bool {
		return sameChunk(x.chunk, y.chunk) && x.chunk.Digest == y.chunk.Digest && x.blob.Compressor == y.blob.Compressor
	})
	end := int64(0)
	for _, r := range b.rafs {
		if r.chunk.Offset < end {
			return classify(ErrVerify, "blob %s: RAFS chunk %d lies over another one", b.Digest, r.chunk.Index)
		}
		end = r.chunk.Offset + int64(r.chunk.Length)
	}
	return nil
}

// deep reads every blob once, several at once, and compares the trees.
func (c *checker) deep(ctx context.Context) error {
	x, err := bootstrap.NewExpander()
	if err != nil {
		return err
	}
	defer x.Close()
	for _, b := range c.order {
		if err := b.order(); err != nil {
			return err
		}
		if !b.read {
			c.cfg.Progress.Plan(Read, b.Size)
		}
		c.result.RAFSChunks += len(b.rafs)
	}
	var entries atomic.Int64
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(c.cfg.Parallel)
	for _, b := range c.order {
		if b.read {
			continue
		}
		group.Go(func() error {
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			d := &deepRead{c: c, blob: b, rafs: &rafsVerifier{x: x, chunks: b.rafs}, entries: &entries}
			return d.run(gctx)
		})
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	for _, v := range c.variants {
		c.cfg.Progress.Step(Read, "compare the trees of "+v.platform)
		if err := c.compareTrees(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

// deepRead is one blob being read, for all that its bytes are compared with at once.
type deepRead struct {
	c       *checker
	blob    *checkedBlob
	rafs    *rafsVerifier
	entries *atomic.Int64 // of all layers
}

func (d *deepRead) run(ctx context.Context) error {
	b, image := d.blob, d.c.image
	d.c.cfg.Progress.Step(Read, "read "+b.Digest.String())
	r, err := image.place.Blob(ctx, b.Descriptor, 0)
	if err != nil {
		return image.blobError(b.Descriptor, err)
	}
	defer r.Close()
	cut := &cutter{builder: chunkmap.NewBuilder()}
	sinks := []io.Writer{d.rafs}
	if b.m != nil {
		cut.chunks = b.m.Chunks
		sinks = append(sinks, cut)
	}
	var layer errgroup.Group
	pr, pw := io.Pipe()
	if b.diffID != "" {
		sinks = append(sinks, pw)
		layer.Go(func() error { // ends with the pipe
			err := d.unpack(pr)
			_, _ = io.Copy(io.Discard, pr) // so that the rest of the blob is verified all the same
			return err
		})
	}
	buf := make([]byte, readBuffer)
	_, err = io.CopyBuffer(io.MultiWriter(sinks...), &readCounter{ctx: ctx, r: r, progress: d.c.cfg.Progress}, buf)
	_ = pw.CloseWithError(err) // nil is the end of the stream
	layerErr := layer.Wait()
	switch {
	case err != nil:
		return image.blobError(b.Descriptor, err)
	case b.m != nil && !cut.is(b.m):
		return classify(ErrVerify, "blob %s: its chunk map describes other bytes", b.Digest)
	case layerErr != nil:
		return classify(ErrVerify, "layer %s: %w", b.Digest, layerErr)
	}
	return d.rafs.end()
}

// unpack reads the tar of a plain layer and compares it with its DiffID.
func (d *deepRead) unpack(r io.Reader) error {
	l := &baseLayer{compressed: bufio.NewReaderSize(r, readBuffer)}
	defer func() {
		for _, done := range l.done {
			done()
		}
	}()
	plain, err := l.decompress()
	if err != nil {
		return tarError("", err)
	}
	sum := sha256.New()
	if d.blob.diffID == d.blob.Digest { // its digest is verified as such
		l.Reader = plain
	} else {
		l.Reader = io.TeeReader(plain, sum)
	}
	size := d.c.variants[0].content.image.ChunkSize
	if d.blob.entries, err = readEntries(l.Reader, size, d.entries); err != nil {
		return err
	}
	for _, r := range []io.Reader{l.Reader, l.compressed} {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return tarError("", err)
		}
	}
	if got := digest.NewDigest(digest.SHA256, sum); d.blob.diffID != d.blob.Digest && got != d.blob.diffID {
		return fmt.Errorf("it unpacks to %s, the configuration says %s", got, d.blob.diffID)
	}
	return nil
}

// is reports whether the map describes the bytes written.
func (c *cutter) is(m *chunkmap.Map) bool {
	got := c.builder.Map(m.Blob)
	if len(m.Chunks) == 0 {
		got.Chunks = nil // such a map says nothing about them
	}
	return got.Equal(m)
}

// cutter builds the chunk map of what is written to it, cut where another map has its chunks.
type cutter struct {
	builder *chunkmap.Builder
	chunks  []chunkmap.Chunk // those not begun
	left    int              // of the chunk begun, in bytes
}

func (c *cutter) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		if c.left == 0 && len(c.chunks) > 0 {
			c.builder.Cut()
			c.left, c.chunks = int(c.chunks[0].Length), c.chunks[1:]
		}
		n := len(p)
		if c.left > 0 {
			n = min(n, c.left)
			c.left -= n
		}
		_, _ = c.builder.Write(p[:n]) // it never fails
		p = p[n:]
	}
	return written, nil
}

// rafsVerifier decodes the RAFS chunks of the blob that is written to it, in the order of their place. It holds one chunk. Write never
// fails: what is wrong with the blob as a whole is told first.
type rafsVerifier struct {
	x      *bootstrap.Expander
	chunks []rafsChunk // those not verified
	at     int64       // bytes written
	stored []byte      // of the first chunk, as far as it was written
	plain  []byte
	err    error
}

func (v *rafsVerifier) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 && len(v.chunks) > 0 && v.err == nil {
		c := v.chunks[0].chunk
		if skip := c.Offset - v.at; skip > 0 {
			n := min(skip, int64(len(p)))
			p, v.at = p[n:], v.at+n
			continue
		}
		n := min(int(c.Length)-len(v.stored), len(p))
		if len(v.stored) == 0 && n == int(c.Length) {
			v.verify(p[:n]) // no copy
		} else if v.stored = append(v.stored, p[:n]...); len(v.stored) == int(c.Length) {
			v.verify(v.stored)
		}
		p, v.at = p[n:], v.at+int64(n)
	}
	v.at += int64(len(p))
	return written, nil
}

// verify takes the stored bytes of the first chunk.
func (v *rafsVerifier) verify(stored []byte) {
	first := v.chunks[0]
	v.plain, v.err = v.x.Chunk(v.plain, storedChunk{stored, first.chunk.Offset}, first.blob, first.chunk)
	v.chunks, v.stored = v.chunks[1:], v.stored[:0]
}

// end says what was wrong.
func (v *rafsVerifier) end() error {
	switch {
	case v.err != nil:
		return classify(ErrVerify, "RAFS chunk: %w", v.err)
	case len(v.chunks) > 0:
		return classify(ErrVerify, "blob %s: RAFS chunk %d reaches behind its end", v.chunks[0].blob.Digest, v.chunks[0].chunk.Index)
	}
	return nil
}

// storedChunk is a chunk's stored bytes, at their offset in the blob.
type storedChunk struct {
	data   []byte
	offset int64
}

func (s storedChunk) ReadAt(p []byte, off int64) (int, error) {
	if off < s.offset || off > s.offset+int64(len(s.data)) {
		return 0, errors.New("outside of the chunk")
	}
	n := copy(p, s.data[off-s.offset:])
	if n < len(p) {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}
