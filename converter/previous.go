package converter

import (
	"context"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/converter/repository"
)

// previous is the image whose chunks are not stored again, for one platform.
type previous struct {
	image   *converted
	content *nydusContent
	from    *name.Repository // nil if it is in no registry
}

// openPrevious gives each platform the dictionary of the previous image's variant for it.
func (c *conversion) openPrevious(ctx context.Context, platforms []*platform) error {
	if c.cfg.Previous == "" {
		return nil
	}
	c.cfg.Progress.Step("open " + c.cfg.Previous)
	ref, err := c.places.parse("--previous", c.cfg.Previous)
	if err != nil {
		return err
	}
	img, err := openConverted(ctx, c.places.at(ref), c.cfg.Previous, ref.Name())
	if err != nil {
		return err
	}
	for _, p := range platforms {
		for _, v := range img.variants {
			if v.platform != platformName(p.described()) {
				continue
			}
			content, err := img.content(ctx, v)
			if err != nil {
				return err
			}
			p.prev = &previous{image: img, content: content}
			if !ref.IsLayout() {
				p.prev.from = &ref.Registry
			}
			p.dict = bootstrap.NewDict(rafsChunkSize, bootstrap.MaxBlobs-maxLayers)
			if err := p.dict.Add(content.image, content.metas); err != nil {
				c.cfg.Logger.InfoContext(ctx, "parts of the previous image are not used", "previous", c.cfg.Previous, "error", err)
			}
		}
	}
	return nil
}

// previousBlobs lists the blobs of the previous image that the base's files refer to, and brings them to the target.
func (p *platform) previousBlobs(ctx context.Context) error {
	own := map[digest.Digest]bool{}
	for _, l := range p.framework {
		own[l.Digest] = true
	}
	for i := range p.image.Blobs {
		b := &p.image.Blobs[i]
		if own[b.Digest] {
			continue
		}
		m := p.prev.content.maps[b.Digest]
		if m == nil {
			return classify(ErrVerify, "%s has no chunk map for blob %s; leave out --previous", p.prev.image.name, b.Digest)
		}
		p.maps[b.Digest] = m
		p.addFramework(ctx, image.BlobLayer(b.Digest, b.Size), p.prev.blob(b), nil)
	}
	return nil
}

// blob is a blob of the previous image, to be brought elsewhere.
func (v *previous) blob(b *bootstrap.Blob) repository.Blob {
	d := ocispec.Descriptor{MediaType: image.MediaTypeBlob, Digest: b.Digest, Size: b.Size}
	return repository.Blob{From: v.from, Open: func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		r, err := v.image.place.Blob(ctx, d, offset)
		if err != nil {
			return nil, fmt.Errorf("previous image: %w", v.image.blobError(d, err))
		}
		return r, nil
	}}
}
