package chunkmap

import (
	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
)

// Place is where the bytes of a chunk are held: in which blob, and from which byte on.
type Place struct {
	Blob digest.Digest
	Off  int64
}

// Part is a run of bytes of another blob.
type Part struct {
	Blob        digest.Digest
	Off, Length int64
}

// Assembly is how one piece is put together out of other blobs: its parts in order.
type Assembly struct {
	Piece piece.Index
	Parts []Part
}

// Reuse returns how the pieces of the blob of m that are not in have can be put together out of the chunks whose places are known, in
// the order of the pieces. A piece with a byte in another chunk is left out: it has to be fetched, and comes as a whole. What the
// places hold is not known to be right; the piece is to be verified like a fetched one.
func Reuse(m *Map, l piece.Layout, have *piece.Set, places map[ID]Place) []Assembly {
	var out []Assembly
	chunk, start := 0, int64(0) // the first chunk that reaches into the piece, and where it begins
	for i := range piece.Index(l.Count()) {
		off, length := l.Range(i)
		for chunk < len(m.Chunks) && start+int64(m.Chunks[chunk].Length) <= off {
			start += int64(m.Chunks[chunk].Length)
			chunk++
		}
		if have.Has(i) {
			continue
		}
		if parts := m.parts(chunk, start, off, off+length, places); parts != nil {
			out = append(out, Assembly{Piece: i, Parts: parts})
		}
	}
	return out
}

// parts covers the bytes [off, end) beginning with the chunk at start; nil when one of the chunks has no place.
func (m *Map) parts(chunk int, start, off, end int64, places map[ID]Place) []Part {
	var parts []Part
	for off < end {
		if chunk == len(m.Chunks) {
			return nil // a map without chunks
		}
		c := &m.Chunks[chunk]
		place, ok := places[c.ID]
		if !ok {
			return nil
		}
		next := start + int64(c.Length)
		p := Part{Blob: place.Blob, Off: place.Off + off - start, Length: min(next, end) - off}
		if n := len(parts); n > 0 && parts[n-1].Blob == p.Blob && parts[n-1].Off+parts[n-1].Length == p.Off {
			parts[n-1].Length += p.Length
		} else {
			parts = append(parts, p)
		}
		chunk, start, off = chunk+1, next, off+p.Length
	}
	return parts
}
