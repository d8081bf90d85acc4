// Package shards writes model folders of random weights for benchmarks.
package shards

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// Write makes the folder dir a model of size bytes in n safetensors files and an empty config.json, and returns the paths of the files. What
// it writes depends on seed alone.
func Write(dir string, seed uint64, size int64, n int) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var paths []string
	for i := range n {
		path := filepath.Join(dir, fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, n))
		if err := writeShard(path, seed+uint64(i), size/int64(n)); err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, os.WriteFile(filepath.Join(dir, "config.json"), []byte("{}\n"), 0o644)
}

// writeShard writes a safetensors file of random f16 tensors of 32 MiB, as those of a language model are.
func writeShard(path string, seed uint64, size int64) error {
	const tensor = 32 << 20
	header := map[string]any{}
	for at, n := int64(0), 0; at < size; at, n = at+tensor, n+1 {
		end := min(at+tensor, size)
		header[fmt.Sprintf("layers.%d.weight", n)] = map[string]any{"dtype": "F16", "shape": []int64{(end - at) / 2}, "data_offsets": []int64{at, end}}
	}
	raw, err := json.Marshal(header)
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(file, 1<<20)
	_ = binary.Write(w, binary.LittleEndian, uint64(len(raw))) // bufio keeps the error for Flush
	_, _ = w.Write(raw)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	if _, err := io.CopyN(w, rand.NewChaCha8(key), size); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return file.Close()
}
