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
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// shelf is a place for images in memory. It implements Images.
type shelf struct {
	blobs map[digest.Digest][]byte
	types map[digest.Digest]string
	tags  map[string]digest.Digest
}

func newShelf() *shelf {
	return &shelf{map[digest.Digest][]byte{}, map[digest.Digest]string{}, map[string]digest.Digest{}}
}

var errAbsent = errors.New("absent")

func (s *shelf) Manifest(_ context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	d := digest.Digest(ref)
	if tagged, ok := s.tags[ref]; ok {
		d = tagged
	}
	raw, ok := s.blobs[d]
	if !ok {
		return ocispec.Descriptor{}, nil, errAbsent
	}
	return ocispec.Descriptor{MediaType: s.types[d], Digest: d, Size: int64(len(raw))}, raw, nil
}

func (s *shelf) Blob(_ context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	raw, ok := s.blobs[d.Digest]
	if !ok {
		return nil, errAbsent
	}
	return io.NopCloser(bytes.NewReader(raw[offset:])), nil
}

func (s *shelf) put(t *testing.T, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	raw, err := json.Marshal(v)
	check(t, err)
	d := digest.FromBytes(raw)
	s.blobs[d], s.types[d] = raw, mediaType
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))}
}

// image puts an image without layers.
func (s *shelf) image(t *testing.T, os, arch string) ocispec.Descriptor {
	t.Helper()
	config := s.put(t, ocispec.MediaTypeImageConfig, v1.ConfigFile{OS: os, Architecture: arch, Author: arch})
	return s.put(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config})
}

func platform(d ocispec.Descriptor, os, arch string) ocispec.Descriptor {
	d.Platform = &ocispec.Platform{OS: os, Architecture: arch}
	return d
}

func TestBasesAreChosenFromAnIndex(t *testing.T) {
	s := newShelf()
	attestation := platform(s.image(t, "linux", "x"), "unknown", "unknown")
	nydus := platform(s.image(t, "linux", "y"), "linux", "amd64")
	nydus.ArtifactType = "application/vnd.nydus.image.manifest.v1+json"
	nested := s.put(t, ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{
		platform(s.image(t, "linux", "arm64"), "linux", "arm64"), s.image(t, "linux", "riscv64"), platform(s.image(t, "windows", "amd64"), "windows", "amd64"),
	}})
	index := s.put(t, ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{
		platform(s.image(t, "linux", "amd64"), "linux", "amd64"), attestation, nydus, nested,
	}})
	s.tags["v1"] = index.Digest
	for _, tc := range []struct {
		platforms []string
		want      string
	}{
		{nil, "[linux/amd64 linux/arm64 linux/riscv64]"},
		{[]string{"linux/arm64"}, "[linux/arm64]"},
		{[]string{"linux/riscv64", "linux/amd64"}, "[linux/riscv64 linux/amd64]"},
	} {
		bases, _, err := OpenBases(t.Context(), s, "x", "v1", tc.platforms)
		check(t, err)
		var got []string
		for _, b := range bases {
			got = append(got, b.Platform.String())
		}
		if fmt.Sprint(got) != tc.want {
			t.Errorf("%v: want %s, got %v", tc.platforms, tc.want, got)
		}
	}
	_, _, err := OpenBases(t.Context(), s, "x", "v1", []string{"linux/s390x"})
	if !errors.Is(err, ErrBase) || !strings.Contains(err.Error(), "linux/arm64") || !strings.Contains(err.Error(), "--platform") {
		t.Errorf("a platform it has not: %v", err)
	}
}

func TestBasesThatCannotBeConvertedAreNamed(t *testing.T) {
	s := newShelf()
	layered := ocispec.Manifest{Config: s.put(t, ocispec.MediaTypeImageConfig, v1.ConfigFile{OS: "linux", Architecture: "amd64"}),
		Layers: []ocispec.Descriptor{{MediaType: "application/vnd.example"}}}
	for name, tc := range map[string]struct {
		desc ocispec.Descriptor
		want string
	}{
		"schema 1":      {s.put(t, string(types.DockerManifestSchema1Signed), map[string]int{"schemaVersion": 1}), "schema 1"},
		"other type":    {s.put(t, "application/vnd.example+json", map[string]int{"a": 1}), "application/vnd.example+json"},
		"windows":       {s.image(t, "windows", "amd64"), "only linux"},
		"no platform":   {s.image(t, "", ""), "only linux"},
		"layer missing": {s.put(t, ocispec.MediaTypeImageManifest, layered), "1 layers, but 0"},
		"empty":         {s.put(t, ocispec.MediaTypeImageIndex, ocispec.Index{}), "no image"},
	} {
		s.tags["v1"] = tc.desc.Digest
		if _, _, err := OpenBases(t.Context(), s, "the base", "v1", nil); !errors.Is(err, ErrBase) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "the base") {
			t.Errorf("%s: want %q, got %v", name, tc.want, err)
		}
	}
}

