package converter

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"maps"
	"os"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/converter/layer"
	"github.com/shoal-project/shoal/converter/repository"
	"github.com/shoal-project/shoal/converter/source"
	"github.com/shoal-project/shoal/peer/chunkmap"
)

// platform is the image for one platform while it is made: the base's layers and the model's merged into one tree. One goroutine at
// a time works on it.
type platform struct {
	c    *conversion
	base *source.Base
	ref  string           // of the base, as it was given
	from *name.Repository // where its layers can be mounted from; nil if it is in no registry

	tree  *bootstrap.Tree
	image *bootstrap.Image
	blobs *bootstrap.Builder // of image
	maps  map[digest.Digest]*chunkmap.Map
	dict  *bootstrap.Dict // nil without a previous image

	previous []*previous

	plainBase []image.Layer
	framework []image.Layer // the base's blobs in the Nydus manifest

	mu      sync.Mutex
	records []*Layer // guarded by mu
}

func newPlatform(c *conversion, base *source.Base, ref string) *platform {
	img := &bootstrap.Image{ChunkSize: rafsChunkSize}
	return &platform{
		c: c, base: base, ref: ref, tree: bootstrap.NewTree(), image: img, blobs: bootstrap.NewBuilder(img),
		maps: map[digest.Digest]*chunkmap.Map{},
	}
}

func (p *platform) record(kind string, l image.Layer, of string) *Layer {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := &Layer{Kind: kind, Digest: l.Digest, Size: l.Size, Of: of}
	p.records = append(p.records, r)
	return r
}

// addModel merges the model's layers over the base's.
func (p *platform) addModel(layers []*modelLayer) error {
	if n := len(p.base.Manifest.Layers) + len(layers); n > maxLayers {
		return classify(ErrSource, "base image %s: with the model's %d it makes an image of %d layers, and runtimes stack %d; "+
			"squash the base image", p.ref, len(layers), n, maxLayers)
	}
	loaded := loadOrder{}
	for _, m := range layers {
		if err := p.fits(m.Entries); err != nil {
			return err
		}
		if err := p.mergeModel(m, &loaded); err != nil {
			return classify(ErrSource, "model: %w", err)
		}
		p.maps[m.Digest] = m.Map
	}
	p.image.Prefetch = loaded.inodes()
	p.keepPrefetch()
	return nil
}

// mergeModel puts the entries of a model layer into the tree.
func (p *platform) mergeModel(m *modelLayer, loaded *loadOrder) error {
	root := strings.TrimPrefix(p.c.cfg.ModelPath, "/")
	var places []uint32
	if m.ChunkCount() > 0 {
		places = p.blobs.AddBlob(bootstrap.Blob{
			Digest: m.Digest, Size: m.Size, TableOffset: m.TarSize, ChunkCount: uint32(m.ChunkCount()), DeviceSize: m.TarSize,
		}, rafsChunks(m.Chunks()))
	}
	for _, e := range m.Entries {
		n := &bootstrap.Inode{Mode: uint32(e.Mode()), Link: e.Link}
		switch e.Kind {
		case layer.Dir:
			n.Mode |= bootstrap.TypeDir
		case layer.Symlink:
			n.Mode |= bootstrap.TypeSymlink
		default:
			n.Mode |= bootstrap.TypeRegular
			n.Size = e.Size
			count := int((e.Size + rafsChunkSize - 1) / rafsChunkSize)
			n.Chunks, places = places[:count:count], places[count:]
		}
		if len(n.Chunks) > 0 {
			loaded.add(strings.TrimPrefix(e.Name, root+"/"), n)
		}
		if err := p.tree.Add(e.Name, n); err != nil {
			return err
		}
	}
	return nil
}

// bootstrapLayer writes the last layer of the Nydus manifest to a file.
func (p *platform) bootstrapLayer(file io.Writer) (image.Layer, error) {
	files, err := p.bootstrapFiles()
	if err != nil {
		return image.Layer{}, err
	}
	sum := sha256.New()
	out := bufio.NewWriterSize(tempWriter{file}, 1<<20)
	size := &byteCounter{}
	diffID, err := image.WriteBootstrapLayer(io.MultiWriter(out, sum, size), files)
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return image.Layer{}, err
	}
	return image.BootstrapLayer(digest.NewDigest(digest.SHA256, sum), diffID, size.n), nil
}

