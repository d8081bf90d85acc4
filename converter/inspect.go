package converter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
)

// InspectConfig says what is described.
type InspectConfig struct {
	Image string // REGISTRY/NAME:TAG or oci:FOLDER[:TAG]
	// Files lists the files below Path, which is by default the model's folder, and / for an image without one.
	Files bool
	Path  string
	// Platform is whose files are listed; default: the first.
	Platform string
	Access   Access
	Progress Progress // nil: nobody is told
}

// Inspection describes an image.
type Inspection struct {
	Target    string        `json:"target"`
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"media_type"`
	// Converted: every platform has both variants. Lacks says what is missing to that.
	Converted   bool                `json:"converted"`
	Lacks       []string            `json:"lacks,omitempty"`
	Annotations map[string]string   `json:"annotations,omitempty"`
	Model       *InspectedModel     `json:"model,omitempty"`
	ModelPack   *InspectedModelPack `json:"modelpack,omitempty"`
	Platforms   []InspectedPlatform `json:"platforms"`
	// Others are manifests of the index that are no images: attestations, indexes.
	Others    []InspectedManifest `json:"others,omitempty"`
	Referrers []InspectedManifest `json:"referrers,omitempty"` // of the index
	Files     []InspectedFile     `json:"files,omitempty"`
}

// InspectedModel is the model in an image.
type InspectedModel struct {
	Name     string   `json:"name"`
	Path     string   `json:"path"`
	Files    int      `json:"files"`
	Bytes    int64    `json:"bytes"`
	Formats  []string `json:"formats,omitempty"`
	Source   string   `json:"source,omitempty"`
	Revision string   `json:"revision,omitempty"`
}

// InspectedModelPack is the manifest of the model alone.
type InspectedModelPack struct {
	Digest digest.Digest `json:"digest"`
	Layers int           `json:"layers"`
	Bytes  int64         `json:"bytes"`
	About  any           `json:"about,omitempty"` // its configuration
}

// InspectedManifest is a manifest that is only named.
type InspectedManifest struct {
	Digest       digest.Digest `json:"digest"`
	MediaType    string        `json:"media_type"`
	ArtifactType string        `json:"artifact_type,omitempty"`
	Platform     string        `json:"platform,omitempty"`
}

// InspectedPlatform is an image for one platform.
type InspectedPlatform struct {
	Platform string            `json:"platform"`
	Plain    *InspectedVariant `json:"plain,omitempty"`
	Nydus    *InspectedVariant `json:"nydus,omitempty"`
	// Those below are of the bootstrap.
	Files       int      `json:"files,omitempty"` // names of all types
	ChunkSize   uint32   `json:"rafs_chunk_size,omitempty"`
	RAFSChunks  int      `json:"rafs_chunks,omitempty"`
	Compressors []string `json:"compressors,omitempty"`
	Prefetch    []string `json:"prefetch,omitempty"`
}

// InspectedVariant is one manifest.
type InspectedVariant struct {
	Digest    digest.Digest    `json:"digest"`
	MediaType string           `json:"media_type"`
	Bytes     int64            `json:"bytes"` // of its layers
	Layers    []InspectedLayer `json:"layers"`
}

// InspectedLayer is a layer of a manifest.
type InspectedLayer struct {
	Kind      string        `json:"kind"` // base, framework, model, bootstrap; layer where nothing is known
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	MediaType string        `json:"media_type"`
	Holds     string        `json:"holds,omitempty"`
	// Chunks are those of its chunk map.
	Chunks    int   `json:"chunks,omitempty"`
	MeanChunk int64 `json:"mean_chunk,omitempty"`
}

// InspectedFile is a file as ls shows it.
type InspectedFile struct {
	Path  string        `json:"path"`
	Mode  string        `json:"mode"`
	UID   uint32        `json:"uid"`
	GID   uint32        `json:"gid"`
	Size  int64         `json:"size"`
	Mtime time.Time     `json:"mtime"`
	Link  string        `json:"link,omitempty"`
	Layer digest.Digest `json:"layer,omitempty"` // that has its content
}

// Inspect describes an image: its variants, what is in its layers, its model. It reads manifests, configurations and bootstraps, no
// layer unless files of an image without a bootstrap are wanted. An image that shoal convert has not made is described as
// far as that goes.
func Inspect(ctx context.Context, cfg InspectConfig) (*Inspection, error) {
	if cfg.Progress == nil {
		cfg.Progress = silent{}
	}
	places := newPlaces(cfg.Access)
	ref, err := places.parseImage("image", cfg.Image)
	if err != nil {
		return nil, err
	}
	cfg.Progress.Step(Read, "read manifests")
	at := places.at(ref)
	img, err := openImage(ctx, at, cfg.Image, ref.Name())
	if err != nil {
		return nil, err
	}
	opened, err := openVariants(ctx, img, cfg.Progress)
	if err != nil {
		return nil, err
	}
	out := &Inspection{
		Target: cfg.Image, Digest: img.index.Digest, MediaType: img.index.MediaType, Annotations: img.annotations, Platforms: []InspectedPlatform{},
	}
	for _, v := range opened {
		out.Platforms = append(out.Platforms, v.describe())
	}
	out.lacking(img, opened)
	if out.ModelPack, err = describeModelPack(ctx, img); err != nil {
		return nil, err
	}
	out.Model = describeModel(img, opened)
	for _, d := range img.others {
		out.Others = append(out.Others, InspectedManifest{d.Digest, d.MediaType, d.ArtifactType, platformName(d.Platform)})
	}
	if list, err := at.Referrers(ctx, img.index.Digest); err == nil { // it is a description: without them too
		for _, d := range list {
			out.Referrers = append(out.Referrers, InspectedManifest{d.Digest, d.MediaType, d.ArtifactType, platformName(d.Platform)})
		}
	}
	if !cfg.Files {
		return out, nil
	}
	return out, out.listFiles(ctx, &cfg, opened)
}

// lacking says what the image lacks of one made by shoal convert.
func (i *Inspection) lacking(img *converted, opened []*openedVariant) {
	if len(opened) == 0 {
		i.Lacks = append(i.Lacks, "an image for any platform")
	}
	if !isIndex(img.index.MediaType) {
		i.Lacks = append(i.Lacks, "an index")
	}
	for _, v := range opened {
		if v.plain == nil {
			i.Lacks = append(i.Lacks, "a plain variant for "+v.platform)
		}
		if v.nydus == nil {
			i.Lacks = append(i.Lacks, "a Nydus variant for "+v.platform)
		} else if v.content == nil {
			i.Lacks = append(i.Lacks, "a bootstrap that can be read for "+v.platform+": "+v.unreadable)
		} else if len(v.content.maps) == 0 {
			i.Lacks = append(i.Lacks, "chunk maps for "+v.platform)
		}
	}
	i.Converted = len(i.Lacks) == 0
}

// openedVariant is a variant with what is known of its content.
type openedVariant struct {
	*convertedVariant
	img        *converted
	config     *imageConfig  // of the plain manifest; nil if it has none
	content    *nydusContent // nil without a Nydus variant
	unreadable string        // why there is no content
	shared     map[digest.Digest]bool
	inBlob     map[digest.Digest][]string // names of the files each blob holds bytes of
	root       string                     // of the model, "" if there is none
}

// openVariants reads configurations and bootstraps. A Nydus variant of other tools whose bootstrap this package does not
// read is no error.
func openVariants(ctx context.Context, img *converted, progress Progress) ([]*openedVariant, error) {
	var out []*openedVariant
	for _, v := range img.variants {
		progress.Step(Read, "read bootstrap of "+v.platform)
		o := &openedVariant{convertedVariant: v, img: img, shared: map[digest.Digest]bool{}, inBlob: map[digest.Digest][]string{}}
		if v.plain != nil {
			config, err := img.config(ctx, v.plain.manifest.Config)
			if errors.Is(err, ErrRegistry) || ctx.Err() != nil {
				return nil, err
			}
			if err == nil { // artifacts have configurations of all kinds
				o.config = config
			}
		}
		if v.nydus != nil && len(v.nydus.manifest.Layers) > 0 {
			content, err := img.content(ctx, v)
			if errors.Is(err, ErrRegistry) || ctx.Err() != nil {
				return nil, err
			}
			if o.content = content; err != nil {
				o.unreadable = err.Error()
			}
		}
		o.look()
		out = append(out, o)
	}
	return out, nil
}

// look finds what the blobs hold, and the model.
func (v *openedVariant) look() {
	if v.content == nil || v.plain == nil {
		return
	}
	nydus := map[digest.Digest]bool{}
	for _, d := range v.nydus.manifest.Layers {
		nydus[d.Digest] = true
	}
	for _, d := range v.plain.manifest.Layers {
		v.shared[d.Digest] = nydus[d.Digest]
	}
	var modelFiles []string
	_ = v.content.image.Walk(func(name string, n *bootstrap.Inode) error { // visit never fails
		for _, d := range v.blobsOf(n) {
			v.inBlob[d] = append(v.inBlob[d], name)
			if v.shared[d] {
				modelFiles = append(modelFiles, name)
			}
		}
		return nil
	})
	v.root = modelRoot(modelFiles)
}

// blobsOf returns the blobs that have a file's content.
func (v *openedVariant) blobsOf(n *bootstrap.Inode) []digest.Digest {
	var out []digest.Digest
	img := v.content.image
	last := -1
	for _, at := range n.Chunks {
		if b := int(img.Chunks[at].Blob); b != last {
			last = b
			if d := img.Blobs[b].Digest; !slices.Contains(out, d) {
				out = append(out, d)
			}
		}
	}
	return out
}

// modelRoot returns the folder that the model's files have in common; below /models it is the one named like the model.
func modelRoot(files []string) string {
	if len(files) == 0 {
		return ""
	}
	root := path.Dir(files[0])
	for _, f := range files {
		for root != "." && !strings.HasPrefix(f, root+"/") {
			root = path.Dir(root)
		}
	}
	if parts := strings.Split(root, "/"); parts[0] == "models" && len(parts) > 2 {
		root = path.Join(parts[:2]...)
	}
	if root == "." {
		return ""
	}
	return root
}

func (v *openedVariant) describe() InspectedPlatform {
	p := InspectedPlatform{Platform: v.platform}
	if v.plain != nil {
		p.Plain = v.describeManifest(v.plain, v.plainLayer)
	}
	if v.nydus != nil {
		p.Nydus = v.describeManifest(v.nydus, v.nydusLayer)
	}
	if v.content == nil {
		return p
	}
	img := v.content.image
	p.Files, p.ChunkSize, p.RAFSChunks = countNames(img), img.ChunkSize, len(img.Chunks)
	for i := range img.Blobs {
		if name := compressorName(img.Blobs[i].Compressor); !slices.Contains(p.Compressors, name) {
			p.Compressors = append(p.Compressors, name)
		}
	}
	slices.Sort(p.Compressors)
	if len(img.Prefetch) > 0 {
		names := map[*bootstrap.Inode]string{}
		_ = img.Walk(func(name string, n *bootstrap.Inode) error { names[n] = name; return nil })
		for _, n := range img.Prefetch {
			p.Prefetch = append(p.Prefetch, "/"+names[n])
		}
	}
	return p
}

func compressorName(c bootstrap.Compressor) string {
	for _, name := range slices.Sorted(maps.Keys(compressors)) {
		if compressors[name] == c {
			return name
		}
	}
	return "gzip"
}

func (v *openedVariant) describeManifest(m *describedManifest, layer func(i int, d ocispec.Descriptor) (kind, holds string)) *InspectedVariant {
	out := &InspectedVariant{Digest: m.Digest, MediaType: m.MediaType, Layers: []InspectedLayer{}}
	for i, d := range m.manifest.Layers {
		l := InspectedLayer{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType}
		l.Kind, l.Holds = layer(i, d)
		if v.content != nil {
			if m := v.content.maps[d.Digest]; m != nil && len(m.Chunks) > 0 {
				l.Chunks, l.MeanChunk = len(m.Chunks), m.Size/int64(len(m.Chunks))
			}
		}
		out.Bytes += d.Size
		out.Layers = append(out.Layers, l)
	}
	return out
}

const historyMark = "shoal convert: "

// plainLayer says what a layer of the plain manifest is.
func (v *openedVariant) plainLayer(i int, d ocispec.Descriptor) (kind, holds string) {
	history := v.history(i)
	own, isModel := strings.CutPrefix(history, historyMark)
	switch {
	case v.shared[d.Digest]:
		return "model", v.holds(d.Digest)
	case isModel:
		return "model", own
	case v.config == nil || len(v.config.RootFS.DiffIDs) == 0:
		return "layer", d.Annotations[ocispec.AnnotationTitle]
	}
	return "base", history
}

// history returns what made layer i, as the configuration says. It is counted from the end: a base image may have no history, and
// what convert adds to it is always there.
func (v *openedVariant) history(i int) string {
	if v.config == nil {
		return ""
	}
	var lines []string
	for _, h := range v.config.History {
		if !h.EmptyLayer {
			lines = append(lines, strings.TrimSpace(strings.TrimPrefix(h.CreatedBy, "/bin/sh -c #(nop) ")))
		}
	}
	if i += len(lines) - len(v.plain.manifest.Layers); i < 0 || i >= len(lines) {
		return ""
	}
	return lines[i]
}

// nydusLayer says what a layer of the Nydus manifest is.
func (v *openedVariant) nydusLayer(i int, d ocispec.Descriptor) (kind, holds string) {
	switch {
	case i == len(v.nydus.manifest.Layers)-1 && v.content == nil:
		return "bootstrap", ""
	case i == len(v.nydus.manifest.Layers)-1:
		return "bootstrap", fmt.Sprintf("%d names, %d chunk maps", countNames(v.content.image), len(v.content.maps))
	case v.shared[d.Digest]:
		return "model", v.holds(d.Digest)
	}
	return "framework", v.holds(d.Digest)
}

// holds names the files of a blob, relative to the model's folder.
func (v *openedVariant) holds(d digest.Digest) string {
	files := v.inBlob[d]
	switch {
	case len(files) == 0:
		return ""
	case len(files) == 1 && v.shared[d]:
		return strings.TrimPrefix(files[0], v.root+"/")
	case len(files) == 1:
		return "/" + files[0]
	case v.shared[d]:
		return fmt.Sprintf("%d files from %s", len(files), strings.TrimPrefix(files[0], v.root+"/"))
	}
	return fmt.Sprintf("%d files", len(files))
}

// describeModel says what is known of the model; nil if there is none.
func describeModel(img *converted, opened []*openedVariant) *InspectedModel {
	for _, v := range opened {
		if v.root == "" {
			continue
		}
		m := &InspectedModel{
			Name: path.Base(v.root), Path: "/" + v.root,
			Source: img.annotations[ocispec.AnnotationSource], Revision: img.annotations[ocispec.AnnotationRevision],
		}
		seen := map[*bootstrap.Inode]bool{}
		for _, f := range below(v.content.image.Root, v.root) {
			if f.inode.Type() != bootstrap.TypeRegular {
				continue
			}
			m.Files++
			if !seen[f.inode] {
				m.Bytes += f.inode.Size
			}
			seen[f.inode] = true
			if format := formatOf(f.name); format != "" && !slices.Contains(m.Formats, format) {
				m.Formats = append(m.Formats, format)
			}
		}
		slices.Sort(m.Formats)
		return m
	}
	return nil
}

func describeModelPack(ctx context.Context, img *converted) (*InspectedModelPack, error) {
	if img.model == nil {
		return nil, nil
	}
	out := &InspectedModelPack{Digest: img.model.Digest, Layers: len(img.model.manifest.Layers)}
	for _, d := range img.model.manifest.Layers {
		out.Bytes += d.Size
	}
	if img.model.manifest.Config.Size > maxConfig {
		return out, nil
	}
	raw, err := img.read(ctx, img.model.manifest.Config)
	if err != nil {
		return nil, err
	}
	_ = json.Unmarshal(raw, &out.About) // what is no JSON is not shown
	return out, nil
}
