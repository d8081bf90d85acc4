package converter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/converter/layer"
	"github.com/shoal-project/shoal/converter/source"
	"github.com/shoal-project/shoal/peer/chunkmap"
	"golang.org/x/sync/errgroup"
)

const (
	// rafsChunkSize is the length in bytes at which both variants' file systems read.
	rafsChunkSize = 1 << 20
	// largeFile is the size in bytes from which a model file gets a layer of its own.
	largeFile = 1 << 20
	// maxLargeLayers bounds the number of those layers: runtimes stack at most 127. Beyond, files next to each other share
	// one. The bound does not depend on the base, so that neither do the layers.
	maxLargeLayers = 63
	// maxLayers is the number of layers that all runtimes stack.
	maxLayers = 127
	// maxModelLayer is the size in bytes of a layer whose chunk map its readers still take.
	maxModelLayer = 480 << 30
)

// merged is what the bootstrap will say.
type merged struct {
	tree  *bootstrap.Tree
	image *bootstrap.Image
	blobs *bootstrap.Builder // of image
	maps  map[digest.Digest]*chunkmap.Map
}

func newMerged() *merged {
	img := &bootstrap.Image{ChunkSize: rafsChunkSize}
	return &merged{
		tree: bootstrap.NewTree(), image: img, blobs: bootstrap.NewBuilder(img), maps: map[digest.Digest]*chunkmap.Map{},
	}
}

// build is one conversion under way. One goroutine reads and merges; work uploads.
type build struct {
	cfg  *Config
	base *source.Base
	sink sink
	temp string
	work *errgroup.Group
	*merged

	plainBase  []image.Layer
	framework  []image.Layer // the base's blobs in the Nydus manifest
	model      []image.Layer
	nydusModel []image.Layer
	history    []string
	modelFiles int
	modelBytes int64

	mu     sync.Mutex
	result []Layer // in order of the manifests; guarded by mu
}

func (b *build) record(kind string, l image.Layer, of string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.result = append(b.result, Layer{kind, l.Digest, l.Size, of})
}

// layers makes all layers but the bootstrap's and starts their uploads.
func (b *build) layers(ctx context.Context, files []source.File) error {
	parts := split(ctx, b.cfg, files)
	if n := len(b.base.Manifest.Layers) + len(parts); n > maxLayers {
		return classify(ErrSource, "base image %s: with the model's %d it makes an image of %d layers, and runtimes stack %d; "+
			"squash the base image", b.cfg.Base, len(parts), n, maxLayers)
	}
	for i := range b.base.Manifest.Layers {
		b.cfg.Progress.Plan(Read, b.base.Manifest.Layers[i].Size)
	}
	for i := range files {
		if files[i].Mode.IsRegular() {
			b.modelFiles++
			b.modelBytes += files[i].Size
		}
	}
	b.cfg.Progress.Plan(Read, b.modelBytes)
	for i := range b.base.Manifest.Layers {
		if err := b.frameworkLayer(ctx, i); err != nil {
			return err
		}
	}
	b.tree.NextLayer()
	for _, part := range parts {
		if err := b.modelLayer(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// upload brings a blob to the registry in the background.
func (b *build) upload(ctx context.Context, l v1.Layer, done func()) {
	b.work.Go(func() error {
		if done != nil {
			defer done()
		}
		return b.sink.blob(ctx, l)
	})
}

// part is what goes into one model layer.
type part struct {
	entries []layer.Entry
	of      string
}

// split distributes the model over layers: first one with all folders, links and small files, then the large files.
func split(ctx context.Context, cfg *Config, files []source.File) []part {
	root := strings.TrimPrefix(cfg.ModelPath, "/")
	var small part
	var large []layer.Entry
	count := 0
	for i := range files {
		f := &files[i]
		e := layer.Entry{Name: root + "/" + f.Path, Executable: f.Executable, Link: f.Link, Size: f.Size,
			Open: func() (io.ReadCloser, error) { return f.Open(ctx, 0) }}
		switch {
		case f.Mode.IsDir():
			e.Kind = layer.Dir
		case f.Link != "":
			e.Kind = layer.Symlink
		case f.Size >= largeFile:
			large = append(large, e)
			continue
		default:
			count++
		}
		small.entries = append(small.entries, e)
	}
	var parts []part
	if len(small.entries) > 0 {
		small.entries = append(parents(root+"/x"), small.entries...)
		small.of = fmt.Sprintf("%d small files", count)
		parts = append(parts, small)
	}
	per := (len(large) + maxLargeLayers - 1) / maxLargeLayers
	for len(large) > 0 {
		group := large[:min(per, len(large))]
		large = large[len(group):]
		parts = append(parts, largePart(root, group))
	}
	return parts
}

func largePart(root string, files []layer.Entry) part {
	var p part
	seen := map[string]bool{}
	for _, f := range files {
		for _, dir := range parents(f.Name) {
			if !seen[dir.Name] {
				seen[dir.Name] = true
				p.entries = append(p.entries, dir)
			}
		}
		p.entries = append(p.entries, f)
	}
	p.of = strings.TrimPrefix(files[0].Name, root+"/")
	if len(files) > 1 {
		p.of = fmt.Sprintf("%d large files from %s", len(files), p.of)
	}
	return p
}

// parents returns the folders above a name, topmost first.
func parents(name string) []layer.Entry {
	var out []layer.Entry
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		out = append([]layer.Entry{{Name: dir, Kind: layer.Dir}}, out...)
	}
	return out
}

// modelLayer makes one model layer and starts its upload.
func (b *build) modelLayer(ctx context.Context, p part) error {
	b.cfg.Progress.Step("hash " + p.of)
	plan, err := layer.NewPlan(p.entries)
	if err != nil {
		return classify(ErrSource, "model layer with %s: %w", p.of, err)
	}
	if plan.Size() > maxModelLayer {
		return classify(ErrSource, "model layer with %s has %d bytes, more than %d; cut the file into shards",
			p.of, plan.Size(), int64(maxModelLayer))
	}
	if err := b.fits(p); err != nil {
		return err
	}
	l, err := plan.Build(ctx, layer.Config{
		ChunkSize: rafsChunkSize,
		Table: func(offset int64, chunks []layer.Chunk) []byte {
			return bootstrap.Table(offset, rafsChunks(chunks))
		},
		Progress: func(n int64) { b.cfg.Progress.Done(Read, n) },
	})
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return classify(ErrSource, "model: %w", err)
	}
	if err := b.mergeModel(p, l); err != nil {
		return classify(ErrSource, "model: %w", err)
	}
	desc := image.Layer{DiffID: l.Digest, Descriptor: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer, Digest: l.Digest, Size: l.Size,
	}}
	b.model = append(b.model, desc)
	b.history = append(b.history, "shoal convert: "+p.of)
	if len(l.Chunks) > 0 {
		b.nydusModel = append(b.nydusModel, image.BlobLayer(l.Digest, l.Size))
	}
	b.maps[l.Digest] = l.Map
	b.record("model", desc, p.of)
	b.upload(ctx, &blobLayer{desc: desc.Descriptor, open: func() io.ReadCloser { return &changedReader{l.Open()} }}, nil)
	return nil
}

