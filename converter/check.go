package converter

import (
	"context"
	"io"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/peer/chunkmap"
)

// CheckConfig says what Check looks at.
type CheckConfig struct {
	Image    string // REGISTRY/NAME:TAG or oci:FOLDER[:TAG]
	Access   Access
	Progress Progress // nil: nobody is told
}

// CheckResult is what Check looked at.
type CheckResult struct {
	Target string        `json:"target"`
	Digest digest.Digest `json:"digest"`
	Blobs  int           `json:"blobs"`
	Bytes  int64         `json:"bytes"`
}

// Check reads a converted image whole and verifies it: that every blob its manifests name is there and has its digest,
// that the Nydus variants have a chunk map for each of them which fits, and that the bootstraps name the blobs of their manifests.
// A failed verification is ErrVerify, an image that is none of ours ErrSource.
func Check(ctx context.Context, cfg CheckConfig) (*CheckResult, error) {
	if cfg.Progress == nil {
		cfg.Progress = silent{}
	}
	places := newPlaces(cfg.Access)
	ref, err := places.parse("image", cfg.Image)
	if err != nil {
		return nil, err
	}
	img, err := openConverted(ctx, places.at(ref), cfg.Image, ref.Name())
	if err != nil {
		return nil, err
	}
	c := &checker{cfg: &cfg, image: img, maps: map[digest.Digest]*chunkmap.Map{}, blobs: map[digest.Digest]ocispec.Descriptor{}}
	for _, v := range img.variants {
		if err := c.variant(ctx, v); err != nil {
			return nil, err
		}
	}
	if img.model != nil {
		c.note(img.model.manifest.Config)
		c.note(img.model.manifest.Layers...)
	}
	for _, d := range slices.Sorted(maps.Keys(c.blobs)) {
		if err := c.blob(ctx, c.blobs[d]); err != nil {
			return nil, err
		}
	}
	return &CheckResult{Target: cfg.Image, Digest: img.index.Digest, Blobs: len(c.blobs), Bytes: c.bytes}, nil
}

type checker struct {
	cfg   *CheckConfig
	image *converted
	maps  map[digest.Digest]*chunkmap.Map
	blobs map[digest.Digest]ocispec.Descriptor // that are to be read
	bytes int64
}

func (c *checker) note(list ...ocispec.Descriptor) {
	for _, d := range list {
		c.blobs[d.Digest] = d
	}
}

// variant checks what can be checked without the blobs.
func (c *checker) variant(ctx context.Context, v *convertedVariant) error {
	content, err := c.image.content(ctx, v)
	if err != nil {
		return err
	}
	if err := namesBlobs(content.image, &v.nydus.manifest); err != nil {
		return err
	}
	plain, nydus := v.plain.manifest.Layers, v.nydus.manifest.Layers
	for _, d := range append(slices.Clone(plain), nydus[:len(nydus)-1]...) {
		m := content.maps[d.Digest]
		if m == nil || m.Size != d.Size {
			return classify(ErrVerify, "%s: blob %s has no chunk map for its %d bytes", c.cfg.Image, d.Digest, d.Size)
		}
		c.maps[d.Digest] = m
	}
	c.note(v.plain.manifest.Config, v.nydus.manifest.Config)
	c.note(plain...)
	c.note(nydus...)
	return nil
}

// namesBlobs compares the bootstrap's blob table with the manifest's layers.
func namesBlobs(boot *bootstrap.Image, nydus *ocispec.Manifest) error {
	layers := nydus.Layers[:len(nydus.Layers)-1]
	sizes := map[digest.Digest]int64{}
	for _, l := range layers {
		sizes[l.Digest] = l.Size
	}
	for i := range boot.Blobs {
		if b := &boot.Blobs[i]; sizes[b.Digest] != b.Size {
			return classify(ErrVerify, "the bootstrap names blob %s of %d bytes, which is no layer of the manifest", b.Digest, b.Size)
		}
	}
	if len(sizes) != len(boot.Blobs) {
		return classify(ErrVerify, "the bootstrap names %d blobs, the manifest %d", len(boot.Blobs), len(sizes))
	}
	return nil
}

// blob reads a blob and verifies its digest and, if there is one, its chunk map.
func (c *checker) blob(ctx context.Context, d ocispec.Descriptor) error {
	c.cfg.Progress.Step("check " + d.Digest.String())
	c.cfg.Progress.Plan(Read, d.Size)
	m := c.maps[d.Digest]
	cut := &cutter{builder: chunkmap.NewBuilder()}
	if m != nil {
		cut.chunks = m.Chunks
	}
	r, err := c.image.place.Blob(ctx, d, 0)
	if err != nil {
		return c.image.blobError(d, err)
	}
	defer r.Close()
	if _, err := io.Copy(cut, &readCounter{ctx: ctx, r: r, progress: c.cfg.Progress}); err != nil {
		return c.image.blobError(d, err)
	}
	c.bytes += d.Size
	if m == nil {
		return nil
	}
	got := cut.builder.Map(d.Digest)
	if len(m.Chunks) == 0 {
		got.Chunks = nil // such a map says nothing about them
	}
	if !got.Equal(m) {
		return classify(ErrVerify, "blob %s: its chunk map describes other bytes", d.Digest)
	}
	return nil
}

// cutter builds the chunk map of what is written to it, cut where another map has its chunks.
type cutter struct {
	builder *chunkmap.Builder
	chunks  []chunkmap.Chunk // those not begun
	left    int              // of the chunk begun, in bytes
}

func (c *cutter) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		if c.left == 0 && len(c.chunks) > 0 {
			c.builder.Cut()
			c.left, c.chunks = int(c.chunks[0].Length), c.chunks[1:]
		}
		n := len(p)
		if c.left > 0 {
			n = min(n, c.left)
			c.left -= n
		}
		_, _ = c.builder.Write(p[:n]) // it never fails
		p = p[n:]
	}
	return written, nil
}
