package converter

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/converter/repository"
	"github.com/shoal-project/shoal/peer/chunkmap"
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
	c.cfg.Progress.Step(Base, "open "+c.cfg.Previous)
	ref, err := c.places.parseImage("--previous", c.cfg.Previous)
	if err != nil {
		return err
	}
	img, err := openConverted(ctx, c.places.at(ref), c.cfg.Previous, ref.Name())
	if err != nil {
		return err
	}
	prev := previous{image: img}
	if !ref.IsLayout() {
		prev.from = &ref.Registry
	}
	used := 0
	for _, p := range platforms {
		v := img.variantFor(p)
		if v == nil {
			c.cfg.Logger.WarnContext(ctx, "the previous image has not this platform", "previous", c.cfg.Previous, "platform", platformName(p.described()))
			continue
		}
		used++
		if err := p.use(ctx, prev, v, nil); err != nil {
			return err
		}
	}
	if used == 0 {
		return classify(ErrSource, "previous image %s is for %s and has nothing for %s; leave out --previous",
			c.cfg.Previous, img.platforms(), platformName(platforms[0].described()))
	}
	return nil
}

// openOwn lets an image that was converted before keep its model layers as data blobs; packed again, they would be there twice.
func (c *conversion) openOwn(ctx context.Context, tag string, platforms []*platform) error {
	at, ok := c.images.(place)
	converted := slices.ContainsFunc(c.others, func(d ocispec.Descriptor) bool { return d.ArtifactType == image.ArtifactTypeNydus })
	if c.model != nil || !ok || !converted {
		return nil
	}
	img, err := openConverted(ctx, at, c.cfg.Image, tag)
	for _, p := range platforms {
		if err != nil {
			break
		}
		v := img.variantFor(p)
		if v == nil || v.plain.Digest != p.base.Descriptor.Digest {
			continue
		}
		own := map[digest.Digest]bool{}
		for _, l := range v.plain.manifest.Layers {
			own[l.Digest] = true
		}
		err = p.use(ctx, previous{image: img, from: p.from}, v, func(d digest.Digest) bool { return own[d] })
	}
	if err != nil && ctx.Err() == nil { // what another tool made of it is no reason to refuse the image
		c.cfg.Logger.InfoContext(ctx, "the image's Nydus variant is of no use", "image", c.cfg.Image, "error", err)
		return nil
	}
	return err
}

func (c *converted) variantFor(p *platform) *convertedVariant {
	for _, v := range c.variants {
		if v.platform == platformName(p.described()) {
			return v
		}
	}
	return nil
}

func (c *converted) platforms() string {
	var names []string
	for _, v := range c.variants {
		names = append(names, v.platform)
	}
	return strings.Join(names, ", ")
}

// use adds the blobs of a previous image's variant that are wanted to the dictionary; wanted is nil for all.
func (p *platform) use(ctx context.Context, prev previous, v *convertedVariant, wanted func(digest.Digest) bool) error {
	content, err := prev.image.content(ctx, v)
	if err != nil {
		return err
	}
	prev.content = content
	p.previous = append(p.previous, &prev)
	if p.dict == nil {
		p.dict = bootstrap.NewDict(rafsChunkSize, bootstrap.MaxBlobs-maxLayers)
	}
	if err := p.dict.Add(blobsOf(content.image, wanted), content.metas); err != nil {
		p.c.cfg.Logger.InfoContext(ctx, "parts of an earlier image are not used", "image", prev.image.name, "error", err)
	}
	return nil
}

// blobsOf returns of an image what a dictionary reads, without the blobs that are not wanted.
func blobsOf(img *bootstrap.Image, wanted func(digest.Digest) bool) *bootstrap.Image {
	if wanted == nil {
		return img
	}
	out := &bootstrap.Image{ChunkSize: img.ChunkSize}
	places := map[uint32]uint32{}
	for i := range img.Blobs {
		if wanted(img.Blobs[i].Digest) {
			places[uint32(i)] = uint32(len(out.Blobs))
			out.Blobs = append(out.Blobs, img.Blobs[i])
		}
	}
	for _, c := range img.Chunks {
		if at, ok := places[c.Blob]; ok {
			c.Blob = at
			out.Chunks = append(out.Chunks, c)
		}
	}
	return out
}

// previousBlobs lists the blobs of previous images that the base's files refer to, and brings them to the target.
func (p *platform) previousBlobs(ctx context.Context) error {
	own, base := map[digest.Digest]bool{}, map[digest.Digest]bool{}
	for _, l := range p.framework {
		own[l.Digest] = true
	}
	for _, l := range p.plainBase {
		base[l.Digest] = true
	}
	for i := range p.image.Blobs {
		b := &p.image.Blobs[i]
		switch {
		case own[b.Digest]:
		case base[b.Digest]: // it was read, and is on its way
			p.framework = append(p.framework, image.BlobLayer(b.Digest, b.Size))
		default:
			prev, m := p.previousMap(b.Digest)
			if m == nil {
				return classify(ErrVerify, "no chunk map for blob %s in %s; leave out --previous", b.Digest, p.c.cfg.Previous)
			}
			p.maps[b.Digest] = m
			p.addFramework(ctx, image.BlobLayer(b.Digest, b.Size), prev.blob(b), nil)
		}
	}
	return nil
}

func (p *platform) previousMap(d digest.Digest) (*previous, *chunkmap.Map) {
	for _, prev := range p.previous {
		if m := prev.content.maps[d]; m != nil {
			return prev, m
		}
	}
	return nil, nil
}

// keepPrefetch gives an image that was converted before the prefetch table it had, by the names of the files.
func (p *platform) keepPrefetch() {
	listed := map[*bootstrap.Inode]bool{} // an image may be the previous one of itself, and two names have become one file
	for _, prev := range p.previous {
		if p.c.model != nil || prev.image.name != p.c.cfg.Image {
			continue
		}
		names := map[*bootstrap.Inode]string{}
		_ = prev.content.image.Walk(func(path string, n *bootstrap.Inode) error { // visit never fails
			names[n] = path
			return nil
		})
		for _, n := range prev.content.image.Prefetch {
			if now := p.tree.Lookup(names[n]); now != nil && now.Type() == bootstrap.TypeRegular && !listed[now] {
				listed[now] = true
				p.image.Prefetch = append(p.image.Prefetch, now)
			}
		}
	}
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
