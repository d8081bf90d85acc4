package converter

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/peer/chunkmap"
)

// DiffConfig says which images are compared.
type DiffConfig struct {
	From string // what a node has
	To   string // what it is to get
	// Files lists the model's files that differ.
	Files    bool
	Access   Access
	Progress Progress // nil: nobody is told
}

// DiffResult is what a node that has one image must fetch for another one. Manifests and configurations, which are some
// kilobytes, are not counted.
type DiffResult struct {
	From       string         `json:"from"`
	To         string         `json:"to"`
	FromDigest digest.Digest  `json:"from_digest"`
	ToDigest   digest.Digest  `json:"to_digest"`
	Platforms  []PlatformDiff `json:"platforms"`
	Files      []FileChange   `json:"files,omitempty"`
	Notes      []string       `json:"notes,omitempty"`
}

// PlatformDiff is the difference for one platform of the image to get. A variant is nil if that image has none.
type PlatformDiff struct {
	Platform string       `json:"platform"`
	Plain    *VariantDiff `json:"plain,omitempty"`
	Nydus    *VariantDiff `json:"nydus,omitempty"`
}

// VariantDiff is what a variant needs of the network.
type VariantDiff struct {
	Bytes int64 `json:"bytes"` // of all layers
	// By whole blobs: what every client fetches that knows nothing but digests.
	AbsentLayers int     `json:"absent_layers"`
	AbsentBytes  int64   `json:"absent_bytes"`
	AbsentShare  float64 `json:"absent_share"` // of Bytes, 0 to 1
	// By chunks: what is in no layer that the node has.
	ChunkBytes int64       `json:"chunk_bytes"`
	Chunks     int         `json:"chunks"`
	ChunkShare float64     `json:"chunk_share"`
	Layers     []LayerDiff `json:"layers"`
}

// LayerDiff is a layer of the image to get.
type LayerDiff struct {
	InspectedLayer
	Present       bool  `json:"present"` // the node has it
	MissingBytes  int64 `json:"missing_bytes"`
	MissingChunks int   `json:"missing_chunks"`
}

// Diff tells what a node that has one image must fetch for another one, by whole blobs and by chunks, for each variant and platform. It
// reads manifests, configurations and bootstraps, no layer. Images without chunk maps are compared by whole blobs.
func Diff(ctx context.Context, cfg DiffConfig) (*DiffResult, error) {
	if cfg.Progress == nil {
		cfg.Progress = silent{}
	}
	places := newPlaces(cfg.Access)
	from, fromDigest, err := openForDiff(ctx, places, cfg.From, cfg.Progress)
	if err != nil {
		return nil, err
	}
	to, toDigest, err := openForDiff(ctx, places, cfg.To, cfg.Progress)
	if err != nil {
		return nil, err
	}
	out := &DiffResult{From: cfg.From, To: cfg.To, FromDigest: fromDigest, ToDigest: toDigest, Platforms: []PlatformDiff{}}
	for _, next := range to {
		old := &openedVariant{convertedVariant: &convertedVariant{platform: next.platform}}
		found := false
		for _, v := range from {
			if v.platform == next.platform {
				old, found = v, true
			}
		}
		if !found {
			out.Notes = append(out.Notes, cfg.From+" has no image for "+next.platform+": all of it travels")
		}
		p := PlatformDiff{Platform: next.platform}
		if next.plain != nil {
			p.Plain = diffVariant(old.plain, old, next.describeManifest(next.plain, next.plainLayer), next)
		}
		if next.nydus != nil {
			p.Nydus = diffVariant(old.nydus, old, next.describeManifest(next.nydus, next.nydusLayer), next)
		}
		out.Platforms = append(out.Platforms, p)
	}
	for _, v := range append(from, to...) {
		if v.content == nil {
			out.Notes = append(out.Notes, v.img.name+" has no chunk maps for "+v.platform+": it is compared by whole blobs")
		}
	}
	if cfg.Files {
		out.diffFiles(from, to)
	}
	return out, nil
}

func openForDiff(ctx context.Context, places *places, name string, progress Progress) ([]*openedVariant, digest.Digest, error) {
	ref, err := places.parseImage("image", name)
	if err != nil {
		return nil, "", err
	}
	progress.Step(Read, "read manifests of "+name)
	img, err := openImage(ctx, places.at(ref), name, ref.Name())
	if err != nil {
		return nil, "", err
	}
	if len(img.variants) == 0 {
		return nil, "", classify(ErrSource, "%s names no image", name)
	}
	opened, err := openVariants(ctx, img, progress)
	return opened, img.index.Digest, err
}

// diffVariant compares the layers of a variant with those that the node has of it. What was fetched for one layer need not be
// fetched for the next.
func diffVariant(old *describedManifest, from *openedVariant, next *InspectedVariant, to *openedVariant) *VariantDiff {
	present := map[digest.Digest]bool{}
	var have []*chunkmap.Map
	for _, d := range layersOf(old) {
		present[d.Digest] = true
		if from.content != nil && from.content.maps[d.Digest] != nil {
			have = append(have, from.content.maps[d.Digest])
		}
	}
	out := &VariantDiff{Bytes: next.Bytes, Layers: []LayerDiff{}}
	for _, l := range next.Layers {
		d := LayerDiff{InspectedLayer: l, Present: present[l.Digest]}
		if !d.Present {
			out.AbsentLayers++
			out.AbsentBytes += l.Size
			d.MissingBytes = l.Size
			if to.content != nil && to.content.maps[l.Digest] != nil {
				d.MissingBytes, d.MissingChunks = chunkmap.Missing(to.content.maps[l.Digest], have...)
				have = append(have, to.content.maps[l.Digest])
			}
			present[l.Digest] = true
		}
		out.ChunkBytes += d.MissingBytes
		out.Chunks += d.MissingChunks
		out.Layers = append(out.Layers, d)
	}
	if out.Bytes > 0 {
		out.AbsentShare = float64(out.AbsentBytes) / float64(out.Bytes)
		out.ChunkShare = float64(out.ChunkBytes) / float64(out.Bytes)
	}
	return out
}

func layersOf(m *describedManifest) []ocispec.Descriptor {
	if m == nil {
		return nil
	}
	return m.manifest.Layers
}

// diffFiles lists the model's files that differ, once for all platforms.
func (r *DiffResult) diffFiles(from, to []*openedVariant) {
	for _, next := range to {
		for _, old := range from {
			if old.content != nil && next.content != nil && old.root != "" && next.root != "" {
				r.Files = changedFiles(old, next)
				return
			}
		}
	}
	r.Notes = append(r.Notes, "the model's files cannot be compared: not both images have a model that shoal convert put there")
}
