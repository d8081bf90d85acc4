package converter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/converter/repository"
	"github.com/shoal-project/shoal/peer/chunkmap"
)

// maxBootstrapLayer bounds what is read of a bootstrap layer into memory, packed and unpacked.
const maxBootstrapLayer = 2 << 30

// converted is an image of ours where it was pushed to.
type converted struct {
	place    place
	name     string             // as it was given
	index    ocispec.Descriptor // of the tag
	raw      []byte             // the index
	variants []*convertedVariant
	model    *describedManifest // ModelPack; nil if there is none
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
	desc, raw, err := at.Manifest(ctx, ref)
	if errors.Is(err, repository.ErrNotFound) {
		return nil, classify(ErrSource, "image %s does not exist: check name and tag (%w)", name, err)
	}
	if err != nil {
		return nil, registryError("read "+name, name, err)
	}
	c := &converted{place: at, name: name, index: desc, raw: raw}
	var index ocispec.Index
	if desc.MediaType != ocispec.MediaTypeImageIndex || json.Unmarshal(raw, &index) != nil {
		return nil, classify(ErrSource, "%s is no index, so shoal convert has not made it", name)
	}
	for _, d := range index.Manifests {
		if err := c.add(ctx, d); err != nil {
			return nil, err
		}
	}
	for _, v := range c.variants {
		if v.plain == nil || v.nydus == nil {
			return nil, classify(ErrSource, "%s has not both variants for %s, so shoal convert has not made it", name, v.platform)
		}
	}
	if len(c.variants) == 0 {
		return nil, classify(ErrSource, "%s names no image, so shoal convert has not made it", name)
	}
	return c, nil
}

func (c *converted) add(ctx context.Context, d ocispec.Descriptor) error {
	if d.Platform != nil && d.Platform.OS == "unknown" {
		return nil // an attestation
	}
	_, raw, err := c.place.Manifest(ctx, d.Digest.String())
	if errors.Is(err, repository.ErrNotFound) {
		return classify(ErrVerify, "%s names manifest %s, which is not there", c.name, d.Digest)
	}
	if err != nil {
		return registryError("read manifest "+d.Digest.String(), c.name, err)
	}
	m := &describedManifest{Descriptor: d, raw: raw}
	if err := json.Unmarshal(raw, &m.manifest); err != nil || len(m.manifest.Layers) == 0 {
		return classify(ErrSource, "%s: manifest %s has no layers: %v", c.name, d.Digest, err)
	}
	if d.ArtifactType == image.ArtifactTypeModel {
		c.model = m
		return nil
	}
	v := c.variant(platformName(d.Platform))
	if d.ArtifactType == image.ArtifactTypeNydus {
		v.nydus = m
	} else {
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
	return p.OS + "/" + p.Architecture
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
	r, err := c.place.Blob(ctx, d, 0)
	if err != nil {
		return nil, c.blobError(d, err)
	}
	defer r.Close()
	raw, err := io.ReadAll(r)
	if err != nil {
		return nil, c.blobError(d, err)
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
	switch {
	case errors.Is(err, repository.ErrDigest):
		return classify(ErrVerify, "%s: %w", c.name, err)
	case errors.Is(err, repository.ErrNotFound):
		return classify(ErrVerify, "%s: blob %s of %d bytes is not there", c.name, d.Digest, d.Size)
	}
	return registryError(fmt.Sprintf("read blob %s", d.Digest), c.name, err)
}
