package converter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/converter/repository"
)

// OptimizeConfig says which files of an image are wanted first.
type OptimizeConfig struct {
	Image string // REGISTRY/NAME:TAG or oci:FOLDER:TAG, made by Convert
	Tag   string // of the result, in the same repository; empty: the image's own
	// Files are paths in the image in the order in which they are read. Those that an image has not, or that are no regular files, are left
	// out. What the image wanted first until now, and the list does not name, comes behind.
	Files    []string
	DryRun   bool // write nothing
	Access   Access
	Progress Progress // nil: nobody is told
}

// OptimizeResult is what became of an image.
type OptimizeResult struct {
	Image     string              `json:"image"`
	Tag       string              `json:"tag"`
	Before    digest.Digest       `json:"before"` // of the index
	Digest    digest.Digest       `json:"digest"`
	Platforms []OptimizedPlatform `json:"platforms"`
	Written   bool                `json:"written"`
}

// OptimizedPlatform is the order of one platform's image.
type OptimizedPlatform struct {
	Platform string   `json:"platform"`
	Prefetch []string `json:"prefetch"`           // all files that are wanted first, in that order
	Left     []string `json:"left_out,omitempty"` // paths that are no regular files of this image
}

// Optimize writes the order in which an image's files are read into its Nydus variant. Nodes that mount the image fetch them in that
// order. Only the bootstrap layer and what names it are new; all other blobs and the plain variant stay as they are. The tag is written last.
func Optimize(ctx context.Context, cfg OptimizeConfig) (*OptimizeResult, error) {
	if cfg.Progress == nil {
		cfg.Progress = silent{}
	}
	places := newPlaces(cfg.Access)
	ref, err := places.parseImage("image", cfg.Image)
	if err != nil {
		return nil, err
	}
	if cfg.Tag == "" {
		cfg.Tag = ref.Tag
	}
	if cfg.Tag == "" {
		return nil, classify(ErrConfig, "image %s has no tag; say which one the result gets with --tag", cfg.Image)
	}
	if len(cfg.Files) == 0 {
		return nil, classify(ErrConfig, "no files are named; list the paths that the image's program reads, in their order")
	}
	cfg.Progress.Step(Read, "read "+cfg.Image)
	img, err := openConverted(ctx, places.at(ref), cfg.Image, ref.Name())
	if err != nil {
		return nil, err
	}
	o := &optimizer{cfg: cfg, img: img, target: ref, result: &OptimizeResult{Image: cfg.Image, Tag: cfg.Tag, Before: img.index.Digest}}
	o.target.Tag, o.target.Digest = cfg.Tag, ""
	return o.result, o.run(ctx)
}

type optimizer struct {
	cfg    OptimizeConfig
	img    *converted
	target repository.Reference
	result *OptimizeResult
}

