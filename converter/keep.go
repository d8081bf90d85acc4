package converter

import (
	"context"
	"encoding/json"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/converter/repository"
)

// attestationOf is the annotation by which builders say of which manifest an attestation speaks.
const attestationOf = "vnd.docker.reference.digest"

// keep copies what stands beside the images in an index that is given its Nydus variants, and belongs to them: attestations, whose images
// keep their digests, and the model alone. Their descriptors are returned.
func (c *conversion) keep(ctx context.Context, platforms []*platform) ([]ocispec.Descriptor, error) {
	if c.model != nil {
		return nil, nil // it is another image now
	}
	converted := map[string]bool{"": true}
	for _, p := range platforms {
		converted[p.base.Descriptor.Digest.String()] = true
	}
	var kept []ocispec.Descriptor
	for _, d := range c.others {
		attestation := d.Platform != nil && d.Platform.OS == "unknown" && converted[d.Annotations[attestationOf]]
		switch {
		case attestation, d.ArtifactType == image.ArtifactTypeModel:
			if err := c.copyManifest(ctx, d, platforms[0].from); err != nil {
				return nil, err
			}
			kept = append(kept, d)
		case d.ArtifactType != image.ArtifactTypeNydus:
			c.cfg.Logger.InfoContext(ctx, "manifest is left out", "digest", d.Digest.String(), "type", d.ArtifactType)
		}
	}
	return kept, nil
}

// copyManifest brings a manifest and its blobs to the target as they are.
func (c *conversion) copyManifest(ctx context.Context, d ocispec.Descriptor, from *name.Repository) error {
	ref := c.cfg.Image
	_, raw, err := c.images.Manifest(ctx, d.Digest.String())
	if err != nil {
		return c.baseError("--image", ref, err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return classify(ErrSource, "image %s: manifest %s: %w", ref, d.Digest, err)
	}
	for _, blob := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if err := blob.Digest.Validate(); err != nil {
			return classify(ErrSource, "image %s: manifest %s names blob %q: %w", ref, d.Digest, blob.Digest, err)
		}
		b := repository.Blob{Descriptor: blob, From: from, Open: func(ctx context.Context, offset int64) (io.ReadCloser, error) {
			r, err := c.images.Blob(ctx, blob, offset)
			if err != nil {
				return nil, c.baseError("--image", ref, err)
			}
			return r, nil
		}}
		if err := c.push(ctx, b, nil); err != nil {
			return err
		}
	}
	return c.putManifest(ctx, d.Digest.String(), d.MediaType, raw)
}
