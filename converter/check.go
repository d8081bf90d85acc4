package converter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/repository"
	"github.com/shoal-project/shoal/peer/chunkmap"
	"golang.org/x/sync/errgroup"
)

// CheckConfig says what Check looks at.
type CheckConfig struct {
	Image string // REGISTRY/NAME:TAG or oci:FOLDER[:TAG]
	// Deep reads every blob; otherwise the registry is only asked for their sizes.
	Deep bool
	// Parallel is how many blobs are read at once; default 4.
	Parallel int
	Access   Access
	Progress Progress // nil: nobody is told
}

// CheckResult is what Check looked at.
type CheckResult struct {
	Target    string        `json:"target"`
	Digest    digest.Digest `json:"digest"`
	Deep      bool          `json:"deep"`
	Platforms []string      `json:"platforms"`
	Manifests int           `json:"manifests"`
	Blobs     int           `json:"blobs"`
	Bytes     int64         `json:"bytes"` // of the blobs
	Files     int           `json:"files"` // names in all bootstraps
	// RAFSChunks are those whose bytes were decoded and compared.
	RAFSChunks int `json:"rafs_chunks"`
	// Checked names what holds.
	Checked []string `json:"checked"`
}

// asked is how many requests that carry no blob are under way at once.
const asked = 8

// Check verifies a converted image. It reads manifests, configurations and bootstraps, asks for every blob's size, and
// compares the variants with each other. With Deep it reads every blob once and compares its bytes with its digest, its chunk
// map and its RAFS chunks, and the tree that the plain layers unpack to with that of the bootstrap. A failed verification is
// ErrVerify and names the blob or path, an image that is none of ours ErrSource.
func Check(ctx context.Context, cfg CheckConfig) (*CheckResult, error) {
	if cfg.Progress == nil {
		cfg.Progress = silent{}
	}
	if cfg.Parallel == 0 {
		cfg.Parallel = 4
	}
	places := newPlaces(cfg.Access)
	ref, err := places.parseImage("image", cfg.Image)
	if err != nil {
		return nil, err
	}
	at := places.at(ref)
	cfg.Progress.Step(Read, "read manifests")
	img, err := openConverted(ctx, at, cfg.Image, ref.Name())
	if err != nil {
		return nil, err
	}
	c := &checker{cfg: &cfg, image: img, at: at, blobs: map[digest.Digest]*checkedBlob{}}
	c.result = CheckResult{Target: cfg.Image, Digest: img.index.Digest, Deep: cfg.Deep}
	if err := c.metadata(ctx); err != nil {
		return nil, err
	}
	if err := c.present(ctx); err != nil {
		return nil, err
	}
	c.result.Checked = []string{"manifests", "configurations", "bootstraps", "chunk_tables", "chunk_maps", "variants", "blob_sizes"}
	if cfg.Deep {
		if err := c.deep(ctx); err != nil {
			return nil, err
		}
		c.result.Checked = append(c.result.Checked, "blob_digests", "chunk_map_bytes", "rafs_chunks", "diff_ids", "trees")
	}
	return &c.result, nil
}

type checker struct {
	cfg    *CheckConfig
	image  *converted
	at     store
	result CheckResult

	variants []*checkedVariant
	blobs    map[digest.Digest]*checkedBlob
	order    []*checkedBlob
}

// checkedVariant is what is known of the two manifests for a platform.
type checkedVariant struct {
	*convertedVariant
	content      *nydusContent
	plain, nydus *imageConfig
	shared       []digest.Digest // layers that are in both manifests
}

// checkedBlob is a blob and what its bytes are compared with.
type checkedBlob struct {
	ocispec.Descriptor
	read bool // verified already
	m    *chunkmap.Map
	rafs []rafsChunk
	// diffID is that of a layer of a plain manifest; empty for blobs that are never unpacked.
	diffID  digest.Digest
	entries []layerEntry // what it unpacked to
}

// note takes a blob that a manifest names.
func (c *checker) note(d ocispec.Descriptor) (*checkedBlob, error) {
	if err := checkDescriptor(c.cfg.Image, d); err != nil {
		return nil, err
	}
	b := c.blobs[d.Digest]
	if b == nil {
		b = &checkedBlob{Descriptor: d}
		c.blobs[d.Digest] = b
		c.order = append(c.order, b)
		c.result.Bytes += d.Size
	}
	if b.Size != d.Size {
		return nil, classify(ErrVerify, "%s names blob %s once with %d bytes and once with %d", c.cfg.Image, d.Digest, b.Size, d.Size)
	}
	return b, nil
}

