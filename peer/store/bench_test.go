package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

// The blob is 1 GiB in pieces of 512 KiB; the benchmarks write its pieces round and round.
const (
	benchBlob  = 1 << 30
	benchPiece = 512 << 10
)

func BenchmarkPlainWriteAt(b *testing.B) {
	data, _ := storetest.Content(1, benchPiece)
	f, err := os.Create(filepath.Join(b.TempDir(), "data"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.SetBytes(benchPiece)
	b.ReportAllocs()
	for n := int64(0); b.Loop(); n++ {
		if _, err := f.WriteAt(data, n*benchPiece%benchBlob); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWrite is what the store adds to a plain WriteAt: the group digests, the index, the locks.
func BenchmarkWrite(b *testing.B) {
	data, d := storetest.Content(1, benchPiece)
	groups := piece.HashGroups(data)
	s := open(b, b.TempDir(), store.Config{})
	b.SetBytes(benchPiece)
	b.ReportAllocs()
	var blob *store.Blob
	for n := 0; b.Loop(); n++ {
		i := piece.Index(n % (benchBlob / benchPiece))
		if i == 0 {
			b.StopTimer()
			if blob != nil {
				if err := blob.Drop(); err != nil {
					b.Fatal(err)
				}
				_ = blob.Close()
			}
			var err error
			if blob, err = s.Create(d, benchBlob); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		if err := blob.Write(i, data, groups); err != nil {
			b.Fatal(err)
		}
	}
	_ = blob.Close()
}

// BenchmarkEnsureVerified is the cost of a range whose pieces this process has verified before.
func BenchmarkEnsureVerified(b *testing.B) {
	s := open(b, b.TempDir(), store.Config{})
	d := fillOne(b, s, 1, 8*piece.GroupSize)
	blob := get(b, s, d)
	b.ReportAllocs()
	for b.Loop() {
		if err := blob.EnsureVerified(piece.GroupSize, piece.GroupSize); err != nil {
			b.Fatal(err)
		}
	}
}
