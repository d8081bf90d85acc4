package converter_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter"
)

func TestHostileBaseLayers(t *testing.T) {
	huge := tarOf(t, file("big", "x"))
	copy(huge[124:136], "77777777777\x00")
	fixChecksum(huge[:512])
	outside := filepath.Join(t.TempDir(), "outside")
	for _, tc := range []struct {
		name string
		tar  []byte
		want string
	}{
		{"up", tarOf(t, file("../../"+outside, "x")), "leads out"},
		{"hard link up", tarOf(t, file("a", ""), link(tar.TypeLink, "b", "../../etc/passwd")), "leads out"},
		{"hard link to nothing", tarOf(t, link(tar.TypeLink, "b", "a")), "no file"},
		{"link loop", tarOf(t, link(tar.TypeSymlink, "a", "b"), link(tar.TypeSymlink, "b", "a"), file("a/x", "")), "symbolic links"},
		{"size that lies", huge, "big"},
		{"not a tar", bytes.Repeat([]byte("x"), 2048), "bad tar"},
		{"cut", tarOf(t, file("a", strings.Repeat("x", 9000)))[:4096], "bad tar"},
		{"whiteout of dots", tarOf(t, file("a/.wh...", "")), "hides nothing"},
		{"endless name", tarOf(t, file(strings.Repeat("n", 300), "")), "too long"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := config(t, "example.com/ml/tiny:v1")
			cfg.DryRun = true
			cfg.Base = writeLayout(t, baseImage(t, linuxAMD64(), tc.tar))
			_, err := converter.Convert(t.Context(), cfg)
			wantError(t, err, converter.ErrSource, tc.want)
			if err != nil && !strings.Contains(err.Error(), "layer 1") {
				t.Errorf("the layer is not named: %v", err)
			}
		})
	}
	if _, err := os.Stat(outside); err == nil {
		t.Error("a file was written outside")
	}
}

func TestHostileLinkParentsStayInTheImage(t *testing.T) {
	outside := t.TempDir()
	cfg := config(t, "example.com/ml/tiny:v1")
	cfg.DryRun = true
	cfg.Base = writeLayout(t, baseImage(t, linuxAMD64(), tarOf(t, link(tar.TypeSymlink, "out", outside), file("out/x", "x"),
		file(outside+"/y", "y"))))
	_, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	if files, _ := os.ReadDir(outside); len(files) != 0 {
		t.Errorf("files were written outside: %v", files)
	}
}

func fixChecksum(h []byte) {
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func TestCompressionsOfBaseLayers(t *testing.T) {
	plain := tarOf(t, file("a", "a"))
	zw, err := zstd.NewWriter(nil)
	check(t, err)
	packed := zw.EncodeAll(plain, nil)
	for _, tc := range []struct {
		name      string
		raw       []byte
		mediaType types.MediaType
		want      string
	}{
		{"none", plain, types.OCIUncompressedLayer, ocispec.MediaTypeImageLayer},
		{"zstd", packed, types.OCILayerZStd, ocispec.MediaTypeImageLayerZstd},
		{"docker's gzip", gzipped(t, plain), types.DockerLayer, ocispec.MediaTypeImageLayerGzip},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := config(t, "example.com/ml/tiny:v1")
			cfg.DryRun = true
			cfg.Base = writeLayout(t, rawImage(t, tc.raw, tc.mediaType))
			_, err := converter.Convert(t.Context(), cfg)
			// The fixture's DiffID is that of the stored bytes, so only the uncompressed layer passes the last check.
			if tc.name == "none" {
				check(t, err)
			} else {
				wantError(t, err, converter.ErrVerify, "unpacks to")
			}
		})
	}
	cfg := config(t, "example.com/ml/tiny:v1")
	cfg.Base = writeLayout(t, rawImage(t, plain, "application/vnd.example"))
	_, err = converter.Convert(t.Context(), cfg)
	wantError(t, err, converter.ErrSource, "application/vnd.example")
}

func TestCorruptBaseLayerIsFound(t *testing.T) {
	base := writeLayout(t, smallBase(t))
	img := smallBase(t)
	manifest, err := img.Manifest()
	check(t, err)
	folder := strings.TrimSuffix(strings.TrimPrefix(base, "oci:"), ":latest")
	path := filepath.Join(folder, "blobs/sha256", manifest.Layers[0].Digest.Hex)
	raw, err := os.ReadFile(path)
	check(t, err)
	check(t, os.WriteFile(path, append(raw, 0), 0o600))
	cfg := config(t, "example.com/ml/tiny:v1")
	cfg.Base, cfg.DryRun = base, true
	_, err = converter.Convert(t.Context(), cfg)
	wantAny := errors.Is(err, converter.ErrVerify) || errors.Is(err, converter.ErrSource)
	if err == nil || !wantAny {
		t.Errorf("a byte more: %v", err)
	}
}

func TestImageHasThePlatformsOfItsBase(t *testing.T) {
	arm := v1.Platform{OS: "linux", Architecture: "arm64"}
	windows := baseImage(t, v1.Platform{OS: "windows", Architecture: "amd64"})
	base := writeLayout(t, baseImage(t, arm, tarOf(t, dir("arm"))), smallBase(t), windows)
	for _, tc := range []struct{ platforms, want []string }{
		{nil, []string{"linux/arm64", "linux/amd64"}}, {[]string{"linux/amd64"}, []string{"linux/amd64"}},
	} {
		cfg := config(t, "oci:"+t.TempDir()+":v1")
		cfg.Base, cfg.Platforms = base, tc.platforms
		r, err := converter.Convert(t.Context(), cfg)
		check(t, err)
		var got []string
		model := 0
		for _, v := range r.Variants {
			got = append(got, v.Platform)
		}
		for _, l := range r.Layers {
			if l.Kind == "model" {
				model++
			}
		}
		if diff := cmp.Diff(tc.want, got); diff != "" || model != 3 {
			t.Errorf("platforms %v (-want +got):\n%s%d model layers", tc.platforms, diff, model)
		}
		_, err = converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target})
		check(t, err)
	}
	cfg := config(t, "example.com/ml/tiny:v1")
	cfg.Base, cfg.Platforms, cfg.DryRun = base, []string{"linux/s390x"}, true
	_, err := converter.Convert(t.Context(), cfg)
	wantError(t, err, converter.ErrSource, "there are linux/arm64, linux/amd64")
}