func (o *optimizer) run(ctx context.Context) error {
	var index ocispec.Index
	if err := json.Unmarshal(o.img.raw, &index); err != nil {
		return classify(ErrSource, "%s: index: %w", o.cfg.Image, err)
	}
	for _, v := range o.img.variants {
		d, err := o.variant(ctx, v)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(index.Manifests, func(m ocispec.Descriptor) bool { return m.Digest == v.nydus.Digest })
		index.Manifests[at].Digest, index.Manifests[at].Size = d.Digest, d.Size
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	o.result.Digest = digest.FromBytes(raw)
	if o.cfg.DryRun {
		return foresee(ctx, o.img.place, o.target, o.cfg.Progress)
	}
	o.cfg.Progress.Step(Push, "write the tag "+o.cfg.Tag)
	if err := o.img.place.PutManifest(ctx, o.cfg.Tag, index.MediaType, raw); err != nil {
		return targetError(o.target, "push the tag "+o.cfg.Tag, err)
	}
	o.result.Written = true
	return nil
}

// variant writes the Nydus manifest of a platform with another bootstrap layer, and returns its descriptor.
func (o *optimizer) variant(ctx context.Context, v *convertedVariant) (d ocispec.Descriptor, err error) {
	boot, raw, err := o.bootstrapLayer(ctx, v)
	if err != nil {
		return d, err
	}
	m := v.nydus.manifest
	config, err := o.img.read(ctx, m.Config)
	if err != nil {
		return d, err
	}
	if config, err = replaceLastDiffID(config, boot.DiffID); err != nil {
		return d, classify(ErrVerify, "%s: configuration %s: %w", o.cfg.Image, m.Config.Digest, err)
	}
	m.Config.Digest, m.Config.Size = digest.FromBytes(config), int64(len(config))
	m.Layers = append(slices.Clone(m.Layers[:len(m.Layers)-1]), boot.Descriptor)
	manifest, err := json.Marshal(m)
	if err != nil {
		return d, err
	}
	d = ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	if o.cfg.DryRun {
		return d, nil
	}
	o.cfg.Progress.Step(Push, "write the bootstrap of "+v.platform)
	for _, b := range []repository.Blob{rawBlob(boot.Descriptor, raw), rawBlob(m.Config, config)} {
		if _, err := o.img.place.Push(ctx, b); err != nil {
			return d, targetError(o.target, "push blob "+b.Digest.String(), err)
		}
	}
	if err := o.img.place.PutManifest(ctx, d.Digest.String(), d.MediaType, manifest); err != nil {
		return d, targetError(o.target, "push manifest "+d.Digest.String(), err)
	}
	return d, nil
}

// bootstrapLayer returns a platform's bootstrap layer with the new order; all else in it stays.
func (o *optimizer) bootstrapLayer(ctx context.Context, v *convertedVariant) (l image.Layer, packed []byte, err error) {
	old := lastLayer(&v.nydus.manifest)
	if old.Size > maxBootstrapLayer {
		return l, nil, classify(ErrVerify, "%s: bootstrap layer of %d bytes", o.cfg.Image, old.Size)
	}
	raw, err := o.img.read(ctx, old)
	if err != nil {
		return l, nil, err
	}
	files, err := image.FilesOfLayer(bytes.NewReader(raw), func(string) bool { return true }, maxBootstrapLayer)
	if err != nil {
		return l, nil, classify(ErrVerify, "%s: bootstrap layer %s: %w", o.cfg.Image, old.Digest, err)
	}
	boot := files[image.BootstrapName]
	img, err := bootstrap.Decode(bytes.NewReader(boot), int64(len(boot)))
	if err != nil {
		return l, nil, classify(ErrVerify, "%s: bootstrap in layer %s: %w", o.cfg.Image, old.Digest, err)
	}
	done := OptimizedPlatform{Platform: v.platform}
	done.Prefetch, done.Left = reorder(img, o.cfg.Files)
	o.result.Platforms = append(o.result.Platforms, done)
	if files[image.BootstrapName], err = bootstrap.Encode(img); err != nil {
		return l, nil, classify(ErrSource, "bootstrap: %w", err)
	}
	var out bytes.Buffer
	diffID, err := image.WriteBootstrapLayer(&out, image.Files(files))
	if err != nil {
		return l, nil, err
	}
	l = image.BootstrapLayer(digest.FromBytes(out.Bytes()), diffID, int64(out.Len()))
	l.Annotations = old.Annotations
	return l, out.Bytes(), nil
}

// reorder sets what is wanted first: the files, then what was. It returns the new order, and the paths that are no regular files.
func reorder(img *bootstrap.Image, files []string) (order, left []string) {
	byName, names := map[string]*bootstrap.Inode{}, map[*bootstrap.Inode]string{}
	_ = img.Walk(func(name string, n *bootstrap.Inode) error { // visit never fails
		byName[name] = n
		if names[n] == "" {
			names[n] = name
		}
		return nil
	})
	listed := map[*bootstrap.Inode]bool{}
	var wanted []*bootstrap.Inode
	add := func(n *bootstrap.Inode) {
		if !listed[n] {
			listed[n] = true
			wanted, order = append(wanted, n), append(order, "/"+names[n])
		}
	}
	for _, file := range files {
		if n := byName[path.Clean("/" + file)[1:]]; n != nil && n.Type() == bootstrap.TypeRegular {
			add(n)
		} else {
			left = append(left, file)
		}
	}
	for _, n := range img.Prefetch {
		add(n)
	}
	img.Prefetch = wanted
	return order, left
}

// replaceLastDiffID changes the last layer's DiffID in a configuration and nothing else.
func replaceLastDiffID(config []byte, d digest.Digest) ([]byte, error) {
	fields, rootfs := map[string]json.RawMessage{}, ocispec.RootFS{}
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(fields["rootfs"], &rootfs); err != nil {
		return nil, err
	}
	if len(rootfs.DiffIDs) == 0 {
		return nil, errors.New("it names no layers")
	}
	rootfs.DiffIDs[len(rootfs.DiffIDs)-1] = d
	raw, err := json.Marshal(rootfs)
	if err != nil {
		return nil, err
	}
	fields["rootfs"] = raw
	return json.Marshal(fields)
}
