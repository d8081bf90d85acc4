package piece

import (
	"fmt"
	"iter"
	"math/bits"
)

// Set is a set of piece indices of one blob: which pieces a host holds. The zero Set has no room; make one
// with NewSet. It is not safe for concurrent use.
type Set struct {
	n     int
	count int
	words []uint64
}

// NewSet returns an empty set for indices below n.
func NewSet(n int) *Set { return &Set{n: n, words: make([]uint64, (n+63)/64)} }

// Len returns the number of indices there is room for.
func (s *Set) Len() int { return s.n }

// Count returns the number of indices in the set.
func (s *Set) Count() int { return s.count }

// Full reports whether every index is in the set.
func (s *Set) Full() bool { return s.count == s.n }

// Has reports whether i is in the set. An index out of range is not.
func (s *Set) Has(i Index) bool {
	return i >= 0 && int(i) < s.n && s.words[i/64]&(1<<(i%64)) != 0
}

// Add puts i into the set and reports whether it was new. An index out of range is ignored.
func (s *Set) Add(i Index) bool {
	if i < 0 || int(i) >= s.n || s.Has(i) {
		return false
	}
	s.words[i/64] |= 1 << (i % 64)
	s.count++
	return true
}

// Remove takes i out of the set and reports whether it was in it.
func (s *Set) Remove(i Index) bool {
	if !s.Has(i) {
		return false
	}
	s.words[i/64] &^= 1 << (i % 64)
	s.count--
	return true
}

// AddAll fills the set.
func (s *Set) AddAll() {
	for i := range s.n {
		s.Add(Index(i))
	}
}

// Clone returns a copy.
func (s *Set) Clone() *Set {
	return &Set{n: s.n, count: s.count, words: append([]uint64(nil), s.words...)}
}

// All yields the indices in the set in ascending order.
func (s *Set) All() iter.Seq[Index] {
	return func(yield func(Index) bool) {
		for w, word := range s.words {
			for word != 0 {
				if !yield(Index(w*64 + bits.TrailingZeros64(word))) {
					return
				}
				word &= word - 1
			}
		}
	}
}

// Common yields, in ascending order, the indices of [first, end) that are in both sets, which must have room for the same number. Neither
// may be changed meanwhile.
func (s *Set) Common(o *Set, first, end Index) iter.Seq[Index] {
	return func(yield func(Index) bool) {
		first, end := max(first, 0), min(end, Index(s.n))
		for w := first / 64; w*64 < end; w++ {
			word := s.words[w] & o.words[w]
			if w == first/64 {
				word &^= 1<<(first%64) - 1
			}
			for word != 0 {
				i := w*64 + Index(bits.TrailingZeros64(word))
				if i >= end || !yield(i) {
					return
				}
				word &= word - 1
			}
		}
	}
}

// Missing yields the indices that are not in the set in ascending order.
func (s *Set) Missing() iter.Seq[Index] {
	return func(yield func(Index) bool) {
		for i := range s.n {
			if !s.Has(Index(i)) && !yield(Index(i)) {
				return
			}
		}
	}
}

// Bytes returns the set as a bitmap of ceil(n/8) bytes; index i is bit i%8 (least significant first) of byte i/8.
func (s *Set) Bytes() []byte {
	out := make([]byte, (s.n+7)/8)
	for i := range out {
		out[i] = byte(s.words[i/8] >> (8 * (i % 8)))
	}
	return out
}

// SetFromBytes is the inverse of Bytes for a set of n indices. It refuses a bitmap of the wrong length and one
// with bits at or above n.
func SetFromBytes(n int, bitmap []byte) (*Set, error) {
	if n < 0 || len(bitmap) != (n+7)/8 {
		return nil, fmt.Errorf("bitmap of %d pieces: %d bytes, want %d", n, len(bitmap), (n+7)/8)
	}
	s := NewSet(n)
	for i, b := range bitmap {
		s.words[i/8] |= uint64(b) << (8 * (i % 8))
		s.count += bits.OnesCount8(b)
	}
	if r := n % 8; r != 0 && bitmap[len(bitmap)-1]>>r != 0 {
		return nil, fmt.Errorf("bitmap of %d pieces: bits set behind the last piece", n)
	}
	return s, nil
}
