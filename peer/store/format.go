package store

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/shoal-project/shoal/peer/piece"
)

// The index file, little endian:
//
//	 0   8  magic "SHOALIDX"
//	 8   4  version, 1
//	12   4  flags, 0; a set bit is a feature this version cannot read
//	16   8  size of the blob in bytes
//	24   8  size of its pieces in bytes
//	32  32  BLAKE3-256 of bytes 0 to 31
//	64   …  for each piece the root of its group digests, 32 bytes; zero when the piece is not held
const (
	indexMagic   = "SHOALIDX"
	indexVersion = 1
	headerSize   = 64
	checkedSize  = 32 // bytes of the header under its digest
	digestSize   = 32
)

// maxBlobSize bounds what a header may claim: 1 PiB.
const maxBlobSize = 1 << 50

func encodeHeader(l piece.Layout) []byte {
	b := make([]byte, headerSize)
	copy(b, indexMagic)
	binary.LittleEndian.PutUint32(b[8:], indexVersion)
	binary.LittleEndian.PutUint64(b[16:], uint64(l.Size))
	binary.LittleEndian.PutUint64(b[24:], uint64(l.PieceSize))
	sum := blake3.Sum256(b[:checkedSize])
	copy(b[checkedSize:], sum[:])
	return b
}

// decodeHeader returns the layout a header describes. All errors are errFormat.
func decodeHeader(b []byte) (piece.Layout, error) {
	var l piece.Layout
	if len(b) < headerSize {
		return l, fmt.Errorf("%w: header of %d bytes, want %d", errFormat, len(b), headerSize)
	}
	if string(b[:8]) != indexMagic {
		return l, fmt.Errorf("%w: magic %q", errFormat, b[:8])
	}
	if sum := blake3.Sum256(b[:checkedSize]); sum != [digestSize]byte(b[checkedSize:headerSize]) {
		return l, fmt.Errorf("%w: header digest does not match", errFormat)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != indexVersion {
		return l, fmt.Errorf("%w: version %d, want %d", errFormat, v, indexVersion)
	}
	if f := binary.LittleEndian.Uint32(b[12:]); f != 0 {
		return l, fmt.Errorf("%w: unknown feature flags %#x", errFormat, f)
	}
	size, pieceSize := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	if size > maxBlobSize {
		return l, fmt.Errorf("%w: blob of %d bytes", errFormat, size)
	}
	l = piece.NewLayout(int64(size))
	if uint64(l.PieceSize) != pieceSize {
		return piece.Layout{}, fmt.Errorf("%w: pieces of %d bytes, want %d", errFormat, pieceSize, l.PieceSize)
	}
	return l, nil
}

// decodeHeld returns the pieces whose digest in pieces (the index behind its header) is the root of their groups.
// Both slices are raw digests; what is missing at their ends is not held.
func decodeHeld(l piece.Layout, pieces, groups []byte) *piece.Set {
	held := piece.NewSet(l.Count())
	for i := range min(l.Count(), len(pieces)/digestSize) {
		first, count := l.GroupRange(piece.Index(i))
		if (first+count)*digestSize > len(groups) {
			break
		}
		want := piece.Digest(pieces[i*digestSize:])
		if want == (piece.Digest{}) {
			continue
		}
		if piece.Root(decodeDigests(groups[first*digestSize:(first+count)*digestSize])) == want {
			held.Add(piece.Index(i))
		}
	}
	return held
}

func decodeDigests(b []byte) []piece.Digest {
	out := make([]piece.Digest, len(b)/digestSize)
	for i := range out {
		out[i] = piece.Digest(b[i*digestSize:])
	}
	return out
}

func encodeDigests(digests []piece.Digest) []byte {
	b := make([]byte, 0, len(digests)*digestSize)
	for i := range digests {
		b = append(b, digests[i][:]...)
	}
	return b
}
