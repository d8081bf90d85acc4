package chunkmap

import (
	"encoding/binary"
	"math/bits"

	"github.com/zeebo/blake3"
)

// The bounds of content-defined chunks for a mean of meanChunk; they grow with it.
const (
	meanChunk = 64 << 10
	minShare  = 4 // of the mean: the least length
	maxShare  = 4 // means: the greatest, but never above MaxChunk
	window    = 64
	// doublings is how often the mean doubles at most: to 2 MiB, half of MaxChunk.
	doublings = 5
	// firstDoubling is the bit length below which offsets have the first mean: 4 GiB.
	firstDoubling = 32
	// normal is the power of two by which cuts are rarer before the mean length and more frequent behind it.
	normal = 2
)

const gearSeed = "shoal chunkmap gear"

// gear finds content-defined cuts. Its hash depends on the last 64 bytes alone, as older ones are shifted out.
type gear struct {
	table [256]uint64
	twice [256]uint64 // the table's values doubled
	hash  uint64

	least, mean, most int // lengths of the chunk begun
	bar               uint64
}

func newGear() gear {
	var g gear
	for i := range g.table {
		d := blake3.Sum256(append([]byte(gearSeed), byte(i)))
		g.table[i] = binary.LittleEndian.Uint64(d[:])
		g.twice[i] = g.table[i] << 1
	}
	return g
}

// begin sets the lengths for a chunk that begins at an offset of the blob.
func (g *gear) begin(offset int64) {
	k := min(bits.Len64(uint64(offset)>>firstDoubling), doublings)
	g.mean = meanChunk << k
	g.least, g.most = g.mean/minShare, min(g.mean*maxShare, MaxChunk)
	g.bar = 1 << (64 - bits.TrailingZeros(uint(g.mean)))
}

// scan looks for the end of a chunk that has length bytes already and goes on with p, which is not empty. It returns how
// many bytes of p belong to the chunk, and whether it ends there.
func (g *gear) scan(length int, p []byte) (n int, last bool) {
	p = p[:min(len(p), g.most-length)]
	if skip := g.least - window - length; skip > 0 { // these bytes decide nothing
		n = min(skip, len(p))
	}
	for n < len(p) && length+n < g.most {
		at := length + n
		end, bar := g.most, g.bar<<normal
		switch {
		case at < g.least-1:
			end, bar = g.least-1, 0
		case at < g.mean-1:
			end, bar = g.mean-1, g.bar>>normal
		}
		found := g.roll(p[n:min(len(p), n+end-at)], bar)
		if found > 0 {
			return n + found, true
		}
		n = min(len(p), n+end-at)
	}
	return n, length+n == g.most
}

// roll takes the bytes of p into the hash until it is below bar, and returns how many these were, or 0. It goes two bytes
// a step: what must wait for the hash before is then half as long.
func (g *gear) roll(p []byte, bar uint64) int {
	h, t, twice, i := g.hash, &g.table, &g.twice, 0
	for ; len(p)-i >= 4; i += 4 {
		b := p[i : i+4 : i+4]
		if h<<1+t[b[0]] < bar {
			return i + 1
		}
		if h = h<<2 + (twice[b[0]] + t[b[1]]); h < bar {
			return i + 2
		}
		if h<<1+t[b[2]] < bar {
			return i + 3
		}
		if h = h<<2 + (twice[b[2]] + t[b[3]]); h < bar {
			return i + 4
		}
	}
	for ; i < len(p); i++ {
		if h = h<<1 + t[p[i]]; h < bar {
			return i + 1
		}
	}
	g.hash = h
	return 0
}
