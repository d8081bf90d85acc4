package converter_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/snapshotter/readfs"
)

// imageIn is what a layout has under a tag.
type imageIn struct {
	folder    string
	index     ocispec.Index
	manifests []ocispec.Manifest // in the index's order
}

func (i *imageIn) blob(t testing.TB, d digest.Digest) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(i.folder, "blobs/sha256", d.Encoded()))
	check(t, err)
	if digest.FromBytes(raw) != d {
		t.Fatalf("blob %s has other bytes", d)
	}
	return raw
}

// openLayout reads oci:FOLDER:v1.
func openLayout(t testing.TB, target string) *imageIn {
	t.Helper()
	img := &imageIn{folder: strings.TrimSuffix(strings.TrimPrefix(target, "oci:"), ":v1")}
	raw, err := os.ReadFile(filepath.Join(img.folder, "index.json"))
	check(t, err)
	var top ocispec.Index
	check(t, json.Unmarshal(raw, &top))
	for _, d := range top.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == "v1" {
			check(t, json.Unmarshal(img.blob(t, d.Digest), &img.index))
		}
	}
	for _, d := range img.index.Manifests {
		var m ocispec.Manifest
		check(t, json.Unmarshal(img.blob(t, d.Digest), &m))
		img.manifests = append(img.manifests, m)
	}
	return img
}

// variant returns the manifest of a kind: "" for the first plain one.
func (i *imageIn) variant(t testing.TB, artifactType string) *ocispec.Manifest {
	t.Helper()
	for at, d := range i.index.Manifests {
		if d.ArtifactType == artifactType {
			return &i.manifests[at]
		}
	}
	t.Fatalf("no manifest of type %q", artifactType)
	return nil
}

// wantModel reads the model from both variants in a layout and compares it with the digests of its files.
func wantModel(t testing.TB, target string, want map[string]string) {
	t.Helper()
	img := openLayout(t, target)
	plain, nydus := map[string]string{}, map[string]string{}
	for _, l := range img.variant(t, "").Layers {
		if l.MediaType != ocispec.MediaTypeImageLayer {
			continue // of the base
		}
		tr := tar.NewReader(bytes.NewReader(img.blob(t, l.Digest)))
		for {
			hdr, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			check(t, err)
			if hdr.Typeflag == tar.TypeReg {
				note(t, plain, hdr.Name, tr)
			}
		}
	}
	f, boot := img.readFS(t)
	check(t, boot.Walk(func(path string, n *bootstrap.Inode) error {
		if n.Type() == bootstrap.TypeRegular {
			r, err := f.Open(path)
			check(t, err)
			note(t, nydus, path, r)
			check(t, r.Close())
		}
		return nil
	}))
	for name, got := range map[string]map[string]string{"plain": plain, "Nydus": nydus} {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s variant of %s (-want +got):\n%s", name, target, diff)
		}
	}
}

func (i *imageIn) readFS(t testing.TB) (*readfs.FS, *bootstrap.Image) {
	t.Helper()
	layers := i.variant(t, image.ArtifactTypeNydus).Layers
	files, err := image.FilesOfLayer(bytes.NewReader(i.blob(t, layers[len(layers)-1].Digest)), image.IsMetadata, 1<<30)
	check(t, err)
	raw := files[image.BootstrapName]
	boot, err := bootstrap.Decode(bytes.NewReader(raw), int64(len(raw)))
	check(t, err)
	f, err := readfs.New(boot, readfs.Config{Open: func(b *bootstrap.Blob) (io.ReaderAt, error) {
		return os.Open(filepath.Join(i.folder, "blobs/sha256", b.Digest.Encoded()))
	}})
	check(t, err)
	t.Cleanup(func() { check(t, f.Close()) })
	return f, boot
}

// note records the sha256 of a file of the model; the folder it is in is the last but one above models, or /opt/some/where.
func note(t testing.TB, sums map[string]string, name string, r io.Reader) {
	t.Helper()
	rest := strings.TrimPrefix(name, "opt/some/where/")
	if below, ok := strings.CutPrefix(name, "models/"); ok {
		_, rest, _ = strings.Cut(below, "/")
	} else if rest == name {
		return
	}
	sum := sha256.New()
	_, err := io.Copy(sum, r)
	check(t, err)
	sums[rest] = hex.EncodeToString(sum.Sum(nil))
}