// metadata checks what can be checked without the blobs.
func (c *checker) metadata(ctx context.Context) error {
	c.result.Manifests = 1
	for _, v := range c.image.variants {
		c.cfg.Progress.Step(Read, "check manifests and bootstrap of "+v.platform)
		checked, err := c.variant(ctx, v)
		if err != nil {
			return err
		}
		c.variants = append(c.variants, checked)
		c.result.Platforms = append(c.result.Platforms, v.platform)
		c.result.Manifests += 2
		if first := c.variants[0]; !slices.Equal(first.shared, checked.shared) {
			return classify(ErrVerify, "%s: the variants for %s and %s have other model layers", c.cfg.Image, first.platform, v.platform)
		}
	}
	if c.image.model != nil {
		c.result.Manifests++
		if err := c.modelPack(ctx); err != nil {
			return err
		}
	}
	c.result.Blobs = len(c.blobs)
	return nil
}

func (c *checker) variant(ctx context.Context, v *convertedVariant) (*checkedVariant, error) {
	out := &checkedVariant{convertedVariant: v}
	var err error
	if out.content, err = c.image.content(ctx, v); err != nil {
		return nil, err
	}
	if err := namesBlobs(out.content, &v.nydus.manifest); err != nil {
		return nil, err
	}
	if out.plain, err = c.configuration(ctx, v.plain, v.platform); err != nil {
		return nil, err
	}
	if out.nydus, err = c.configuration(ctx, v.nydus, v.platform); err != nil {
		return nil, err
	}
	plain, nydus := v.plain.manifest.Layers, v.nydus.manifest.Layers
	for _, d := range append(slices.Clone(plain), nydus[:len(nydus)-1]...) {
		b, err := c.note(d)
		if err != nil {
			return nil, err
		}
		m := out.content.maps[d.Digest]
		if m == nil || m.Size != d.Size {
			return nil, classify(ErrVerify, "%s: blob %s has no chunk map for its %d bytes", c.cfg.Image, d.Digest, d.Size)
		}
		if b.m != nil && !b.m.Equal(m) {
			return nil, classify(ErrVerify, "%s: blob %s has two chunk maps that differ", c.cfg.Image, d.Digest)
		}
		b.m = m
	}
	if err := c.unpacked(out); err != nil {
		return nil, err
	}
	boot, err := c.note(lastLayer(&v.nydus.manifest))
	if err != nil {
		return nil, err
	}
	boot.read = true
	if out.shared, err = c.sharedLayers(v); err != nil {
		return nil, err
	}
	c.result.Files += countNames(out.content.image)
	return out, c.noteChunks(out.content.image)
}

func countNames(img *bootstrap.Image) int {
	n := 0
	_ = img.Walk(func(string, *bootstrap.Inode) error { n++; return nil }) // visit never fails
	return n
}

// configuration reads a configuration and compares it with its manifest.
func (c *checker) configuration(ctx context.Context, m *describedManifest, platform string) (*imageConfig, error) {
	b, err := c.note(m.manifest.Config)
	if err != nil {
		return nil, err
	}
	config, err := c.image.config(ctx, m.manifest.Config)
	if err != nil {
		return nil, err
	}
	b.read = true
	if len(config.RootFS.DiffIDs) != len(m.manifest.Layers) {
		return nil, classify(ErrVerify, "%s: manifest %s has %d layers, its configuration %d DiffIDs",
			c.cfg.Image, m.Digest, len(m.manifest.Layers), len(config.RootFS.DiffIDs))
	}
	if got := config.OS + "/" + config.Architecture; m.Platform != nil && got != m.Platform.OS+"/"+m.Platform.Architecture {
		return nil, classify(ErrVerify, "%s: manifest %s is listed for %s, its configuration is for %s", c.cfg.Image, m.Digest, platform, got)
	}
	return config, nil
}

// unpacked notes the DiffIDs of the plain layers.
func (c *checker) unpacked(v *checkedVariant) error {
	for i, d := range v.convertedVariant.plain.manifest.Layers {
		b, diffID := c.blobs[d.Digest], v.plain.RootFS.DiffIDs[i]
		if b.diffID != "" && b.diffID != diffID {
			return classify(ErrVerify, "%s: layer %s has the DiffIDs %s and %s", c.cfg.Image, d.Digest, b.diffID, diffID)
		}
		b.diffID = diffID
	}
	for i, d := range v.convertedVariant.nydus.manifest.Layers[:len(v.nydus.RootFS.DiffIDs)-1] {
		if got := v.nydus.RootFS.DiffIDs[i]; got != d.Digest {
			return classify(ErrVerify, "%s: Nydus blob %s has the DiffID %s; it should be its digest", c.cfg.Image, d.Digest, got)
		}
	}
	return nil
}

// sharedLayers returns the layers that are in both manifests, which are those of the model. They have the same order in both.
func (c *checker) sharedLayers(v *convertedVariant) ([]digest.Digest, error) {
	plain, nydus := digests(v.plain.manifest.Layers), digests(v.nydus.manifest.Layers)
	both := func(list, other []digest.Digest) []digest.Digest {
		return slices.DeleteFunc(slices.Clone(list), func(d digest.Digest) bool { return !slices.Contains(other, d) })
	}
	shared := both(plain, nydus)
	if !slices.Equal(shared, both(nydus, plain)) {
		return nil, classify(ErrVerify, "%s: the variants for %s have the model's layers in another order", c.cfg.Image, v.platform)
	}
	return shared, nil
}

