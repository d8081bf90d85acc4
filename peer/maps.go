package peer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/chunkmap"
)

const (
	// mapsKept is how many bootstrap layers' chunk maps stay in memory.
	mapsKept = 16
	// mapBytesKept bounds their lists, in bytes: layers compress well, and their makers need not mean well.
	mapBytesKept = 128 << 20
)

// mapCache keeps the chunk maps of the bootstrap layers used last, and loads each once.
type mapCache struct {
	mu      sync.Mutex // guards entries
	entries map[digest.Digest]*mapEntry
}

type mapEntry struct {
	loaded chan struct{}
	maps   map[digest.Digest]*chunkmap.Map
	err    error
	used   time.Time
	size   int64 // of the maps' lists, in bytes
}

func newMapCache() *mapCache { return &mapCache{entries: map[digest.Digest]*mapEntry{}} }

// loadMap returns the blob's chunk map out of the bootstrap layer that its origin names. The layer is itself fetched as a blob
// without chunk map, so its own digest, which the manifest names, is what all of this hangs on.
func (p *Peer) loadMap(ctx context.Context, b Blob, authorization string) (*chunkmap.Map, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.MapTimeout)
	defer cancel()
	e, mine := p.maps.entry(b.Origin.Map.Layer)
	if mine {
		e.maps, e.err = p.readMaps(ctx, b, authorization)
		p.maps.loaded(b.Origin.Map.Layer, e)
	}
	select {
	case <-e.loaded:
	case <-ctx.Done():
		return nil, fmt.Errorf("chunk maps in %s: %w", b.Origin.Map.Layer, ctx.Err())
	}
	if e.err != nil {
		return nil, fmt.Errorf("chunk maps in %s: %w", b.Origin.Map.Layer, e.err)
	}
	m := e.maps[b.Digest]
	if m == nil {
		return nil, fmt.Errorf("chunk maps in %s: %w for %s", b.Origin.Map.Layer, chunkmap.ErrNotFound, b.Digest)
	}
	if m.Size != b.Size {
		return nil, fmt.Errorf("chunk map of %s in %s is of %d bytes, the blob has %d", b.Digest, b.Origin.Map.Layer, m.Size, b.Size)
	}
	return m, nil
}

func (c *mapCache) entry(layer digest.Digest) (e *mapEntry, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e = c.entries[layer]
	if e == nil {
		e, mine = &mapEntry{loaded: make(chan struct{})}, true
		c.entries[layer] = e
	}
	e.used = time.Now()
	return e, mine
}

// loaded publishes an entry, forgets it at once if it failed, and others when there are too many.
func (c *mapCache) loaded(layer digest.Digest, e *mapEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(e.loaded)
	if e.err != nil {
		delete(c.entries, layer)
	}
	for _, m := range e.maps {
		e.size += int64(32*len(m.Groups) + 20*len(m.Chunks))
	}
	for len(c.entries) > mapsKept || len(c.entries) > 1 && c.size() > mapBytesKept {
		var oldest digest.Digest
		for d, x := range c.entries {
			if oldest == "" || x.used.Before(c.entries[oldest].used) {
				oldest = d
			}
		}
		delete(c.entries, oldest)
	}
}

func (c *mapCache) size() (sum int64) {
	for _, e := range c.entries {
		sum += e.size
	}
	return sum
}

func (p *Peer) readMaps(ctx context.Context, b Blob, authorization string) (map[digest.Digest]*chunkmap.Map, error) {
	origin := b.Origin
	origin.Map = nil
	r, err := p.Open(ctx, Blob{Digest: b.Origin.Map.Layer, Size: b.Origin.Map.Size, Origin: origin}, authorization)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if _, err := r.AwaitAll(ctx); err != nil { // the layer's digest is right only when all of it is there
		return nil, err
	}
	maps, err := chunkmap.AllFromLayer(r.Section(ctx))
	if errors.Is(err, chunkmap.ErrUnsupported) {
		return nil, fmt.Errorf("%w; a newer shoal made this image, upgrade this one", err)
	}
	return maps, err
}
