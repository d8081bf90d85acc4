package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrBase is the class of base images that are missing, broken or of another platform. Errors of a registry come as they
// are.
var ErrBase = errors.New("base image")

// ErrDigest is the class of files and images whose bytes are not those that a digest or checksum promised.
var ErrDigest = errors.New("digest")

// DefaultPlatform is what is taken of an image that is a model's source and has several platforms: the model is the same in all.
const DefaultPlatform = "linux/amd64"

// maxConfig bounds the configuration of an image in bytes.
const maxConfig = 16 << 20

// Images is where base images come from. Both methods verify what they return; see package repository.
type Images interface {
	// Manifest returns a manifest or index by tag or digest; by "" the only one there is.
	Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error)
	// Blob returns the bytes of a blob from offset on.
	Blob(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error)
}

// Base is a base image for one platform.
type Base struct {
	Platform   v1.Platform
	Descriptor ocispec.Descriptor // of the manifest
	Raw        []byte             // the manifest as it stands in the image
	Manifest   ocispec.Manifest
	Config     []byte // as it stands in the image
	DiffIDs    []digest.Digest

	images Images
}

// Layer returns the bytes of a layer as they are stored, from offset on.
func (b *Base) Layer(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	return b.images.Blob(ctx, d, offset)
}

// ParsePlatform reads os/arch[/variant].
func ParsePlatform(s string) (v1.Platform, error) {
	p, err := v1.ParsePlatform(s)
	if err != nil || p.OS == "" || p.Architecture == "" {
		return v1.Platform{}, fmt.Errorf("%w: platform %q: want os/architecture, such as linux/amd64", ErrBase, s)
	}
	return *p, nil
}

