// Package piece holds the arithmetic every other part of the peer shares: how a blob is cut into groups
// and pieces, which of them are held, and how received bytes are verified.
//
// A group is a fixed 256 KiB cut of a blob and the unit of verification. A piece is a whole number of groups
// and the unit of transfer. Both are numbered from zero; the last of either may be short.
//
//	blob    |----------------------------------------------------|
//	pieces  |   0   |   1   |   2   |   3   |   4   |   5   | 6   |
//	groups  | 0 | 1 | 2 | 3 | 4 | 5 | ...
//
// The digest of a group is its BLAKE3-256. The digest of a piece is the BLAKE3-256 of its groups' digests in
// order, so who knows the piece digest can check a whole piece, and, with the list of group digests, any single group.
//
// The package does no I/O, starts no goroutine and imports nothing else of the project.
package piece

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/zeebo/blake3"
)

const (
	// GroupSize is the length in bytes of every group but the last.
	GroupSize = 256 << 10
	// MaxSize is the largest piece, in bytes.
	MaxSize = 16 << 20

	// targetCount is the number of pieces above which larger pieces are chosen. The mesh needs at least 512
	// pieces to come near the wire's limit; more than 4096 only cost messages.
	targetCount = 2048
)

// ErrMismatch is the class of every failed verification. Who sent such bytes must not be asked again.
var ErrMismatch = errors.New("digest mismatch")

// MismatchError tells which part of a blob did not have the digest it should. It answers errors.Is(ErrMismatch).
type MismatchError struct {
	Unit      string // "piece", "group" or "blob"
	Index     Index  // of the unit, 0 for a blob
	Want, Got string // hexadecimal digests
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s %d: digest mismatch: want %s, got %s", e.Unit, e.Index, e.Want, e.Got)
}

// Is makes errors.Is(err, ErrMismatch) true.
func (e *MismatchError) Is(target error) bool { return target == ErrMismatch }

// Index numbers the pieces of a blob from 0.
type Index int

// Digest is a BLAKE3-256 digest of a group or a piece.
type Digest [32]byte

// String returns the digest in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText returns the digest in hexadecimal.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText parses 64 hexadecimal digits.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("BLAKE3 digest %q: want %d hexadecimal digits", text, hex.EncodedLen(len(d)))
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// SizeFor returns the piece size for a blob of the given size: the smallest power of two from GroupSize to
// MaxSize that cuts it into at most 2048 pieces, or MaxSize. All hosts derive it alike, so it is never negotiated.
func SizeFor(blobSize int64) int64 {
	size := int64(GroupSize)
	for size < MaxSize && (blobSize+size-1)/size > targetCount {
		size *= 2
	}
	return size
}

// Layout is how a blob is cut: its size and that of its pieces, both in bytes. The zero Layout is an empty blob.
type Layout struct {
	Size      int64
	PieceSize int64
}

// NewLayout returns the layout all hosts use for a blob of this size.
func NewLayout(blobSize int64) Layout {
	return Layout{Size: blobSize, PieceSize: SizeFor(blobSize)}
}

// Count returns the number of pieces.
func (l Layout) Count() int {
	if l.Size <= 0 {
		return 0
	}
	return int((l.Size + l.PieceSize - 1) / l.PieceSize)
}

// Groups returns the number of groups of the blob.
func (l Layout) Groups() int { return int((max(l.Size, 0) + GroupSize - 1) / GroupSize) }

// Range returns the half-open byte range [off, off+length) of piece i, which must be below Count.
func (l Layout) Range(i Index) (off, length int64) {
	off = int64(i) * l.PieceSize
	return off, min(l.PieceSize, l.Size-off)
}

// GroupRange returns the first group of piece i and how many it has.
func (l Layout) GroupRange(i Index) (first, count int) {
	off, length := l.Range(i)
	return int(off / GroupSize), int((length + GroupSize - 1) / GroupSize)
}

// At returns the piece that holds the byte at off, which must be within the blob.
func (l Layout) At(off int64) Index { return Index(off / l.PieceSize) }

// Span returns the half-open range of pieces [first, end) that touch the bytes [off, off+length), cut to the blob.
func (l Layout) Span(off, length int64) (first, end Index) {
	length = min(length, l.Size-off)
	if length <= 0 {
		return 0, 0
	}
	return l.At(off), l.At(off+length-1) + 1
}

// HashGroup returns the digest of one group, which must not be longer than GroupSize.
func HashGroup(data []byte) Digest { return blake3.Sum256(data) }

// HashGroups returns the digests of the groups of data, which begins at a group's start.
func HashGroups(data []byte) []Digest {
	out := make([]Digest, 0, (len(data)+GroupSize-1)/GroupSize)
	for len(data) > 0 {
		n := min(len(data), GroupSize)
		out = append(out, HashGroup(data[:n]))
		data = data[n:]
	}
	return out
}

// Root returns the digest of a piece from those of its groups.
func Root(groups []Digest) Digest {
	h := blake3.New()
	for i := range groups {
		_, _ = h.Write(groups[i][:]) // a hash never fails to write
	}
	var d Digest
	copy(d[:], h.Sum(nil))
	return d
}

// Verify checks data, the bytes of piece i, against the piece digest want and returns the digests of its groups.
// The error is a *MismatchError.
func Verify(i Index, data []byte, want Digest) ([]Digest, error) {
	groups := HashGroups(data)
	if got := Root(groups); got != want {
		return nil, &MismatchError{Unit: "piece", Index: i, Want: want.String(), Got: got.String()}
	}
	return groups, nil
}
