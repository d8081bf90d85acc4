// Package storetest helps to test the store and what is built on it: content made from a seed, blobs put into a store,
// and the conformance suite Run, which a store passes on every file system and after every way of opening it.
package storetest

import (
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
)

// Content returns size bytes that depend on the seed alone, and their digest.
func Content(seed uint64, size int) ([]byte, digest.Digest) {
	data := make([]byte, size)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(data) // never fails
	return data, digest.FromBytes(data)
}

// Piece returns the bytes of piece i of data and their group digests.
func Piece(data []byte, i piece.Index) ([]byte, []piece.Digest) {
	off, length := piece.NewLayout(int64(len(data))).Range(i)
	part := data[off : off+length]
	return part, piece.HashGroups(part)
}

// WritePiece writes piece i of data to b.
func WritePiece(t testing.TB, b *store.Blob, data []byte, i piece.Index) {
	t.Helper()
	part, groups := Piece(data, i)
	if err := b.Write(i, part, groups); err != nil {
		t.Fatalf("write piece %d: %v", i, err)
	}
}

// Fill puts all of data into s and returns its digest.
func Fill(t testing.TB, s *store.Store, data []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(data)
	b, err := s.Create(d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for i := range b.Layout().Count() {
		WritePiece(t, b, data, piece.Index(i))
	}
	return d
}
