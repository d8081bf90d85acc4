package converter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/converter/repository"
	"github.com/shoal-project/shoal/peer/chunkmap"
)

const (
	// maxBootstrapLayer bounds what is read of a bootstrap layer into memory, packed and unpacked.
	maxBootstrapLayer = 2 << 30
	// maxManifests bounds how many manifests are read of one image, whatever its indexes name.
	maxManifests = 4096
	// maxConfig bounds a configuration in bytes.
	maxConfig = 16 << 20
)

// converted is an image of ours where it was pushed to. As openImage returns it, it may be any image.
type converted struct {
	place    place
	name     string             // as it was given
	index    ocispec.Descriptor // of the tag
	raw      []byte             // the index
	variants []*convertedVariant
	model    *describedManifest // ModelPack; nil if there is none
	others   []ocispec.Descriptor

	annotations map[string]string // of the index
}

// convertedVariant are the two manifests for one platform.
type convertedVariant struct {
	platform     string
	plain, nydus *describedManifest
}

type describedManifest struct {
	ocispec.Descriptor
	manifest ocispec.Manifest
	raw      []byte
}

// openConverted reads the index of an image of ours and its manifests.
func openConverted(ctx context.Context, at place, name, ref string) (*converted, error) {
	c, err := openImage(ctx, at, name, ref)
	if err != nil {
		return nil, err
	}
	if c.index.MediaType != ocispec.MediaTypeImageIndex {
		return nil, classify(ErrSource, "%s is no index, so shoal convert has not made it", name)
	}
	for _, v := range c.variants {
		if !v.whole() {
			return nil, classify(ErrSource, "%s has not both variants for %s, so shoal convert has not made it", name, v.platform)
		}
	}
	if len(c.variants) == 0 {
		return nil, classify(ErrSource, "%s names no image, so shoal convert has not made it", name)
	}
	return c, nil
}

// whole reports whether both manifests are there and have layers.
func (v *convertedVariant) whole() bool {
	return v.plain != nil && v.nydus != nil && len(v.plain.manifest.Layers) > 0 && len(v.nydus.manifest.Layers) > 0
}

// openImage reads any image: an index and its manifests, or a single manifest.
func openImage(ctx context.Context, at place, name, ref string) (*converted, error) {
	desc, raw, err := at.Manifest(ctx, ref)
	if errors.Is(err, repository.ErrNotFound) {
		return nil, classify(ErrSource, "image %s does not exist: check name and tag (%w)", name, err)
	}
	if err != nil {
		return nil, registryError("read "+name, name, err)
	}
	c := &converted{place: at, name: name, index: desc, raw: raw}
	if !isIndex(desc.MediaType) {
		return c, c.single(ctx, desc, raw)
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, classify(ErrSource, "%s: index %s: %w", name, desc.Digest, err)
	}
	if len(index.Manifests) > maxManifests {
		return nil, classify(ErrSource, "%s: index of %d manifests, at most %d are read", name, len(index.Manifests), maxManifests)
	}
	c.annotations = index.Annotations
	for _, d := range index.Manifests {
		if err := c.add(ctx, d); err != nil {
			return nil, err
		}
	}
	return c, nil
}

const (
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerIndex
}

// single takes an image that is one manifest.
func (c *converted) single(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	m := &describedManifest{Descriptor: d, raw: raw}
	if err := json.Unmarshal(raw, &m.manifest); err != nil {
		return classify(ErrSource, "%s: manifest %s: %w", c.name, d.Digest, err)
	}
	m.ArtifactType = m.manifest.ArtifactType
	if m.ArtifactType == image.ArtifactTypeModel {
		c.model = m
		return nil
	}
	v := c.variant("")
	v.plain = m
	if config, err := c.config(ctx, m.manifest.Config); err == nil { // an artifact has none
		v.platform = platformName(&ocispec.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant})
	} else if errors.Is(err, ErrRegistry) || ctx.Err() != nil {
		return err
	}
	return nil
}

func (c *converted) add(ctx context.Context, d ocispec.Descriptor) error {
	if d.Platform != nil && d.Platform.OS == "unknown" || isIndex(d.MediaType) {
		c.others = append(c.others, d) // an attestation
		return nil
	}
	_, raw, err := c.place.Manifest(ctx, d.Digest.String())
	if errors.Is(err, repository.ErrNotFound) {
		return classify(ErrVerify, "%s names manifest %s, which is not there", c.name, d.Digest)
	}
	if err != nil {
		return registryError("read manifest "+d.Digest.String(), c.name, err)
	}
	if int64(len(raw)) != d.Size {
		return classify(ErrVerify, "%s names manifest %s with %d bytes, it has %d", c.name, d.Digest, d.Size, len(raw))
	}
	m := &describedManifest{Descriptor: d, raw: raw}
	if err := json.Unmarshal(raw, &m.manifest); err != nil {
		return classify(ErrSource, "%s: manifest %s: %w", c.name, d.Digest, err)
	}
	if d.ArtifactType == image.ArtifactTypeModel {
		c.model = m
		return nil
	}
	v := c.variant(platformName(d.Platform))
	switch {
	case d.ArtifactType == image.ArtifactTypeNydus:
		v.nydus = m
	case v.plain != nil: // for another version of the same system
		c.others = append(c.others, d)
	default:
		v.plain = m
	}
	return nil
}

