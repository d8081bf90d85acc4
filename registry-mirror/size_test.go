package mirror

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

// TestSizeThatNoManifestTellsIsAskedOfTheOrigin has manifests that say nothing sensible of a blob's size, or contradict each other.
func TestSizeThatNoManifestTellsIsAskedOfTheOrigin(t *testing.T) {
	for name, sizes := range map[string][]int{"none": {0}, "negative": {-5}, "a wrong one before": {7, 300 << 10}, "a wrong one after": {300 << 10, 7}} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, Config{TagTTL: time.Hour, VerdictTTL: time.Hour}, nil)
			for i, size := range sizes {
				tag := fmt.Sprintf("v%d", i)
				f.origin.put(tag, manifestType, manifestOf(f.blob, size))
				f.get("/v2/a/b/manifests/" + tag)
			}
			for _, header := range [][]string{nil, {"Range", "bytes=7-"}} {
				got := f.get(f.blobPath(), header...)
				if want := len(f.blobs.data) - 7*len(header)/2; len(got.body) != want {
					t.Errorf("%v: status %d, %d bytes, want %d", header, got.status, len(got.body), want)
				}
			}
		})
	}
}

func TestBlobIsNotEmptyByTheOriginsWord(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	f.origin.set(func() { f.origin.blobSizes[f.blob.String()] = -1 })
	if got := f.get(f.blobPath()); got.status != http.StatusNotFound {
		t.Errorf("status %d, %d bytes for a blob that its digest says is not empty", got.status, len(got.body))
	}
}
