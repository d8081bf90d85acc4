package chunkmap

import (
	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/zeebo/blake3"
)

// Builder computes the chunk map of the bytes written to it. Make one with NewBuilder. It is an io.Writer that never
// fails, holds no more than the digests, and is not safe for concurrent use.
type Builder struct {
	size   int64
	groups []piece.Digest
	chunks []Chunk

	group, chunk       *blake3.Hasher
	groupLen, chunkLen int
}

// NewBuilder returns a Builder that has seen no byte.
func NewBuilder() *Builder { return &Builder{group: blake3.New(), chunk: blake3.New()} }

// Write takes the next bytes of the blob. The error is always nil.
func (b *Builder) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		n := min(len(p), piece.GroupSize-b.groupLen, MaxChunk-b.chunkLen)
		_, _ = b.group.Write(p[:n]) // a hash never fails to write
		_, _ = b.chunk.Write(p[:n])
		b.groupLen, b.chunkLen, b.size = b.groupLen+n, b.chunkLen+n, b.size+int64(n)
		p = p[n:]
		if b.groupLen == piece.GroupSize {
			b.endGroup()
		}
		if b.chunkLen == MaxChunk {
			b.Cut()
		}
	}
	return written, nil
}

// Size returns the number of bytes written so far.
func (b *Builder) Size() int64 { return b.size }

// Cut ends a chunk at the bytes written so far: a tensor or a file begins or ends here. Cutting twice at one place is the
// same as once.
func (b *Builder) Cut() {
	if b.chunkLen == 0 {
		return
	}
	b.chunks = append(b.chunks, Chunk{Length: uint32(b.chunkLen), Digest: sum(b.chunk)})
	b.chunkLen = 0
}

func (b *Builder) endGroup() {
	b.groups = append(b.groups, sum(b.group))
	b.groupLen = 0
}

// Map ends the blob and returns its map. The Builder must not be used afterwards.
func (b *Builder) Map(blob digest.Digest) *Map {
	if b.groupLen > 0 {
		b.endGroup()
	}
	b.Cut()
	return &Map{Blob: blob, Size: b.size, Groups: b.groups, Chunks: b.chunks}
}

// sum returns the digest of what h has seen and makes it ready for the next part.
func sum(h *blake3.Hasher) piece.Digest {
	var d piece.Digest
	h.Sum(d[:0])
	h.Reset()
	return d
}