func digests(list []ocispec.Descriptor) []digest.Digest {
	out := make([]digest.Digest, len(list))
	for i := range list {
		out[i] = list[i].Digest
	}
	return out
}

// modelPack compares the ModelPack manifest with the plain ones: its layers are their last.
func (c *checker) modelPack(ctx context.Context) error {
	m := c.image.model
	b, err := c.note(m.manifest.Config)
	if err != nil {
		return err
	}
	if m.manifest.Config.Size > maxConfig {
		return classify(ErrVerify, "%s: configuration %s of %d bytes", c.cfg.Image, b.Digest, b.Size)
	}
	if _, err := c.image.read(ctx, m.manifest.Config); err != nil {
		return err
	}
	b.read = true
	for _, l := range m.manifest.Layers {
		if _, err := c.note(l); err != nil {
			return err
		}
	}
	layers := digests(m.manifest.Layers)
	for _, v := range c.variants {
		plain := digests(v.convertedVariant.plain.manifest.Layers)
		if n := len(plain) - len(layers); n < 0 || !slices.Equal(plain[n:], layers) {
			return classify(ErrVerify, "%s: the layers of the ModelPack manifest %s are not the last of the plain manifest for %s",
				c.cfg.Image, m.Digest, v.platform)
		}
		for _, d := range v.shared {
			if !slices.Contains(layers, d) {
				return classify(ErrVerify, "%s: the ModelPack manifest %s lacks the model's layer %s", c.cfg.Image, m.Digest, d)
			}
		}
	}
	return nil
}

// namesBlobs compares the bootstrap's blob table with the manifest's layers and with the blobs' chunk tables.
func namesBlobs(content *nydusContent, nydus *ocispec.Manifest) error {
	boot := content.image
	layers := nydus.Layers[:len(nydus.Layers)-1]
	sizes := map[digest.Digest]int64{}
	for _, l := range layers {
		sizes[l.Digest] = l.Size
	}
	tables := make([][]bootstrap.Chunk, len(boot.Blobs))
	for i := range boot.Blobs {
		b := &boot.Blobs[i]
		if sizes[b.Digest] != b.Size {
			return classify(ErrVerify, "the bootstrap names blob %s of %d bytes, which is no layer of the manifest", b.Digest, b.Size)
		}
		at, chunks, err := bootstrap.DecodeMeta(content.metas[bootstrap.MetaName(b)])
		if err != nil {
			return classify(ErrVerify, "blob %s: %s of the bootstrap layer: %w", b.Digest, bootstrap.MetaName(b), err)
		}
		if at != b.TableOffset || len(chunks) != int(b.ChunkCount) {
			return classify(ErrVerify, "blob %s: its chunk table has %d chunks and lies at %d, the bootstrap says %d and %d",
				b.Digest, len(chunks), at, b.ChunkCount, b.TableOffset)
		}
		tables[i] = chunks
	}
	if len(sizes) != len(boot.Blobs) {
		return classify(ErrVerify, "the bootstrap names %d blobs, the manifest %d", len(boot.Blobs), len(sizes))
	}
	for i := range boot.Chunks {
		c := &boot.Chunks[i]
		table := tables[c.Blob]
		if int(c.Index) >= len(table) || !sameChunk(&table[c.Index], c) {
			return classify(ErrVerify, "blob %s: RAFS chunk %d is not where its chunk table says", boot.Blobs[c.Blob].Digest, c.Index)
		}
	}
	return nil
}

// sameChunk compares what both tables say of a chunk.
func sameChunk(a, b *bootstrap.Chunk) bool {
	return a.Offset == b.Offset && a.Length == b.Length && a.DeviceOffset == b.DeviceOffset && a.Size == b.Size
}

// present asks for every blob that was not read, several at once.
func (c *checker) present(ctx context.Context) error {
	c.cfg.Progress.Step(Read, fmt.Sprintf("ask for %d blobs", len(c.order)))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(asked)
	for _, b := range c.order {
		if b.read {
			continue
		}
		group.Go(func() error {
			size, err := c.at.Stat(ctx, b.Digest)
			if err != nil {
				if ctx.Err() != nil && !errors.Is(err, repository.ErrNotFound) {
					return context.Cause(ctx)
				}
				return c.image.blobError(b.Descriptor, err)
			}
			if size >= 0 && size != b.Size {
				return classify(ErrVerify, "%s: blob %s has %d bytes there, the manifest says %d", c.cfg.Image, b.Digest, size, b.Size)
			}
			return nil
		})
	}
	return group.Wait()
}
