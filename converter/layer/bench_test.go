package layer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"
)

// shard is a safetensors file of large tensors.
func shard(size int) []byte {
	const tensor = 32 << 20
	var header strings.Builder
	for at := 0; at < size; at += tensor {
		fmt.Fprintf(&header, `,"t%d":{"dtype":"BF16","shape":[%d],"data_offsets":[%d,%d]}`, at/tensor, tensor/2, at, at+tensor)
	}
	text := "{" + header.String()[1:] + "}"
	data := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
	return append(append(data, text...), noise(1, size)...)
}

// BenchmarkWriter measures the pass over a model's bytes: sha256 of the layer, and BLAKE3 of its groups, its chunks and its RAFS chunks. The
// baseline is one sha256 pass: BenchmarkSHA256.
func BenchmarkWriter(b *testing.B) {
	data := shard(128 << 20)
	for _, name := range []string{"weights.safetensors", "weights.bin"} {
		b.Run(name, func(b *testing.B) {
			cfg := testConfig()
			cfg.ChunkSize = 1 << 20
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				w := NewWriter(io.Discard, cfg)
				check(b, w.Add(b.Context(), &Entry{Name: name, Size: int64(len(data))}, bytes.NewReader(data)))
				_, err := w.Finish()
				check(b, err)
			}
		})
	}
}

func BenchmarkSHA256(b *testing.B) {
	data := shard(128 << 20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		sha256.Sum256(data)
	}
}
