package bootstrap

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/zeebo/blake3"
)

// compressor packs single chunks. It is not safe for concurrent use.
type compressor struct {
	kind Compressor
	zw   *zstd.Encoder
	lw   lz4.Compressor
	out  []byte
}

// newCompressor returns a compressor of chunks of up to chunkSize bytes, a power of two. More than a chunk it need not remember: what it holds
// is twice the window.
func newCompressor(kind Compressor, chunkSize int) (*compressor, error) {
	c := &compressor{kind: kind}
	switch kind {
	case None, LZ4:
	case Zstd:
		var err error
		if c.zw, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithWindowSize(chunkSize)); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("compressor %d: %w", kind, ErrUnsupported)
	}
	return c, nil
}

// pack returns what is stored of data: data itself if it does not shrink, which the format tells by the equal lengths. The
// result is valid until the next call.
func (c *compressor) pack(data []byte) ([]byte, error) {
	switch c.kind {
	case Zstd:
		c.out = c.zw.EncodeAll(data, c.out[:0])
	case LZ4:
		if bound := lz4.CompressBlockBound(len(data)); cap(c.out) < bound {
			c.out = make([]byte, bound)
		}
		n, err := c.lw.CompressBlock(data, c.out[:cap(c.out)])
		if err != nil {
			return nil, fmt.Errorf("lz4: %w", err)
		}
		if n == 0 { // its word for data that does not shrink
			return data, nil
		}
		c.out = c.out[:n]
	default:
		return data, nil
	}
	if len(c.out) >= len(data) {
		return data, nil
	}
	return c.out, nil
}

func (c *compressor) close() {
	if c.zw != nil {
		_ = c.zw.Close() // it only releases memory: EncodeAll leaves nothing to flush
	}
}

// Expander reads chunks: it expands what is stored and verifies it. It is safe for concurrent use. Close releases its
// memory.
type Expander struct {
	zr     *zstd.Decoder
	stored sync.Pool
}

// NewExpander returns an Expander.
func NewExpander() (*Expander, error) {
	// The result is bounded by the capacity it is given, so that no chunk expands to more than its bootstrap says.
	zr, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxChunkSize),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	return &Expander{zr: zr, stored: sync.Pool{New: func() any { return new([]byte) }}}, nil
}

// Close releases what the Expander holds. No call may be under way.
func (x *Expander) Close() { x.zr.Close() }

// Chunk returns the uncompressed bytes of chunk c of blob b, whose stored bytes r has. They are verified against the digest
// in c. The bytes are in dst if it has the capacity. Wrong bytes are ErrInvalid; the other errors are those of r, and
// io.ErrUnexpectedEOF if it ends before the chunk does.
func (x *Expander) Chunk(dst []byte, r io.ReaderAt, b *Blob, c *Chunk) ([]byte, error) {
	if err := b.Readable(); err != nil {
		return nil, err
	}
	if c.Size == 0 || c.Size > maxChunkSize || c.Length == 0 || c.Length > maxChunkSize {
		return nil, fmt.Errorf("blob %s: chunk %d of %d bytes, %d stored: %w", b.Digest, c.Index, c.Size, c.Length, ErrInvalid)
	}
	if cap(dst) < int(c.Size) {
		dst = make([]byte, c.Size)
	}
	dst = dst[:c.Size:c.Size]
	if err := x.chunk(dst, r, b, c); err != nil {
		return nil, fmt.Errorf("blob %s: chunk %d: %w", b.Digest, c.Index, err)
	}
	return dst, nil
}

func (x *Expander) chunk(dst []byte, r io.ReaderAt, b *Blob, c *Chunk) error {
	if !c.Compressed() {
		if err := readFull(r, dst, c.Offset); err != nil {
			return err
		}
	} else {
		buf := x.stored.Get().(*[]byte)
		defer x.stored.Put(buf)
		if cap(*buf) < int(c.Length) {
			*buf = make([]byte, c.Length)
		}
		stored := (*buf)[:c.Length]
		if err := readFull(r, stored, c.Offset); err != nil {
			return err
		}
		if err := x.expand(b.Compressor, dst, stored); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	if sum := b.Digester.sum(dst); sum != c.Digest {
		return fmt.Errorf("it has other bytes than the bootstrap says: %w", ErrInvalid)
	}
	return nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p): // whatever a reader says beside it
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// expand fills dst with what stored expands to, which must have exactly its length.
func (x *Expander) expand(kind Compressor, dst, stored []byte) error {
	n := 0
	switch kind {
	case LZ4:
		var err error
		if n, err = lz4.UncompressBlock(stored, dst); err != nil {
			return err
		}
	case Zstd:
		out, err := x.zr.DecodeAll(stored, dst[:0])
		if err != nil {
			return err
		}
		n = len(out)
	case Gzip:
		zr, err := gzip.NewReader(bytes.NewReader(stored))
		if err != nil {
			return err
		}
		if n, err = io.ReadFull(zr, dst); err != nil {
			return err
		}
	default:
		return fmt.Errorf("two lengths in a blob with compressor %d", kind)
	}
	if n != len(dst) {
		return fmt.Errorf("it expands to %d bytes, not %d", n, len(dst))
	}
	return nil
}

// maxRatio bounds what compressed metadata may claim to expand to, so that memory is taken in proportion to what is there.
const maxRatio = 4096

// expandAll expands a table or a bootstrap of length bytes.
func expandAll(kind Compressor, stored []byte, length int64) ([]byte, error) {
	if length/maxRatio > int64(len(stored)) {
		return nil, fmt.Errorf("%d bytes expand to %d: %w", len(stored), length, ErrInvalid)
	}
	zr, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBootstrap), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	defer zr.Close()
	out := make([]byte, length)
	if err := (&Expander{zr: zr}).expand(kind, out, stored); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return out, nil
}

// sum returns the digest of a chunk's uncompressed bytes.
func (d Digester) sum(data []byte) [32]byte {
	if d == SHA256 {
		return sha256.Sum256(data)
	}
	return blake3.Sum256(data)
}
