package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// ErrBase is the class of base images that are missing, broken or of another platform. Errors of a registry come as they
// are.
var ErrBase = errors.New("base image")

// ErrDigest is the class of base images whose manifest or configuration has not the digest it is named by.
var ErrDigest = errors.New("digest")

// DefaultPlatform is taken from a base image that has several. It does not depend on the machine, so that neither do the
// digests.
const DefaultPlatform = "linux/amd64"

// refNameAnnotation holds the tag of a manifest in an OCI layout.
const refNameAnnotation = "org.opencontainers.image.ref.name"

// Base is a base image.
type Base struct {
	Ref      string // as it was given
	Platform v1.Platform
	Manifest *v1.Manifest
	Config   []byte // as it stands in the image
	DiffIDs  []v1.Hash
	// Repository is where the layers can be mounted from, if the image comes from a registry.
	Repository *name.Repository

	image v1.Image
}

// OpenBase finds the base image: "oci:FOLDER[:TAG]" is an OCI layout, anything else a reference to a registry, spoken to with
// the options given. platform, "os/arch[/variant]", chooses from an index and is checked against a single image; empty, it
// is what the image has, or DefaultPlatform if it has several.
func OpenBase(ctx context.Context, ref, platform string, nameOpts []name.Option, opts []remote.Option) (*Base, error) {
	want, err := ParsePlatform(platform)
	if err != nil {
		return nil, err
	}
	b := &Base{Ref: ref}
	if folder, ok := strings.CutPrefix(ref, "oci:"); ok {
		b.image, err = openLayout(folder, want)
	} else if err = foreign(ref); err == nil {
		err = b.openRemote(ctx, want, nameOpts, opts)
	}
	if err != nil {
		return nil, err
	}
	return b, b.load(want)
}

// Layer returns the compressed bytes of a layer. They are not verified.
func (b *Base) Layer(d v1.Descriptor) (io.ReadCloser, error) {
	l, err := b.image.LayerByDigest(d.Digest)
	if err != nil {
		return nil, err
	}
	return l.Compressed()
}

// ImageLayer returns the layer as the registry client wants it.
func (b *Base) ImageLayer(d v1.Descriptor) (v1.Layer, error) { return b.image.LayerByDigest(d.Digest) }

// ParsePlatform reads os/arch[/variant]; of nothing it makes nil.
func ParsePlatform(s string) (*v1.Platform, error) {
	if s == "" {
		return nil, nil
	}
	p, err := v1.ParsePlatform(s)
	if err != nil || p.OS == "" || p.Architecture == "" {
		return nil, fmt.Errorf("%w: platform %q: want os/architecture, such as %s", ErrBase, s, DefaultPlatform)
	}
	return p, nil
}

// foreign says what to write instead of a reference that other tools would take, but that is none to a registry.
func foreign(ref string) error {
	for _, scheme := range []string{"docker://", "https://", "http://"} {
		if strings.HasPrefix(ref, scheme) {
			return fmt.Errorf("%w %s: leave out %s", ErrBase, ref, scheme)
		}
	}
	archive := ref
	if strings.HasPrefix(ref, ".") || strings.HasPrefix(ref, "/") {
		if info, err := os.Stat(ref); err != nil || info.IsDir() {
			return fmt.Errorf("%w %s: for a folder with an OCI layout write oci:%s", ErrBase, ref, ref)
		}
		archive = "docker-archive:" + ref
	}
	for _, transport := range []string{"docker-archive:", "docker-daemon:", "oci-archive:", "containers-storage:", "dir:"} {
		if strings.HasPrefix(archive, transport) {
			return fmt.Errorf("%w %s: make an OCI layout of it: skopeo copy %s oci:FOLDER:TAG; then give --base oci:FOLDER:TAG",
				ErrBase, ref, archive)
		}
	}
	return nil
}

func (b *Base) openRemote(ctx context.Context, want *v1.Platform, nameOpts []name.Option, opts []remote.Option) error {
	ref, err := name.ParseReference(b.Ref, nameOpts...)
	if err != nil {
		return fmt.Errorf("%w %q: %w; for a folder with an OCI layout write oci:FOLDER", ErrBase, b.Ref, err)
	}
	repo := ref.Context()
	b.Repository = &repo
	desc, err := remote.Get(ref, append(opts, remote.WithContext(ctx))...)
	if err != nil {
		return err
	}
	switch {
	case desc.MediaType.IsSchema1():
		return fmt.Errorf("%w %s is of Docker's schema 1, which has no layers by digest; push it again with a tool of this decade",
			ErrBase, b.Ref)
	case desc.MediaType.IsImage():
		b.image, err = desc.Image()
		return err
	case !desc.MediaType.IsIndex():
		return fmt.Errorf("%w %s is of media type %s: neither image nor index", ErrBase, b.Ref, desc.MediaType)
	}
	idx, err := desc.ImageIndex()
	if err != nil {
		return err
	}
	b.image, err = choose(b.Ref, idx, want, "")
	return err
}

func openLayout(spec string, want *v1.Platform) (v1.Image, error) {
	folder, tag := spec, ""
	if i := strings.LastIndexByte(spec, ':'); i > strings.LastIndexByte(spec, filepath.Separator) {
		folder, tag = spec[:i], spec[i+1:]
	}
	if _, err := os.Stat(filepath.Join(folder, "index.json")); err != nil {
		return nil, fmt.Errorf("%w oci:%s: no OCI layout there: %w", ErrBase, spec, err)
	}
	idx, err := layout.ImageIndexFromPath(folder)
	if err != nil {
		return nil, fmt.Errorf("%w oci:%s: %w", ErrBase, spec, err)
	}
	img, err := choose("oci:"+spec, idx, want, tag)
	if err != nil && !errors.Is(err, ErrBase) && !errors.Is(err, ErrDigest) {
		err = fmt.Errorf("%w oci:%s: %w", ErrBase, spec, err)
	}
	return img, err
}

