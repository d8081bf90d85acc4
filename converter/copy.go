package converter

import (
	"context"
	"errors"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/repository"
	"golang.org/x/sync/errgroup"
)

// CopyConfig says what is copied where.
type CopyConfig struct {
	Source string // REGISTRY/NAME:TAG, …@DIGEST or oci:FOLDER[:TAG]
	Target string // the same, with a tag; a layout may take over the source's
	// NoReferrers leaves out what refers to the image: signatures, attestations.
	NoReferrers bool
	// DryRun asks what is there and whether the target may be written, and writes nothing.
	DryRun   bool
	Uploads  int // how many blobs are copied at once; default 4
	Access   Access
	Progress Progress // nil: nobody is told
}

// CopyResult is what was copied.
type CopyResult struct {
	Source    string        `json:"source"`
	Target    string        `json:"target"`
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"media_type"`
	Manifests int           `json:"manifests"`
	Blobs     int           `json:"blobs"`
	Bytes     int64         `json:"bytes"` // of the blobs
	// Sent, Mounted and Present are what became of the blobs, or would have.
	Sent    CopyCount `json:"sent"`
	Mounted CopyCount `json:"mounted"`
	Present CopyCount `json:"present"`
	// Referrers are those of the image and of its parts that were copied too.
	Referrers []CopiedReferrer `json:"referrers"`
	// Foreign are layers that may not be distributed: they stay where their URL says.
	Foreign []digest.Digest `json:"foreign,omitempty"`
	Copied  bool            `json:"copied"`
}

// CopyCount are blobs with the same fate.
type CopyCount struct {
	Blobs int   `json:"blobs"`
	Bytes int64 `json:"bytes"`
}

// CopiedReferrer is a manifest that refers to another one.
type CopiedReferrer struct {
	Digest       digest.Digest `json:"digest"`
	ArtifactType string        `json:"artifact_type,omitempty"`
	Subject      digest.Digest `json:"subject,omitempty"`
	Tag          string        `json:"tag,omitempty"` // by which cosign finds it
}

// Copy copies an image, or any other artifact, as it is: all manifests, configurations and blobs, and what refers to them. Digests
// stay what they are. Blobs that the target has are not sent; the tag is written last.
func Copy(ctx context.Context, cfg CopyConfig) (*CopyResult, error) {
	c, err := newCopier(&cfg)
	if err != nil {
		return nil, err
	}
	cfg.Progress.Step(Push, "read manifests of "+cfg.Source)
	if c.graph, err = readGraph(ctx, c.from, cfg.Source, c.source.Name(), !cfg.NoReferrers); err != nil {
		return nil, err
	}
	if d := c.target.Digest; d != "" && d != c.graph.root.Digest {
		return nil, classify(ErrConfig, "target %s: the source has the digest %s", cfg.Target, c.graph.root.Digest)
	}
	if cfg.DryRun {
		if err := foresee(ctx, c.to, c.target, cfg.Progress); err != nil {
			return nil, err
		}
	}
	c.describe()
	if err := c.copyBlobs(ctx); err != nil {
		return nil, err
	}
	if cfg.DryRun {
		return &c.result, nil
	}
	cfg.Progress.Step(Push, "write manifests")
	if err := c.copyManifests(ctx); err != nil {
		return nil, err
	}
	c.result.Copied = true
	return &c.result, nil
}

type copier struct {
	cfg            *CopyConfig
	source, target repository.Reference
	from, to       store
	mount          *name.Repository // where the target's registry may have the blobs; nil if nowhere
	graph          *graph
	result         CopyResult
}

func newCopier(cfg *CopyConfig) (*copier, error) {
	if cfg.Progress == nil {
		cfg.Progress = silent{}
	}
	if cfg.Uploads == 0 {
		cfg.Uploads = 4
	}
	places := newPlaces(cfg.Access)
	c := &copier{cfg: cfg}
	var err error
	if c.source, err = places.parseImage("source", cfg.Source); err != nil {
		return nil, err
	}
	if c.target, err = places.parse("target", cfg.Target); err != nil {
		return nil, err
	}
	if c.target.IsLayout() && c.target.Name() == "" {
		c.target.Tag = c.source.Tag
	}
	if c.target.Name() == "" {
		return nil, classify(ErrConfig, "target %s has no tag; add one, such as %s:v1", cfg.Target, cfg.Target)
	}
	c.from, c.to = places.at(c.source), places.at(c.target)
	if !c.source.IsLayout() && !c.target.IsLayout() && c.source.Registry.RegistryStr() == c.target.Registry.RegistryStr() &&
		c.source.Registry.Name() != c.target.Registry.Name() {
		c.mount = &c.source.Registry
	}
	return c, nil
}

func (c *copier) describe() {
	g := c.graph
	c.result = CopyResult{
		Source: c.cfg.Source, Target: c.target.String(), Digest: g.root.Digest, MediaType: g.root.MediaType,
		Manifests: len(g.order), Blobs: len(g.blobs), Bytes: g.size, Referrers: []CopiedReferrer{},
	}
	for _, m := range g.order {
		if m != g.root && (m.subject != "" || m.tag != "") {
			c.result.Referrers = append(c.result.Referrers, CopiedReferrer{m.Digest, m.ArtifactType, m.subject, m.tag})
		}
	}
	for _, d := range g.foreign {
		c.result.Foreign = append(c.result.Foreign, d.Digest)
	}
}

// copyBlobs brings all blobs to the target, several at once.
func (c *copier) copyBlobs(ctx context.Context) error {
	outcomes := make([]repository.Outcome, len(c.graph.blobs))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(c.cfg.Uploads)
	if c.cfg.DryRun {
		c.cfg.Progress.Step(Push, "ask what is there")
		group.SetLimit(asked)
	} else {
		c.cfg.Progress.Plan(Push, c.graph.size)
	}
	for i, d := range c.graph.blobs {
		group.Go(func() (err error) {
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			if c.cfg.DryRun {
				outcomes[i], err = c.foresee(gctx, d)
				return err
			}
			outcomes[i], err = c.copyBlob(gctx, d)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	for i, o := range outcomes {
		count := map[repository.Outcome]*CopyCount{
			repository.Sent: &c.result.Sent, repository.Mounted: &c.result.Mounted, repository.Present: &c.result.Present,
		}[o]
		count.Blobs++
		count.Bytes += c.graph.blobs[i].Size
	}
	return nil
}

// foresee says what would become of a blob, and that the source has it.
func (c *copier) foresee(ctx context.Context, d ocispec.Descriptor) (repository.Outcome, error) {
	found, err := c.to.Has(ctx, d)
	if err != nil {
		return "", c.pushError("ask for blob "+d.Digest.String(), err)
	}
	if found {
		return repository.Present, nil
	}
	if err := c.sourceHas(ctx, d); err != nil {
		return "", err
	}
	if c.mount != nil {
		return repository.Mounted, nil
	}
	return repository.Sent, nil
}

// sourceHas asks the source for a blob and its size.
func (c *copier) sourceHas(ctx context.Context, d ocispec.Descriptor) error {
	size, err := c.from.Stat(ctx, d.Digest)
	if err != nil {
		return c.sourceError(d, err)
	}
	if size >= 0 && size != d.Size {
		return classify(ErrVerify, "%s: blob %s has %d bytes there, the manifest says %d", c.cfg.Source, d.Digest, size, d.Size)
	}
	return nil
}

func (c *copier) copyBlob(ctx context.Context, d ocispec.Descriptor) (repository.Outcome, error) {
	c.cfg.Progress.Step(Push, "copy "+d.Digest.String())
	defer c.cfg.Progress.Ended(Push, "copy "+d.Digest.String())
	outcome, err := c.to.Push(ctx, repository.Blob{
		Descriptor: d, From: c.mount,
		Progress: func(n int64) { c.cfg.Progress.Done(Push, n) },
		Open: func(ctx context.Context, offset int64) (io.ReadCloser, error) {
			if offset == 0 {
				if err := c.sourceHas(ctx, d); err != nil {
					return nil, err
				}
			}
			r, err := c.from.Blob(ctx, d, offset)
			if err != nil {
				return nil, c.sourceError(d, err)
			}
			return &sourceBlob{r, c, d, d.Size - offset}, nil
		},
	})
	if err != nil {
		return "", c.pushError("push blob "+d.Digest.String(), err)
	}
	return outcome, nil
}

// sourceBlob gives what goes wrong with the source its class, so that the target is not blamed. With its last bytes it tells whether
// the digest was right: who sends as many bytes as were promised does not read on.
type sourceBlob struct {
	io.ReadCloser
	c    *copier
	d    ocispec.Descriptor
	left int64
}

func (s *sourceBlob) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if s.left -= int64(n); s.left == 0 && err == nil {
		_, err = s.ReadCloser.Read(make([]byte, 1))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = s.c.sourceError(s.d, err)
	}
	return n, err
}

func (c *copier) sourceError(d ocispec.Descriptor, err error) error {
	if errors.Is(err, repository.ErrNotFound) {
		return classify(ErrSource, "%s: blob %s of %d bytes is not there", c.cfg.Source, d.Digest, d.Size)
	}
	return blobError(c.cfg.Source, d, err)
}

func (c *copier) pushError(doing string, err error) error {
	return targetError(c.target, doing, err)
}

// copyManifests writes manifests behind those they name, then what refers to them, and the tag last.
func (c *copier) copyManifests(ctx context.Context) error {
	for _, m := range c.graph.order {
		var err error
		if m.subject != "" {
			err = c.to.Refer(ctx, m.subject, m.Descriptor, m.raw)
		} else {
			err = c.to.PutManifest(ctx, m.Digest.String(), m.MediaType, m.raw)
		}
		if m.tag != "" && err == nil {
			err = c.to.PutManifest(ctx, m.tag, m.MediaType, m.raw)
		}
		if err != nil {
			return c.pushError("push manifest "+m.Digest.String(), err)
		}
	}
	if c.target.Tag == "" {
		return nil
	}
	if err := c.to.PutManifest(ctx, c.target.Tag, c.graph.root.MediaType, c.graph.root.raw); err != nil {
		return c.pushError("push the tag "+c.target.Tag, err)
	}
	return nil
}