// bootstrapFiles are the files of that layer.
func (p *platform) bootstrapFiles() (map[string]image.File, error) {
	p.image.Root = p.tree.Root
	boot, err := bootstrap.NewEncoder(p.image)
	if err != nil {
		return nil, classify(ErrSource, "bootstrap: %w", err)
	}
	fitting, err := fitMaps(p.maps, chunkmap.MaxLayerMaps)
	if err != nil {
		return nil, err
	}
	files := image.Files(p.blobs.Metas())
	files[image.BootstrapName] = boot
	for blob, m := range fitting {
		files[chunkmap.FileName(blob)] = mapFile{m}
	}
	return files, nil
}

// mapFile is a chunk map as a file, encoded when it is written.
type mapFile struct{ m *chunkmap.Map }

func (f mapFile) Size() int64 { return int64(f.m.EncodedSize()) }

func (f mapFile) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(f.m.Encode())
	return int64(n), err
}

type byteCounter struct{ n int64 }

func (c *byteCounter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// pushBootstrap makes the last layer of the Nydus manifest and brings it to the target.
func (p *platform) pushBootstrap(ctx context.Context) (image.Layer, error) {
	file, err := os.CreateTemp(p.c.temp, "bootstrap-")
	if err != nil {
		return image.Layer{}, tempError(err)
	}
	defer func() { _ = os.Remove(file.Name()) }() // the folder goes too
	l, err := p.bootstrapLayer(file)
	if cerr := tempError(file.Close()); err == nil {
		err = cerr
	}
	if err != nil {
		return l, err
	}
	return l, p.c.push(ctx, tempBlob(l.Descriptor, file.Name()), p.record("bootstrap", l, p.base.Platform.String()))
}

// variants writes what names the layers: bootstrap, configurations and manifests. It returns the descriptors of the manifests for
// the index.
func (p *platform) variants(ctx context.Context) (plain, nydus ocispec.Descriptor, err error) {
	boot, err := p.pushBootstrap(ctx)
	if err != nil {
		return plain, nydus, err
	}
	cfg := p.c.cfg
	settings := image.Settings{Entrypoint: cfg.Entrypoint, Cmd: cfg.Cmd, Env: cfg.Env, User: cfg.User, Labels: cfg.Labels}
	var model, nydusModel []image.Layer
	for _, m := range p.c.layers {
		model = append(model, m.image())
		if m.chunks > 0 {
			nydusModel = append(nydusModel, image.BlobLayer(m.Digest, m.Size))
		}
		settings.History = append(settings.History, "shoal convert: "+m.of)
	}
	if plain, err = p.plain(ctx, settings, model); err != nil {
		return plain, nydus, err
	}
	settings.History = append(settings.History, "shoal convert: bootstrap")
	v, err := image.Nydus(p.base.Config, settings, append(append(p.framework, nydusModel...), boot), p.annotations())
	if err != nil {
		return plain, nydus, &classified{ErrSource, err}
	}
	nydus, err = p.c.putVariant(ctx, v)
	nydus.ArtifactType = image.ArtifactTypeNydus
	nydus.Platform, plain.Platform = p.described(), p.described()
	return plain, nydus, err
}

// plain writes the plain manifest: the base's own if nothing is added to it.
func (p *platform) plain(ctx context.Context, settings image.Settings, model []image.Layer) (ocispec.Descriptor, error) {
	if p.c.model == nil {
		if err := p.c.push(ctx, rawBlob(p.base.Manifest.Config, p.base.Config), nil); err != nil {
			return ocispec.Descriptor{}, err
		}
		return p.base.Descriptor, p.c.putManifest(ctx, p.base.Descriptor.Digest.String(), p.base.Descriptor.MediaType, p.base.Raw)
	}
	v, err := image.Plain(p.base.Config, settings, append(p.plainBase, model...), p.annotations())
	if err != nil {
		return ocispec.Descriptor{}, &classified{ErrSource, err}
	}
	return p.c.putVariant(ctx, v)
}

// annotations are those of the user, and what the image was made of where that is known.
func (p *platform) annotations() map[string]string {
	out := map[string]string{}
	if p.c.model != nil && p.from != nil {
		out[ocispec.AnnotationBaseImageDigest] = p.base.Descriptor.Digest.String()
	}
	maps.Copy(out, p.c.annotations())
	if len(out) == 0 {
		return nil
	}
	return out
}

func (p *platform) described() *ocispec.Platform {
	b := p.base.Platform
	return &ocispec.Platform{
		OS: b.OS, Architecture: b.Architecture, Variant: b.Variant, OSVersion: b.OSVersion, OSFeatures: b.OSFeatures,
	}
}

func rawBlob(d ocispec.Descriptor, raw []byte) repository.Blob {
	return repository.Blob{Descriptor: d, Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw[offset:])), nil
	}}
}
