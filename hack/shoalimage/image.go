package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The user of the image has no right but to its own files.
const (
	userID   = 65532
	userName = "nonroot"
	userHome = "/nonroot"
)

const program = "github.com/shoal-project/shoal/cmd/shoal"

// newIndex builds the binaries and returns the image for all platforms. Nothing in it tells of the clock or of folders.
func newIndex(ctx context.Context, version string, platforms []string, certificates []byte) (v1.ImageIndex, error) {
	annotations := map[string]string{
		ocispec.AnnotationTitle:   "shoal",
		ocispec.AnnotationVersion: version,
		ocispec.AnnotationSource:  "https://" + strings.TrimSuffix(program, "/cmd/shoal"),
	}
	files, err := newLayer(systemFiles(certificates))
	if err != nil {
		return nil, err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, text := range platforms {
		platform, err := v1.ParsePlatform(text)
		if err != nil || platform.OS == "" || platform.Architecture == "" {
			return nil, fmt.Errorf("--platform %q: want OS/ARCH", text)
		}
		binary, err := compile(ctx, version, *platform)
		if err != nil {
			return nil, fmt.Errorf("build for %s: %w", text, err)
		}
		shoal, err := newLayer([]entry{{Header: tar.Header{Name: "shoal", Mode: 0o755}, data: binary}})
		if err != nil {
			return nil, err
		}
		img, err := newImage(*platform, annotations, files, shoal)
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	return mutate.Annotations(index, annotations).(v1.ImageIndex), nil
}

// compile returns the static binary. Neither folders nor the state of the checkout are stamped into it.
func compile(ctx context.Context, version string, platform v1.Platform) ([]byte, error) {
	dir, err := os.MkdirTemp("", "shoalimage.")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // nothing in it is wanted
	out := filepath.Join(dir, "shoal")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+version, "-o", out, program)
	// What the environment could change in the binary is set to one value.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOEXPERIMENT=", "GOAMD64=v1", "GOARM64=v8.0", "GOARM=",
		"GOOS="+platform.OS, "GOARCH="+platform.Architecture)
	if strings.HasPrefix(platform.Variant, "v") && platform.Architecture == "arm" {
		cmd.Env = append(cmd.Env, "GOARM="+platform.Variant[1:])
	}
	if said, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, said)
	}
	return os.ReadFile(out)
}

// newImage puts layers together, with the binary as the image's only command.
func newImage(platform v1.Platform, annotations map[string]string, layers ...v1.Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Variant = platform.OS, platform.Architecture, platform.Variant
	cfg.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	cfg.History = nil // which would have to tell of every layer, and has nothing to tell
	cfg.Config = v1.Config{
		Entrypoint: []string{"/shoal"},
		User:       fmt.Sprintf("%d:%d", userID, userID), // by number: Kubernetes cannot tell from a name that it is not root
		Env:        []string{"PATH=/", "HOME=" + userHome},
		WorkingDir: userHome,
		Labels:     annotations,
	}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return nil, err
	}
	return mutate.Annotations(img, annotations).(v1.Image), nil
}

// entry is one file of a layer.
type entry struct {
	tar.Header
	data []byte
}

// systemFiles is what a static binary wants of a system: certificates, names of users, a folder for temporary files, and a home
// where credentials can be mounted.
func systemFiles(certificates []byte) []entry {
	text := func(name, content string) entry { return entry{tar.Header{Name: name, Mode: 0o644}, []byte(content)} }
	folder := func(name string, mode int64, owner int) entry {
		return entry{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, Uid: owner, Gid: owner}, nil}
	}
	return []entry{
		folder("etc", 0o755, 0),
		text("etc/group", fmt.Sprintf("root:x:0:\n%s:x:%d:\n", userName, userID)),
		text("etc/passwd", fmt.Sprintf("root:x:0:0:root:/root:/sbin/nologin\n%s:x:%d:%d::%s:/sbin/nologin\n", userName, userID, userID, userHome)),
		folder("etc/ssl", 0o755, 0),
		folder("etc/ssl/certs", 0o755, 0),
		text("etc/ssl/certs/ca-certificates.crt", string(certificates)),
		folder(strings.TrimPrefix(userHome, "/"), 0o755, userID),
		folder("tmp", 0o1777, 0),
	}
}

// newLayer packs the entries, each with time 0.
func newLayer(entries []entry) (v1.Layer, error) {
	var packed bytes.Buffer
	tw := tar.NewWriter(&packed)
	for _, e := range entries {
		e.Size, e.ModTime, e.Format = int64(len(e.data)), time.Unix(0, 0), tar.FormatUSTAR
		if e.Typeflag == 0 {
			e.Typeflag = tar.TypeReg
		}
		if err := tw.WriteHeader(&e.Header); err != nil {
			return nil, err
		}
		if _, err := tw.Write(e.data); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}
