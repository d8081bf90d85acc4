package bootstrap

import (
	"bytes"
	"io"
	"testing"
)

// BenchmarkPacker packs files as those of a framework are: half of it compresses, half does not. The baseline is to hash and compress one chunk
// after the other.
func BenchmarkPacker(b *testing.B) {
	files := [][]byte{letters(1, 8<<20), noise(2, 8<<20), letters(3, 100<<10), letters(4, 4<<10)}
	total := 0
	for _, f := range files {
		total += len(f)
	}
	for name, kind := range map[string]Compressor{"none": None, "lz4": LZ4, "zstd": Zstd} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(total))
			for b.Loop() {
				p, err := NewPacker(io.Discard, 1<<20, kind, nil)
				check(b, err)
				for _, f := range files {
					check(b, p.Add(&Inode{Mode: TypeRegular, Size: int64(len(f))}, bytes.NewReader(f)))
				}
				_, err = p.Finish()
				check(b, err)
			}
		})
		b.Run(name+", one by one", func(b *testing.B) {
			b.SetBytes(int64(total))
			c, err := newCompressor(kind, 1<<20)
			check(b, err)
			defer c.close()
			for b.Loop() {
				for _, f := range files {
					for at := 0; at < len(f); at += 1 << 20 {
						chunk := f[at:min(at+1<<20, len(f))]
						_ = Blake3.sum(chunk)
						_, err := c.pack(chunk)
						check(b, err)
					}
				}
			}
		})
	}
}
