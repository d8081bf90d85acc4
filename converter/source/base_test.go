package source

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
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