// changedReader gives what goes wrong in the second reading the class it had in the first.
type changedReader struct{ io.ReadCloser }

func (r *changedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = classify(ErrSource, "model: %w", err)
	}
	return n, err
}

func rafsChunks(chunks []layer.Chunk) []bootstrap.Chunk {
	out := make([]bootstrap.Chunk, len(chunks))
	for i, c := range chunks {
		out[i] = bootstrap.Chunk{
			Index: uint32(i), Digest: c.Digest, Offset: c.Offset, Length: c.Size,
			DeviceOffset: c.Offset, Size: c.Size, FileOffset: c.FileOffset,
		}
	}
	return out
}

// mergeModel puts the entries of a model layer into the tree.
func (b *build) mergeModel(p part, l *layer.Layer) error {
	var places []uint32
	if len(l.Chunks) > 0 {
		chunks := rafsChunks(l.Chunks)
		places = b.blobs.AddBlob(bootstrap.Blob{
			Digest: l.Digest, Size: l.Size, TableOffset: l.TarSize, ChunkCount: uint32(len(chunks)), DeviceSize: l.TarSize,
		}, chunks)
	}
	inodes := make([]*bootstrap.Inode, len(p.entries))
	for i := range p.entries {
		e := &p.entries[i]
		n := &bootstrap.Inode{Mode: uint32(e.Mode()), Link: e.Link}
		switch e.Kind {
		case layer.Dir:
			n.Mode |= bootstrap.TypeDir
		case layer.Symlink:
			n.Mode |= bootstrap.TypeSymlink
		default:
			n.Mode |= bootstrap.TypeRegular
			n.Size = e.Size
		}
		inodes[i] = n
	}
	for _, x := range l.Extents {
		inodes[x.Entry].Chunks = places[x.First : x.First+x.Count]
	}
	for i := range inodes {
		if err := b.tree.Add(p.entries[i].Name, inodes[i]); err != nil {
			return err
		}
	}
	return nil
}

// bootstrapLayer returns the last layer of the Nydus manifest and its bytes.
func (b *build) bootstrapLayer() (image.Layer, []byte, error) {
	b.cfg.Progress.Step("write bootstrap")
	b.image.Root = b.tree.Root
	boot, err := bootstrap.Encode(b.image)
	if err != nil {
		return image.Layer{}, nil, classify(ErrSource, "bootstrap: %w", err)
	}
	files := map[string][]byte{image.BootstrapName: boot}
	maps.Copy(files, b.blobs.Metas())
	for blob, m := range b.maps {
		files[chunkmap.FileName(blob)] = m.Encode()
	}
	var out bytes.Buffer
	diffID, err := image.WriteBootstrapLayer(&out, files)
	if err != nil {
		return image.Layer{}, nil, err
	}
	return image.BootstrapLayer(digest.FromBytes(out.Bytes()), diffID, int64(out.Len())), out.Bytes(), nil
}

func platformOf(base *source.Base) ocispec.Platform {
	p := base.Platform
	return ocispec.Platform{
		OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures,
	}
}
