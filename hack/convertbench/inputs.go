package main

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/shoal-project/shoal/hack/shards"
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
	var err error
	if in.shards, err = shards.Write(in.model, 0, cfg.size, cfg.shards); err != nil {
		return in, err
	}
	if err := writeTar(in); err != nil {
		return in, err
	}
	return in, writeBase(in.base)
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
