package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// inputs is what everybody works on. Outputs are removed before each run.
type inputs struct {
	model   string
	shards  []string
	tar     string // of the model, for tools that want one
	base    string // OCI layout with the tag base: one small layer, so that the model decides
	outputs string
	size    int64 // of the model in bytes
}

func (in inputs) out(name string) string { return filepath.Join(in.outputs, name) }

func layOut(work string, cfg config) (inputs, error) {
	in := inputs{
		model: filepath.Join(work, "model"), tar: filepath.Join(work, "model.tar"), base: filepath.Join(work, "base"),
		outputs: filepath.Join(work, "out"), size: cfg.size,
	}
	if err := os.MkdirAll(in.model, 0o755); err != nil {
		return in, err
	}
	for i := range cfg.shards {
		path := filepath.Join(in.model, fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, cfg.shards))
		if err := writeShard(path, uint64(i), cfg.size/int64(cfg.shards)); err != nil {
			return in, err
		}
		in.shards = append(in.shards, path)
	}
	if err := os.WriteFile(filepath.Join(in.model, "config.json"), []byte("{}\n"), 0o644); err != nil {
		return in, err
	}
	if err := writeTar(in); err != nil {
		return in, err
	}
	return in, writeBase(in.base)
}

// writeShard writes a safetensors file of random bf16 tensors of 32 MiB, as those of a language model are.
func writeShard(path string, seed uint64, size int64) error {
	const tensor = 32 << 20
	header := map[string]any{}
	for at, n := int64(0), 0; at < size; at, n = at+tensor, n+1 {
		end := min(at+tensor, size)
		header[fmt.Sprintf("layers.%d.weight", n)] = map[string]any{"dtype": "BF16", "shape": []int64{(end - at) / 2}, "data_offsets": []int64{at, end}}
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

func writeTar(in inputs) error {
	file, err := os.Create(in.tar)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(file)
	if err := tw.AddFS(os.DirFS(in.model)); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return file.Close()
}

func writeBase(folder string) error {
	var raw bytes.Buffer
	tw := tar.NewWriter(&raw)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "serve", Mode: 0o755, Size: 5}); err != nil {
		return err
	}
	if _, err := tw.Write([]byte("hello")); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw.Bytes())), nil })
	if err != nil {
		return err
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64"})
	if err != nil {
		return err
	}
	if img, err = mutate.AppendLayers(img, l); err != nil {
		return err
	}
	img = mutate.ConfigMediaType(mutate.MediaType(img, "application/vnd.oci.image.manifest.v1+json"), "application/vnd.oci.image.config.v1+json")
	path, err := layout.Write(folder, empty.Index)
	if err != nil {
		return err
	}
	return path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "base"}))
}