// OpenBases returns the base image for each platform wanted; of none wanted, for each linux platform it has, in the order of its
// index. Others are the manifests of its index that are no images: attestations, artifacts, Nydus variants. name is what the errors
// call it.
func OpenBases(ctx context.Context, images Images, name, ref string, platforms []string) (bases []*Base, others []ocispec.Descriptor, err error) {
	o := opener{ctx: ctx, images: images, name: name}
	var wanted []v1.Platform
	for _, p := range platforms {
		want, err := ParsePlatform(p)
		if err != nil {
			return nil, nil, err
		}
		wanted = append(wanted, want)
	}
	desc, raw, err := images.Manifest(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	candidates, err := o.candidates(desc, raw, 0)
	if err != nil {
		return nil, nil, err
	}
	bases, err = o.choose(candidates, wanted)
	return bases, o.others, err
}

// opener finds base images. It lives no longer than the call its context belongs to.
type opener struct {
	ctx    context.Context
	images Images
	name   string
	others []ocispec.Descriptor
}

func (o *opener) fault(format string, args ...any) error {
	return fmt.Errorf("%w %s: %w", ErrBase, o.name, fmt.Errorf(format, args...))
}

// candidate is an image of an index.
type candidate struct {
	desc     ocispec.Descriptor
	raw      []byte       // the manifest, if it was read
	platform *v1.Platform // as the index says, if it does
}

// candidates returns the images a manifest stands for: itself, or those of an index.
func (o *opener) candidates(desc ocispec.Descriptor, raw []byte, depth int) ([]candidate, error) {
	mediaType := types.MediaType(desc.MediaType)
	switch {
	case mediaType.IsSchema1():
		return nil, o.fault("it is of Docker's schema 1, which has no layers by digest; push it again with a tool of this decade")
	case mediaType.IsImage():
		return []candidate{{desc: desc, raw: raw}}, nil
	case !mediaType.IsIndex():
		return nil, o.fault("it is of media type %q: neither image nor index", desc.MediaType)
	case depth > 3:
		return nil, o.fault("indexes within indexes")
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, o.fault("index: %w", err)
	}
	var whole ocispec.Index // the same with all annotations
	if err := json.Unmarshal(raw, &whole); err != nil {
		return nil, o.fault("index: %w", err)
	}
	var out []candidate
	for i, d := range index.Manifests {
		desc := ocispec.Descriptor{MediaType: string(d.MediaType), Digest: digest.Digest(d.Digest.String()), Size: d.Size}
		switch {
		case d.MediaType.IsIndex():
			_, raw, err := o.images.Manifest(o.ctx, desc.Digest.String())
			if err != nil {
				return nil, err
			}
			nested, err := o.candidates(desc, raw, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, nested...)
		case isImage(d):
			out = append(out, candidate{desc: desc, platform: d.Platform})
		default:
			o.others = append(o.others, whole.Manifests[i])
		}
	}
	return out, nil
}

// isImage reports whether a manifest of an index is an image: neither an attestation nor the Nydus variant of one of ours.
// Some tools repeat the configuration's media type as artifact type.
func isImage(d v1.Descriptor) bool {
	switch types.MediaType(d.ArtifactType) {
	case "", types.OCIConfigJSON, types.DockerConfigJSON:
		return d.MediaType.IsImage() && (d.Platform == nil || d.Platform.OS != "unknown")
	}
	return false
}

// choose loads the candidates that are wanted.
func (o *opener) choose(candidates []candidate, wanted []v1.Platform) ([]*Base, error) {
	var have []string
	loaded := make([]*Base, len(candidates))
	for i, c := range candidates {
		if c.platform != nil {
			have = append(have, c.platform.String())
			continue
		}
		b, err := o.load(c)
		if err != nil {
			return nil, err
		}
		loaded[i], candidates[i].platform = b, &b.Platform
		have = append(have, b.Platform.String())
	}
	if len(candidates) == 0 {
		return nil, o.fault("it holds no image")
	}
	if len(wanted) == 0 {
		for _, c := range candidates {
			if c.platform.OS == "linux" && c.platform.Architecture != "" && !slices.ContainsFunc(wanted, c.platform.Equals) {
				wanted = append(wanted, *c.platform)
			}
		}
	}
	var out []*Base
	taken := map[int]bool{} // two names can mean one image
	for _, want := range wanted {
		i := slices.IndexFunc(candidates, func(c candidate) bool { return c.platform.Satisfies(want) })
		if i < 0 {
			return nil, o.fault("no image for %s; there are %s; choose with --platform", want, strings.Join(have, ", "))
		}
		if taken[i] {
			continue
		}
		taken[i] = true
		b := loaded[i]
		if b == nil {
			var err error
			if b, err = o.load(candidates[i]); err != nil {
				return nil, err
			}
		}
		out = append(out, b)
	}
	if len(out) == 0 {
		return nil, o.fault("it is for %s; only linux images can be converted", strings.Join(have, ", "))
	}
	return out, nil
}

// load reads manifest and configuration and checks what can be checked without the layers.
func (o *opener) load(c candidate) (*Base, error) {
	b := &Base{Descriptor: c.desc, Raw: c.raw, images: o.images}
	var err error
	if b.Raw == nil {
		if _, b.Raw, err = o.images.Manifest(o.ctx, c.desc.Digest.String()); err != nil {
			return nil, err
		}
	}
	if err := json.Unmarshal(b.Raw, &b.Manifest); err != nil {
		return nil, o.fault("manifest: %w", err)
	}
	if b.Config, err = o.config(b.Manifest.Config); err != nil {
		return nil, err
	}
	var config v1.ConfigFile
	if err := json.Unmarshal(b.Config, &config); err != nil {
		return nil, o.fault("configuration: %w", err)
	}
	b.Platform = v1.Platform{
		OS: config.OS, Architecture: config.Architecture, Variant: config.Variant,
		OSVersion: config.OSVersion, OSFeatures: config.OSFeatures,
	}
	if b.Platform.OS != "linux" || b.Platform.Architecture == "" {
		return nil, o.fault("it is for %q; only linux images can be converted", b.Platform)
	}
	if c.platform != nil && b.Platform.Variant == "" { // old builders told it to the index only
		b.Platform.Variant = c.platform.Variant
	}
	for _, d := range config.RootFS.DiffIDs {
		b.DiffIDs = append(b.DiffIDs, digest.Digest(d.String()))
	}
	if len(b.DiffIDs) != len(b.Manifest.Layers) {
		return nil, o.fault("%d layers, but %d in the configuration", len(b.Manifest.Layers), len(b.DiffIDs))
	}
	for _, l := range b.Manifest.Layers {
		if _, err := LayerMediaType(l.MediaType); err != nil {
			return nil, o.fault("%w", err)
		}
	}
	return b, nil
}

func (o *opener) config(d ocispec.Descriptor) ([]byte, error) {
	if d.Size > maxConfig {
		return nil, o.fault("configuration of %d bytes", d.Size)
	}
	r, err := o.images.Blob(o.ctx, d, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// LayerMediaType returns the OCI media type of a layer; Docker's names say the same.
func LayerMediaType(mediaType string) (string, error) {
	switch t := types.MediaType(mediaType); t {
	case types.OCILayer, types.DockerLayer:
		return string(types.OCILayer), nil
	case types.OCIUncompressedLayer, types.DockerUncompressedLayer:
		return string(types.OCIUncompressedLayer), nil
	case types.OCILayerZStd:
		return string(types.OCILayerZStd), nil
	}
	return "", fmt.Errorf("layer of media type %s: not a tar, tar+gzip or tar+zstd layer", mediaType)
}

// Advice says what to write instead of a reference that other tools would take, but this one does not; "" if it knows nothing.
func Advice(ref string) string {
	if path, ok := strings.CutPrefix(ref, "docker-daemon:"); ok {
		return fmt.Sprintf("save it first: docker save -o FILE %s; then give docker-archive:FILE", path)
	}
	if strings.HasPrefix(ref, "oci://") {
		return "leave out oci:// for a registry, and write oci:FOLDER:TAG for a layout"
	}
	for _, scheme := range []string{"docker://", "https://", "http://"} {
		if strings.HasPrefix(ref, scheme) {
			return "leave out " + scheme
		}
	}
	for _, transport := range []string{"oci-archive:", "containers-storage:", "dir:"} {
		if strings.HasPrefix(ref, transport) {
			return fmt.Sprintf("make an OCI layout of it: skopeo copy %s oci:FOLDER:TAG; then give oci:FOLDER:TAG", ref)
		}
	}
	if !strings.HasPrefix(ref, ".") && !strings.HasPrefix(ref, "/") {
		return ""
	}
	if info, err := os.Stat(ref); err == nil && !info.IsDir() {
		return "for an archive made by docker save write docker-archive:" + ref
	}
	return "for a folder with an OCI layout write oci:" + ref
}