// choose picks the image of an index: by tag, if one is given, then by platform.
func choose(ref string, idx v1.ImageIndex, want *v1.Platform, tag string) (v1.Image, error) {
	manifest, err := idx.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrBase, ref, err)
	}
	var candidates []v1.Descriptor
	var have []string
	for _, d := range manifest.Manifests {
		name := d.Annotations[refNameAnnotation]
		if tag != "" && name != tag && !strings.HasSuffix(name, ":"+tag) {
			have = append(have, name)
			continue
		}
		if d.MediaType.IsIndex() {
			nested, err := idx.ImageIndex(d.Digest)
			if err != nil {
				return nil, fmt.Errorf("%w %s: %w", ErrBase, ref, err)
			}
			return choose(ref, nested, want, "")
		}
		if !isImage(d) {
			continue
		}
		candidates = append(candidates, d)
	}
	if len(candidates) == 0 {
		return nil, fmt.Errorf("%w %s: it holds no image%s; tags there: %q", ErrBase, ref, tagged(tag), have)
	}
	if len(candidates) == 1 {
		return verified(ref, idx, candidates[0].Digest)
	}
	if want == nil {
		want, _ = ParsePlatform(DefaultPlatform)
	}
	have = nil
	for _, d := range candidates {
		if d.Platform != nil && d.Platform.Satisfies(*want) {
			return verified(ref, idx, d.Digest)
		}
		have = append(have, called(d))
	}
	return nil, fmt.Errorf("%w %s: no image for %s; there are %s; choose with --platform or by tag",
		ErrBase, ref, want, strings.Join(have, ", "))
}

// verified returns an image of an index. Folders are not to be trusted more than registries.
func verified(ref string, idx v1.ImageIndex, want v1.Hash) (v1.Image, error) {
	img, err := idx.Image(want)
	if err != nil {
		return nil, err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return nil, err
	}
	return img, hasDigest(ref, "manifest", raw, want)
}

func hasDigest(ref, part string, raw []byte, want v1.Hash) error {
	got, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil || got != want {
		return fmt.Errorf("base image %s: its %s has %w %s, not %s", ref, part, ErrDigest, got, want)
	}
	return nil
}

// called returns what an image of an index can be chosen by; not every tool writes the platform.
func called(d v1.Descriptor) string {
	switch tag := d.Annotations[refNameAnnotation]; {
	case d.Platform != nil:
		return d.Platform.String()
	case tag != "":
		return "tag " + tag
	}
	return d.Digest.String()
}

// isImage reports whether a manifest of an index is an image: neither an attestation nor the Nydus variant of one of ours.
// Some tools repeat the configuration's media type as artifact type.
func isImage(d v1.Descriptor) bool {
	switch types.MediaType(d.ArtifactType) {
	case "", types.OCIConfigJSON, types.DockerConfigJSON:
		return d.Platform == nil || d.Platform.OS != "unknown"
	}
	return false
}

func tagged(tag string) string {
	if tag == "" {
		return ""
	}
	return " with tag " + tag
}

// load reads manifest and config and checks what can be checked without the layers.
func (b *Base) load(want *v1.Platform) error {
	var err error
	if b.Manifest, err = b.image.Manifest(); err != nil {
		return fmt.Errorf("%w %s: %w", ErrBase, b.Ref, err)
	}
	if b.Config, err = b.image.RawConfigFile(); err != nil {
		return fmt.Errorf("%w %s: %w", ErrBase, b.Ref, err)
	}
	if err := hasDigest(b.Ref, "configuration", b.Config, b.Manifest.Config.Digest); err != nil {
		return err
	}
	var config v1.ConfigFile
	if err := json.Unmarshal(b.Config, &config); err != nil {
		return fmt.Errorf("%w %s: configuration: %w", ErrBase, b.Ref, err)
	}
	b.Platform = v1.Platform{
		OS: config.OS, Architecture: config.Architecture, Variant: config.Variant,
		OSVersion: config.OSVersion, OSFeatures: config.OSFeatures,
	}
	if want != nil && !b.Platform.Satisfies(*want) {
		return fmt.Errorf("%w %s is for %s, not for %s; choose another base or leave out --platform", ErrBase, b.Ref, b.Platform, want)
	}
	if b.Platform.OS != "linux" || b.Platform.Architecture == "" {
		return fmt.Errorf("%w %s is for %q; only linux images can be converted", ErrBase, b.Ref, b.Platform)
	}
	b.DiffIDs = config.RootFS.DiffIDs
	if len(b.DiffIDs) != len(b.Manifest.Layers) {
		return fmt.Errorf("%w %s: %d layers, but %d in the configuration", ErrBase, b.Ref, len(b.Manifest.Layers), len(b.DiffIDs))
	}
	for _, l := range b.Manifest.Layers {
		if _, err := LayerMediaType(l.MediaType); err != nil {
			return fmt.Errorf("%w %s: %w", ErrBase, b.Ref, err)
		}
	}
	return nil
}

// LayerMediaType returns the OCI media type of a layer; Docker's names say the same.
func LayerMediaType(t types.MediaType) (string, error) {
	switch t {
	case types.OCILayer, types.DockerLayer:
		return string(types.OCILayer), nil
	case types.OCIUncompressedLayer, types.DockerUncompressedLayer:
		return string(types.OCIUncompressedLayer), nil
	case types.OCILayerZStd:
		return string(types.OCILayerZStd), nil
	}
	return "", fmt.Errorf("layer of media type %s: not a tar, tar+gzip or tar+zstd layer", t)
}