func platformName(p *ocispec.Platform) string {
	switch {
	case p == nil:
		return ""
	case p.Variant != "":
		return p.OS + "/" + p.Architecture + "/" + p.Variant
	}
	return strings.Trim(p.OS+"/"+p.Architecture, "/")
}

func (c *converted) variant(platform string) *convertedVariant {
	for _, v := range c.variants {
		if v.platform == platform {
			return v
		}
	}
	v := &convertedVariant{platform: platform}
	c.variants = append(c.variants, v)
	return v
}

// imageConfig is what is read of a configuration.
type imageConfig struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
	RootFS       struct {
		DiffIDs []digest.Digest `json:"diff_ids"`
	} `json:"rootfs"`
	History []ocispec.History `json:"history"`
}

// config reads a configuration, which is verified.
func (c *converted) config(ctx context.Context, d ocispec.Descriptor) (*imageConfig, error) {
	if d.Size > maxConfig {
		return nil, classify(ErrVerify, "%s: configuration %s of %d bytes", c.name, d.Digest, d.Size)
	}
	raw, err := c.read(ctx, d)
	if err != nil {
		return nil, err
	}
	out := &imageConfig{}
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, classify(ErrVerify, "%s: configuration %s: %w", c.name, d.Digest, err)
	}
	return out, nil
}

// read reads a blob into memory; the caller has looked at its size.
func (c *converted) read(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if err := checkDescriptor(c.name, d); err != nil {
		return nil, err
	}
	r, err := c.place.Blob(ctx, d, 0)
	if err != nil {
		return nil, c.blobError(d, err)
	}
	defer r.Close()
	raw, err := io.ReadAll(r)
	if err != nil {
		return nil, c.blobError(d, err)
	}
	return raw, nil
}

// checkDescriptor refuses what names nothing, before it becomes a path.
func checkDescriptor(name string, d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil || d.Size < 0 {
		return classify(ErrVerify, "%s names a blob %.100q of %d bytes, which cannot be", name, d.Digest, d.Size)
	}
	return nil
}

// nydusContent is what the bootstrap layer of a Nydus variant holds.
type nydusContent struct {
	image *bootstrap.Image
	maps  map[digest.Digest]*chunkmap.Map
	metas map[string][]byte // blob.meta files by name
}

func lastLayer(m *ocispec.Manifest) ocispec.Descriptor { return m.Layers[len(m.Layers)-1] }

// content reads the bootstrap layer of a variant.
func (c *converted) content(ctx context.Context, v *convertedVariant) (*nydusContent, error) {
	d := lastLayer(&v.nydus.manifest)
	if d.Size > maxBootstrapLayer {
		return nil, classify(ErrVerify, "%s: bootstrap layer of %d bytes", c.name, d.Size)
	}
	raw, err := c.read(ctx, d)
	if err != nil {
		return nil, err
	}
	out := &nydusContent{}
	if out.maps, err = chunkmap.AllFromLayer(bytes.NewReader(raw)); err != nil {
		return nil, classify(ErrVerify, "%s: bootstrap layer %s: %w", c.name, d.Digest, err)
	}
	files, err := image.FilesOfLayer(bytes.NewReader(raw), image.IsMetadata, maxBootstrapLayer)
	if err != nil {
		return nil, classify(ErrVerify, "%s: bootstrap layer %s: %w", c.name, d.Digest, err)
	}
	boot := files[image.BootstrapName]
	if out.image, err = bootstrap.Decode(bytes.NewReader(boot), int64(len(boot))); err != nil {
		return nil, classify(ErrVerify, "%s: bootstrap in layer %s: %w", c.name, d.Digest, err)
	}
	delete(files, image.BootstrapName)
	out.metas = files
	return out, nil
}

// blobError says what is wrong with a blob, or with reading it.
func (c *converted) blobError(d ocispec.Descriptor, err error) error {
	return blobError(c.name, d, err)
}

func blobError(name string, d ocispec.Descriptor, err error) error {
	switch {
	case errors.Is(err, repository.ErrDigest):
		return classify(ErrVerify, "%s: %w", name, err)
	case errors.Is(err, repository.ErrNotFound):
		return classify(ErrVerify, "%s: blob %s of %d bytes is not there", name, d.Digest, d.Size)
	}
	return registryError(fmt.Sprintf("read blob %s", d.Digest), name, err)
}
