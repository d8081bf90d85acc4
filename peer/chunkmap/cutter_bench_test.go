package chunkmap

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/zeebo/blake3"
)

// BenchmarkCutter measures the whole: groups, chunks and, for opaque bytes, the search for cuts.
func BenchmarkCutter(b *testing.B) {
	opaque := randomBytes(1, 64<<20)
	weights := safetensorsFile(b, map[string][]byte{"a": opaque[:40<<20], "b": opaque[40<<20 : 63<<20]})
	for _, write := range []int{32 << 10, 1 << 20, 4 << 20} {
		for name, data := range map[string][]byte{"opaque": opaque, "model.safetensors": weights} {
			b.Run(fmt.Sprintf("%s/writes=%dKiB", name, write>>10), func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				b.ReportAllocs()
				for b.Loop() {
					c := NewCutter()
					c.BeginFile(name, int64(len(data)))
					for rest := data; len(rest) > 0; {
						n := min(len(rest), write)
						_, _ = c.Write(rest[:n])
						rest = rest[n:]
					}
					if err := c.EndFile(); err != nil {
						b.Fatal(err)
					}
					c.Map(digest.Digest(""))
				}
			})
		}
	}
}

// BenchmarkGear measures the search for cuts alone.
func BenchmarkGear(b *testing.B) {
	data := randomBytes(2, 16<<20)
	g := newGear()
	g.begin(0)
	b.SetBytes(int64(len(data)))
	chunks := 0
	for b.Loop() {
		for rest := data; len(rest) > 0; chunks++ {
			n, _ := g.scan(0, rest)
			rest = rest[n:]
		}
	}
	b.ReportMetric(float64(len(data))*float64(b.N)/float64(chunks), "B/chunk")
}

// BenchmarkHash measures one pass of BLAKE3, in one piece and as a stream that begins anywhere.
func BenchmarkHash(b *testing.B) {
	data := randomBytes(3, 4<<20)
	for _, size := range []int{64 << 10, piece.GroupSize, 1 << 20, 4 << 20} {
		b.Run(fmt.Sprintf("whole/%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				blake3.Sum256(data[:size])
			}
		})
		b.Run(fmt.Sprintf("stream/%dKiB", size>>10), func(b *testing.B) {
			h := blake3.New()
			_, _ = h.Write(data[:777])
			b.SetBytes(int64(size))
			for b.Loop() {
				_, _ = h.Write(data[:size])
			}
		})
	}
}
