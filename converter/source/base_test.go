package source

import (
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// twoImages writes a layout with two images, each with a tag but without a platform, as skopeo leaves them.
func twoImages(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	check(t, err)
	for _, tag := range []string{"one", "two"} {
		img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", Author: tag})
		check(t, err)
		check(t, path.AppendImage(img, layout.WithAnnotations(map[string]string{refNameAnnotation: tag})))
	}
	return dir
}

func TestImagesWithoutPlatformAreChosenByTag(t *testing.T) {
	dir := twoImages(t)
	if _, err := OpenBase(t.Context(), "oci:"+dir+":two", "", nil, nil); err != nil {
		t.Errorf("with a tag: %v", err)
	}
	_, err := OpenBase(t.Context(), "oci:"+dir, "", nil, nil)
	if !errors.Is(err, ErrBase) || !strings.Contains(err.Error(), "one") || !strings.Contains(err.Error(), "two") {
		t.Errorf("without a tag: want the tags there are, got %v", err)
	}
}

func TestReferencesOfOtherToolsAreExplained(t *testing.T) {
	dir := twoImages(t)
	archive := filepath.Join(t.TempDir(), "x.tar")
	check(t, os.WriteFile(archive, nil, 0o600))
	for ref, want := range map[string]string{
		dir:                         "oci:" + dir,
		archive:                     "skopeo copy",
		"docker-archive:" + archive: "skopeo copy",
		"docker-daemon:x:v1":        "skopeo copy",
		"docker://r.example.com/x":  "leave out docker://",
		"https://r.example.com/x":   "leave out https://",
	} {
		_, err := OpenBase(t.Context(), ref, "", nil, nil)
		if !errors.Is(err, ErrBase) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", ref, want, err)
		}
	}
}

func TestLayoutWithOtherBytesIsRefused(t *testing.T) {
	for _, part := range []string{"manifest", "configuration"} {
		t.Run(part, func(t *testing.T) {
			dir := twoImages(t)
			base, err := OpenBase(t.Context(), "oci:"+dir+":two", "", nil, nil)
			check(t, err)
			hash, err := base.image.Digest()
			check(t, err)
			if part == "configuration" {
				hash = base.Manifest.Config.Digest
			}
			path := filepath.Join(dir, "blobs", "sha256", hash.Hex)
			raw, err := os.ReadFile(path)
			check(t, err)
			check(t, os.WriteFile(path, append(raw, ' '), 0o600))
			if _, err := OpenBase(t.Context(), "oci:"+dir+":two", "", nil, nil); !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), part) {
				t.Errorf("changed: got %v", err)
			}
			check(t, os.Remove(path))
			if _, err := OpenBase(t.Context(), "oci:"+dir+":two", "", nil, nil); !errors.Is(err, ErrBase) || !strings.Contains(err.Error(), "oci:") {
				t.Errorf("missing: got %v", err)
			}
		})
	}
}

func TestManifestsThatAreNoImageAreNamed(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	for mediaType, want := range map[types.MediaType]string{
		types.DockerManifestSchema1Signed: "schema 1",
		"application/vnd.example+json":    "application/vnd.example+json",
	} {
		ref, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://") + "/x:v1")
		check(t, err)
		check(t, remote.Put(ref, manifest(mediaType)))
		if _, err := OpenBase(t.Context(), ref.String(), "", nil, nil); !errors.Is(err, ErrBase) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", mediaType, err)
		}
	}
}

// manifest is a manifest of its media type that says nothing.
type manifest types.MediaType

func (manifest) RawManifest() ([]byte, error)          { return []byte(`{"schemaVersion":1}`), nil }
func (m manifest) MediaType() (types.MediaType, error) { return types.MediaType(m), nil }