func TestReferencesOfOtherToolsAreExplained(t *testing.T) {
	dir := t.TempDir()
	archive := filepath.Join(dir, "x.tar")
	check(t, os.WriteFile(archive, nil, 0o600))
	for ref, want := range map[string]string{
		dir:                        "oci:" + dir,
		archive:                    "docker-archive:" + archive,
		"docker-daemon:x:v1":       "docker save",
		"oci-archive:x.tar":        "skopeo copy",
		"docker://r.example.com/x": "leave out docker://",
		"https://r.example.com/x":  "leave out https://",
		"r.example.com/x:v1":       "",
	} {
		if got := Advice(ref); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: want %q, got %q", ref, want, got)
		}
	}
}

// dockerArchive writes an archive as docker save does, with the given images.
func dockerArchive(t *testing.T, layer []byte, manifest string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.tar")
	file, err := os.Create(path)
	check(t, err)
	tw := tar.NewWriter(file)
	config := fmt.Sprintf(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%q]}}`, digest.FromBytes(layer))
	for _, f := range []struct{ name, data string }{{"config.json", config}, {"a/layer.tar", string(layer)}, {"manifest.json", manifest}} {
		check(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.data)), Mode: 0o644}))
		_, err := io.WriteString(tw, f.data)
		check(t, err)
	}
	check(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "b/layer.tar", Linkname: "../a/layer.tar"}))
	check(t, tw.Close())
	check(t, file.Close())
	return path
}

func TestDockerArchiveIsReadInPlace(t *testing.T) {
	layer := []byte("as if it were a tar")
	path := dockerArchive(t, layer, `[{"Config":"config.json","RepoTags":["r.example.com/x:v1"],"Layers":["b/layer.tar"]}]`)
	for _, spec := range []string{path, path + ":r.example.com/x:v1"} {
		archive, tag, err := OpenDockerArchive(spec)
		check(t, err)
		bases, _, err := OpenBases(t.Context(), archive, spec, tag, nil)
		check(t, err)
		for _, offset := range []int64{0, 3} {
			r, err := bases[0].Layer(t.Context(), bases[0].Manifest.Layers[0], offset)
			check(t, err)
			got, err := io.ReadAll(r)
			check(t, err)
			if string(got) != string(layer[offset:]) || bases[0].Manifest.Layers[0].Digest != digest.FromBytes(layer) {
				t.Errorf("%s from %d: %q", spec, offset, got)
			}
			check(t, r.Close())
		}
	}
	archive, _, err := OpenDockerArchive(path)
	check(t, err)
	if _, _, err := OpenBases(t.Context(), archive, "x", "v9", nil); !errors.Is(err, ErrBase) || !strings.Contains(err.Error(), "r.example.com/x:v1") {
		t.Errorf("a tag it has not: %v", err)
	}
}

func TestArchivesThatAreNoneOfDockerAreNamed(t *testing.T) {
	for name, tc := range map[string]struct{ layer, manifest, want string }{
		"no manifest":    {"x", "", "manifest.json"},
		"missing layer":  {"x", `[{"Config":"config.json","Layers":["c/layer.tar"]}]`, "no layer"},
		"missing config": {"x", `[{"Config":"none","Layers":["a/layer.tar"]}]`, "no none"},
	} {
		path := dockerArchive(t, []byte(tc.layer), tc.manifest)
		if _, _, err := OpenDockerArchive(path); !errors.Is(err, ErrBase) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: want %q, got %v", name, tc.want, err)
		}
	}
	noTar := filepath.Join(t.TempDir(), "x")
	check(t, os.WriteFile(noTar, []byte(strings.Repeat("x", 1024)), 0o600))
	for _, path := range []string{noTar, noTar + "-missing"} {
		if _, _, err := OpenDockerArchive(path); !errors.Is(err, ErrBase) || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v", err)
		}
	}
}
