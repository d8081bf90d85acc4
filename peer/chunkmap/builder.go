package chunkmap

import (
	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/zeebo/blake3"
	"github.com/zeebo/xxh3"
)

// Builder computes the chunk map of the bytes written to it, cut where its caller says: it replays the cuts of another
// map. Make one with NewBuilder. It is an io.Writer that never fails, holds no more than the digests, and is not safe for
// concurrent use. A Cutter decides about the cuts by itself.
type Builder struct {
	groups groupHash
	chunks chunkHash
}

// NewBuilder returns a Builder that has seen no byte.
func NewBuilder() *Builder { return &Builder{groups: newGroupHash(), chunks: newChunkHash()} }

// Write takes the next bytes of the blob. The error is always nil.
func (b *Builder) Write(p []byte) (int, error) {
	b.groups.write(p)
	b.chunks.upToMax(p)
	return len(p), nil
}

// Size returns the number of bytes written so far.
func (b *Builder) Size() int64 { return b.chunks.size() }

// Cut ends a chunk at the bytes written so far. Cutting twice at one place is the same as once.
func (b *Builder) Cut() { b.chunks.cut() }

// Map ends the blob and returns its map. The Builder must not be used afterwards.
func (b *Builder) Map(blob digest.Digest) *Map {
	b.chunks.cut()
	return &Map{Blob: blob, Size: b.Size(), Groups: b.groups.end(), Chunks: b.chunks.list}
}

// groupHash digests the groups of a stream.
type groupHash struct {
	list   []piece.Digest
	hash   *blake3.Hasher
	length int // of the group begun, in bytes
}

func newGroupHash() groupHash { return groupHash{hash: blake3.New()} }

func (g *groupHash) write(p []byte) {
	for len(p) > 0 {
		n := min(len(p), piece.GroupSize-g.length)
		if n == piece.GroupSize { // it is hashed where it lies
			g.list = append(g.list, piece.HashGroup(p[:n]))
			p = p[n:]
			continue
		}
		_, _ = g.hash.Write(p[:n]) // a hash never fails to write
		p = p[n:]
		if g.length += n; g.length == piece.GroupSize {
			g.end()
		}
	}
}

// end ends the group begun, if there is one, and returns all of them.
func (g *groupHash) end() []piece.Digest {
	if g.length > 0 {
		g.list = append(g.list, sum(g.hash))
		g.length = 0
	}
	return g.list
}

// chunkHash cuts a stream into chunks and names them.
type chunkHash struct {
	list   []Chunk
	hash   *xxh3.Hasher
	start  int64 // where the chunk begun begins, in bytes from the blob's start
	length int   // of the chunk begun, in bytes
}

func newChunkHash() chunkHash { return chunkHash{hash: xxh3.New()} }

func (c *chunkHash) size() int64 { return c.start + int64(c.length) }

// write adds bytes to the chunk begun, which must stay within MaxChunk, and ends it if last is set.
func (c *chunkHash) write(p []byte, last bool) {
	if last && c.length == 0 && len(p) > 0 { // a chunk that lies in one piece is hashed where it lies
		c.add(len(p), xxh3.Hash128(p))
		return
	}
	_, _ = c.hash.Write(p) // a hash never fails to write
	c.length += len(p)
	if last {
		c.cut()
	}
}

// upToMax adds bytes and ends a chunk whenever it has MaxChunk.
func (c *chunkHash) upToMax(p []byte) {
	for len(p) > 0 {
		n := min(len(p), MaxChunk-c.length)
		c.write(p[:n], c.length+n == MaxChunk)
		p = p[n:]
	}
}

// cut ends the chunk begun, if there is one.
func (c *chunkHash) cut() {
	if c.length > 0 {
		c.add(c.length, c.hash.Sum128())
		c.hash.Reset()
	}
}

func (c *chunkHash) add(length int, sum xxh3.Uint128) {
	c.list = append(c.list, Chunk{Length: uint32(length), ID: sum.Bytes()})
	c.start, c.length = c.start+int64(length), 0
}

// sum returns the digest of what h has seen and makes it ready for the next part.
func sum(h *blake3.Hasher) piece.Digest {
	var d piece.Digest
	h.Sum(d[:0])
	h.Reset()
	return d
}
