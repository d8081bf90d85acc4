package converter

import (
	"cmp"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/peer/chunkmap"
)

// fitMaps returns the chunk maps of an image with no more than limit bytes in all, which is what their readers take. While they are
// more, the one with the most chunks loses them: that is an opaque blob, and a reader without chunks still verifies every group.
func fitMaps(all map[digest.Digest]*chunkmap.Map, limit int) (map[digest.Digest]*chunkmap.Map, error) {
	total := 0
	for _, m := range all {
		total += m.EncodedSize()
	}
	if total <= limit {
		return all, nil
	}
	out := maps.Clone(all)
	order := slices.SortedFunc(maps.Keys(all), func(a, b digest.Digest) int {
		return cmp.Or(len(all[b].Chunks)-len(all[a].Chunks), cmp.Compare(a, b))
	})
	for _, d := range order {
		if total <= limit {
			break
		}
		short := *all[d]
		short.Chunks = nil
		total -= all[d].EncodedSize() - short.EncodedSize()
		out[d] = &short
	}
	if total > limit {
		return nil, classify(ErrSource, "the digests of its parts have %d bytes, and readers take %d; make several images of the model", total, limit)
	}
	return out, nil
}
