package peer

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/piece"
)

func TestChunkMapsInMemoryAreBounded(t *testing.T) {
	c := newMapCache()
	big := make([]piece.Digest, mapBytesKept/32/4+1) // each a little over a quarter
	for i := range 8 {
		layer := digest.FromString(fmt.Sprint(i))
		e, mine := c.entry(layer)
		if !mine {
			t.Fatal("loaded by somebody else")
		}
		e.maps = map[digest.Digest]*chunkmap.Map{layer: {Groups: big}}
		c.loaded(layer, e)
	}
	if got := len(c.entries); got != 3 {
		t.Errorf("%d layers are kept, want 3", got)
	}
}
