package source

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// DockerArchive is an image as docker save and podman save write it: a tar of layer tars, which some compress. A layer's digest is the one
// the configuration names, or, if it is compressed, that of its bytes, which are read once for it. It implements Images.
type DockerArchive struct {
	path     string
	blobs    map[digest.Digest]section
	manifest map[string]ocispec.Descriptor // by tag, the whole name; and by digest
	raw      map[digest.Digest][]byte
}

// section is where a file of the archive lies.
type section struct{ offset, size int64 }

// maxArchiveEntries bounds the files of an archive; an image has some hundred.
const maxArchiveEntries = 10_000

// OpenDockerArchive reads FILE[:NAME:TAG] up to the contents of its layers and returns the archive and the tag. The errors are of class ErrBase.
func OpenDockerArchive(spec string) (*DockerArchive, string, error) {
	file, tag := spec, ""
	if _, err := os.Stat(spec); err != nil { // a name with a colon in it is one, unless it is not there
		file, tag, _ = strings.Cut(spec, ":")
	}
	a := &DockerArchive{path: file, blobs: map[digest.Digest]section{}, manifest: map[string]ocispec.Descriptor{}, raw: map[digest.Digest][]byte{}}
	if err := a.load(); err != nil {
		return nil, "", fmt.Errorf("%w docker-archive:%s: %w", ErrBase, spec, err)
	}
	return a, tag, nil
}

// saved is one image in manifest.json.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *DockerArchive) load() error {
	file, err := os.Open(a.path)
	if err != nil {
		return err
	}
	defer file.Close()
	files, err := sections(file)
	if err != nil {
		return err
	}
	raw, err := files.read(file, "manifest.json")
	if err != nil {
		return fmt.Errorf("it was not made by docker save or podman save: %w", err)
	}
	var images []saved
	if err := json.Unmarshal(raw, &images); err != nil {
		return fmt.Errorf("manifest.json: %w", err)
	}
	for _, img := range images {
		if err := a.add(file, files, img); err != nil {
			return err
		}
	}
	return nil
}

// archiveFiles are the files of an archive by name; links lead to files.
type archiveFiles map[string]section

func sections(file io.ReadSeeker) (archiveFiles, error) {
	files, links := archiveFiles{}, map[string]string{}
	tr := tar.NewReader(file)
	for range maxArchiveEntries {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			for name, target := range links {
				if s, ok := files[target]; ok {
					files[name] = s
				}
			}
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("it is no tar, or a broken one: %w; if it is compressed, unpack it first", err)
		}
		switch name := path.Clean(hdr.Name); hdr.Typeflag {
		case tar.TypeReg:
			offset, err := file.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			files[name] = section{offset, hdr.Size}
		case tar.TypeSymlink: // docker before 25 shares equal layers so
			links[name] = path.Join(path.Dir(name), hdr.Linkname)
		case tar.TypeLink:
			links[name] = path.Clean(hdr.Linkname)
		}
	}
	return nil, fmt.Errorf("more than %d files", maxArchiveEntries)
}

func (f archiveFiles) read(r io.ReaderAt, name string) ([]byte, error) {
	s, ok := f[path.Clean(name)]
	if !ok {
		return nil, fmt.Errorf("it holds no %s", name)
	}
	if s.size > maxConfig {
		return nil, fmt.Errorf("%s of %d bytes", name, s.size)
	}
	return io.ReadAll(io.NewSectionReader(r, s.offset, s.size))
}

// add makes a manifest for an image of the archive.
func (a *DockerArchive) add(file io.ReaderAt, files archiveFiles, img saved) error {
	config, err := files.read(file, img.Config)
	if err != nil {
		return err
	}
	var about struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &about); err != nil {
		return fmt.Errorf("%s: %w", img.Config, err)
	}
	if len(about.RootFS.DiffIDs) != len(img.Layers) {
		return fmt.Errorf("%d layers, but %d in the configuration", len(img.Layers), len(about.RootFS.DiffIDs))
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config)),
	}}
	a.raw[m.Config.Digest] = config
	for i, layer := range img.Layers {
		s, ok := files[path.Clean(layer)]
		d := about.RootFS.DiffIDs[i]
		if !ok || d.Validate() != nil {
			return fmt.Errorf("it holds no layer %s (%s)", layer, d)
		}
		desc := ocispec.Descriptor{MediaType: layerType(file, s), Digest: d, Size: s.size}
		if desc.MediaType != string(types.OCIUncompressedLayer) {
			if desc.Digest, err = digest.FromReader(io.NewSectionReader(file, s.offset, s.size)); err != nil {
				return fmt.Errorf("layer %s: %w", layer, err)
			}
		}
		a.blobs[desc.Digest] = s
		m.Layers = append(m.Layers, desc)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	a.raw[desc.Digest] = raw
	a.manifest[desc.Digest.String()] = desc
	for _, tag := range img.RepoTags {
		a.manifest[tag] = desc
	}
	return nil
}

// layerType tells by its first bytes how a layer is compressed.
func layerType(file io.ReaderAt, s section) string {
	head := make([]byte, min(4, s.size))
	_, _ = file.ReadAt(head, s.offset) // who reads the layer finds the same fault
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return string(types.OCILayer)
	case string(head) == "\x28\xb5\x2f\xfd":
		return string(types.OCILayerZStd)
	}
	return string(types.OCIUncompressedLayer)
}

// Manifest returns the manifest made for an image of the archive, by NAME:TAG, by TAG or digest; by "" the only one there is.
func (a *DockerArchive) Manifest(_ context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	found := map[digest.Digest]ocispec.Descriptor{}
	var have []string
	for name, desc := range a.manifest {
		if ref == "" || name == ref || strings.HasSuffix(name, ":"+ref) || strings.HasSuffix(name, "/"+ref) {
			found[desc.Digest] = desc
		}
		if digest.Digest(name).Validate() != nil {
			have = append(have, name)
		}
	}
	if len(found) != 1 {
		return ocispec.Descriptor{}, nil, fmt.Errorf("%w docker-archive:%s: %d images are called %q; there are %q", ErrBase, a.path, len(found), ref, have)
	}
	for _, desc := range found {
		return desc, a.raw[desc.Digest], nil
	}
	return ocispec.Descriptor{}, nil, nil // unreachable
}

// Blob returns the bytes of a blob from offset on. They are not verified: a layer is by who unpacks it, for its digest is that of the
// unpacked bytes.
func (a *DockerArchive) Blob(_ context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	if raw, ok := a.raw[d.Digest]; ok {
		return io.NopCloser(bytes.NewReader(raw[min(offset, int64(len(raw))):])), nil
	}
	s, ok := a.blobs[d.Digest]
	if !ok {
		return nil, fmt.Errorf("%w docker-archive:%s: it holds no blob %s", ErrBase, a.path, d.Digest)
	}
	file, err := os.Open(a.path)
	if err != nil {
		return nil, err
	}
	return &archiveBlob{Reader: io.NewSectionReader(file, s.offset+offset, s.size-offset), file: file}, nil
}

type archiveBlob struct {
	io.Reader
	file *os.File
}

func (b *archiveBlob) Close() error { return b.file.Close() }
