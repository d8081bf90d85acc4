package converter

import (
	"context"
	"errors"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/converter/layer"
)

const (
	manifestTries = 6
	manifestPause = 50 * time.Millisecond // after the first try; each further one waits so much longer
)

// finish writes what names the layers: bootstraps, configurations, manifests and, last of all, the tag.
func (c *conversion) finish(ctx context.Context, platforms []*platform) (*Result, error) {
	c.cfg.Progress.Step(Push, "write manifests")
	result := &Result{
		Target: c.target.String(), ModelPath: c.cfg.ModelPath, ModelFiles: c.files, ModelBytes: c.bytes, Pushed: !c.cfg.DryRun,
	}
	if c.model != nil {
		result.Source, result.Revision = c.model.Ref, c.model.Revision
	}
	var manifests, nydusOnes []ocispec.Descriptor
	for _, p := range platforms {
		plain, nydus, err := p.variants(ctx)
		if err != nil {
			return nil, err
		}
		manifests, nydusOnes = append(manifests, plain), append(nydusOnes, nydus)
		result.Variants = append(result.Variants, Variant{p.base.Platform.String(), plain.Digest, nydus.Digest})
		for _, r := range p.records {
			result.Layers = append(result.Layers, *r)
		}
	}
	for _, m := range c.layers {
		result.Layers = append(result.Layers, *m.record)
	}
	manifests = append(manifests, nydusOnes...)
	if c.cfg.ModelPack {
		desc, err := c.modelPack(ctx)
		if err != nil {
			return nil, err
		}
		manifests, result.ModelPack = append(manifests, desc), desc.Digest
	}
	kept, err := c.keep(ctx, platforms)
	if err != nil {
		return nil, err
	}
	for _, d := range kept {
		manifests, result.Kept = append(manifests, d), append(result.Kept, d.Digest)
	}
	index, err := image.Index(manifests, c.annotations())
	if err != nil {
		return nil, err
	}
	result.Digest = index.Digest
	return result, c.putManifest(ctx, c.target.Tag, index.MediaType, index.Bytes)
}

// annotations are those of the user, and of the model where its source says more than its files.
func (c *conversion) annotations() map[string]string {
	out := map[string]string{}
	if c.model != nil && c.model.Revision != "" {
		out[ocispec.AnnotationSource], out[ocispec.AnnotationRevision] = c.model.Ref, c.model.Revision
	}
	maps.Copy(out, c.cfg.Annotations)
	if len(out) == 0 {
		return nil
	}
	return out
}

// putManifest writes a manifest whose blobs are there. A registry that says otherwise is asked again: while another conversion writes
// the same blobs, docker-registry 2.8 on a file system finds their records empty for a moment.
func (c *conversion) putManifest(ctx context.Context, ref, mediaType string, raw []byte) error {
	for try := 1; ; try++ {
		err := c.sink.PutManifest(ctx, ref, mediaType, raw)
		if err == nil {
			return nil
		}
		if try == manifestTries || !unfinished(err) {
			return c.pushError("push manifest "+ref, err)
		}
		c.cfg.Logger.WarnContext(ctx, "manifest is pushed again", "ref", ref, "error", err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Duration(try) * manifestPause):
		}
	}
}

// unfinished reports whether a registry refused a manifest because it does not see what the manifest names.
func unfinished(err error) bool {
	refused, ok := errors.AsType[*transport.Error](err)
	return ok && slices.ContainsFunc(refused.Errors, func(d transport.Diagnostic) bool {
		return d.Code == transport.ManifestBlobUnknownErrorCode || d.Code == transport.DigestInvalidErrorCode
	})
}

// putVariant writes a manifest and its configuration.
func (c *conversion) putVariant(ctx context.Context, v image.Variant) (ocispec.Descriptor, error) {
	if err := c.push(ctx, rawBlob(v.Config.Descriptor, v.Config.Bytes), nil); err != nil {
		return ocispec.Descriptor{}, err
	}
	return v.Manifest.Descriptor, c.putManifest(ctx, v.Manifest.Digest.String(), v.Manifest.MediaType, v.Manifest.Bytes)
}

// modelPack writes the manifest of the model alone.
func (c *conversion) modelPack(ctx context.Context) (ocispec.Descriptor, error) {
	about := image.ModelAbout{Descriptor: image.ModelDescriptor{Name: c.cfg.Name, Revision: c.model.Revision}}
	if c.model.Revision != "" {
		about.Descriptor.SourceURL = c.model.Ref
	}
	var layers []image.ModelLayer
	for _, m := range c.layers {
		l := image.ModelLayer{Layer: m.image(), Path: strings.TrimPrefix(c.cfg.ModelPath, "/"), Weights: m.large}
		if f := m.file; f != nil {
			l.Path, l.File, l.Executable, l.Size = f.Name, true, f.Executable, f.Size
			if format := formatOf(f.Name); about.Config.Format == "" && m.large {
				about.Config.Format = format
			}
		}
		layers = append(layers, l)
	}
	annotations := map[string]string{image.AnnotationModelRoot: strings.TrimPrefix(c.cfg.ModelPath, "/")}
	maps.Copy(annotations, c.annotations())
	v, err := image.ModelPack(about, layers, annotations)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := c.putVariant(ctx, v)
	desc.ArtifactType = image.ArtifactTypeModel
	return desc, err
}

// onlyFile returns the file of a layer that holds nothing else, and nil for another layer.
func onlyFile(l *layer.Layer) *layer.Entry {
	var file *layer.Entry
	for _, e := range l.Entries {
		if e.Kind == layer.Dir {
			continue
		}
		if file != nil || e.Kind != layer.File {
			return nil
		}
		file = e
	}
	return file
}

// formatOf is what ModelPack calls the format of a file.
func formatOf(name string) string {
	switch path.Ext(name) {
	case ".safetensors":
		return "safetensors"
	case ".gguf":
		return "gguf"
	case ".onnx":
		return "onnx"
	case ".pt", ".pth", ".bin":
		return "pytorch"
	}
	return ""
}
