package store_test

import (
	"testing"
	"time"

	"github.com/shoal-project/shoal/peer/store"
)

// 50 blobs of 2000 chunks are 100,000, and as many pieces.
const rebuildBlobs, rebuildChunks = 50, 2000

// TestStoreOfAHundredThousandChunksIsRebuiltInTime prints how much of the two seconds it takes. It fails only far above them, since the
// machine may do other things.
func TestStoreOfAHundredThousandChunksIsRebuiltInTime(t *testing.T) {
	dir := t.TempDir()
	last := manyChunks(t, dir, rebuildBlobs, rebuildChunks)
	began := time.Now()
	s := open(t, dir, store.Config{})
	opened := time.Since(began)
	found := s.FindChunks(last, "")
	took := time.Since(began)
	if len(found) != len(last) {
		t.Fatalf("found %d of %d chunks", len(found), len(last))
	}
	if held := s.Usage().Held; held != rebuildBlobs*rebuildChunks*256<<10 {
		t.Errorf("%d bytes are held", held)
	}
	const limit = 2 * time.Second
	t.Logf("opened in %v, chunks found after %v: %.3f of %v", opened, took, float64(took)/float64(limit), limit)
	if took > 5*limit {
		t.Errorf("it took %v", took)
	}
}

func BenchmarkRebuild(b *testing.B) {
	dir := b.TempDir()
	manyChunks(b, dir, rebuildBlobs, rebuildChunks)
	for b.Loop() {
		s, err := store.Open(dir, store.Config{})
		if err != nil {
			b.Fatal(err)
		}
		_ = s.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(rebuildBlobs*rebuildChunks), "ns/chunk")
}

func BenchmarkFindChunks(b *testing.B) {
	dir := b.TempDir()
	last := manyChunks(b, dir, rebuildBlobs, rebuildChunks)
	s := open(b, dir, store.Config{})
	b.ReportAllocs()
	for b.Loop() {
		if len(s.FindChunks(last, "")) != len(last) {
			b.Fatal("not all found")
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(rebuildBlobs*rebuildChunks), "ns/chunk")
}
