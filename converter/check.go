package converter

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/peer/chunkmap"
)

// maxBootstrapLayer bounds what Check reads into memory.
const maxBootstrapLayer = 1 << 30

// CheckResult is what Check looked at.
type CheckResult struct {
	Target string        `json:"target"`
	Digest digest.Digest `json:"digest"`
	Blobs  int           `json:"blobs"`
	Bytes  int64         `json:"bytes"`
}

// Check reads a converted image whole and verifies it: that every blob either manifest names is there and has its digest,
// that the Nydus variant has a chunk map for each of them which fits, and that the bootstrap names the blobs of its manifest.
// It needs Target, and takes PlainHTTP, Progress and Remote of the configuration. A failed verification is ErrVerify, an
// image that is none of ours ErrSource.
func Check(ctx context.Context, cfg Config) (*CheckResult, error) {
	if cfg.Progress == nil {
		cfg.Progress = silent{}
	}
	ref, err := name.ParseReference(cfg.Target, cfg.nameOptions()...)
	if err != nil {
		return nil, classify(ErrConfig, "image %q: want REGISTRY/NAME:TAG: %w", cfg.Target, err)
	}
	c := &checker{cfg: &cfg, repo: ref.Context(), opts: append(remoteOptions(&cfg), remote.WithContext(ctx))}
	desc, err := remote.Get(ref, c.opts...)
	if terr, ok := errors.AsType[*transport.Error](err); ok && terr.StatusCode == http.StatusNotFound {
		return nil, classify(ErrSource, "image %s does not exist: the registry does not know it; check name and tag", cfg.Target)
	}
	if err != nil {
		return nil, registryError("read "+cfg.Target, cfg.Target, err)
	}
	plain, nydus, err := c.manifests(desc)
	if err != nil {
		return nil, err
	}
	boot, maps, err := c.bootstrap(nydus)
	if err != nil {
		return nil, err
	}
	if err := namesBlobs(boot, nydus); err != nil {
		return nil, err
	}
	seen := map[digest.Digest]bool{}
	for _, d := range append(append([]ocispec.Descriptor{plain.Config, nydus.Config}, plain.Layers...), nydus.Layers...) {
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		isLayer := d.Digest != plain.Config.Digest && d.Digest != nydus.Config.Digest && d.Digest != lastLayer(nydus).Digest
		if isLayer && maps[d.Digest] == nil {
			return nil, classify(ErrVerify, "%s: blob %s has no chunk map", cfg.Target, d.Digest)
		}
		if err := c.blob(d, maps[d.Digest]); err != nil {
			return nil, err
		}
	}
	return &CheckResult{Target: cfg.Target, Digest: digest.Digest(desc.Digest.String()), Blobs: len(seen), Bytes: c.bytes}, nil
}

type checker struct {
	cfg   *Config
	repo  name.Repository
	opts  []remote.Option
	bytes int64
}

func lastLayer(m *ocispec.Manifest) ocispec.Descriptor { return m.Layers[len(m.Layers)-1] }

// manifests returns both manifests of an index of ours.
func (c *checker) manifests(desc *remote.Descriptor) (plain, nydus *ocispec.Manifest, err error) {
	var index ocispec.Index
	if desc.MediaType != types.OCIImageIndex || json.Unmarshal(desc.Manifest, &index) != nil {
		return nil, nil, classify(ErrSource, "%s is no index, so shoal convert has not made it", c.cfg.Target)
	}
	for _, d := range index.Manifests {
		got, err := remote.Get(c.repo.Digest(d.Digest.String()), c.opts...) // verifies the digest
		if err != nil {
			return nil, nil, registryError("read manifest "+d.Digest.String(), c.cfg.Target, err)
		}
		m := &ocispec.Manifest{}
		if err := json.Unmarshal(got.Manifest, m); err != nil || len(m.Layers) == 0 {
			return nil, nil, classify(ErrSource, "%s: manifest %s has no layers: %v", c.cfg.Target, d.Digest, err)
		}
		if d.ArtifactType == image.ArtifactTypeNydus {
			nydus = m
		} else {
			plain = m
		}
	}
	if plain == nil || nydus == nil {
		return nil, nil, classify(ErrSource, "%s has not both variants, so shoal convert has not made it", c.cfg.Target)
	}
	return plain, nydus, nil
}

// bootstrap reads the last layer of the Nydus variant.
func (c *checker) bootstrap(nydus *ocispec.Manifest) (*bootstrap.Image, map[digest.Digest]*chunkmap.Map, error) {
	var raw bytes.Buffer
	d := lastLayer(nydus)
	if d.Size > maxBootstrapLayer {
		return nil, nil, classify(ErrVerify, "bootstrap layer of %d bytes", d.Size)
	}
	if err := c.stream(d, &raw); err != nil {
		return nil, nil, err
	}
	maps, err := chunkmap.AllFromLayer(bytes.NewReader(raw.Bytes()))
	if err != nil {
		return nil, nil, classify(ErrVerify, "bootstrap layer %s: %w", d.Digest, err)
	}
	boot, err := image.FileOfLayer(bytes.NewReader(raw.Bytes()), image.BootstrapName, maxBootstrapLayer)
	if err != nil {
		return nil, nil, classify(ErrVerify, "bootstrap layer %s: %w", d.Digest, err)
	}
	img, err := bootstrap.Decode(bytes.NewReader(boot), int64(len(boot)))
	if err != nil {
		return nil, nil, classify(ErrVerify, "bootstrap in layer %s: %w", d.Digest, err)
	}
	return img, maps, nil
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
func (c *checker) blob(d ocispec.Descriptor, m *chunkmap.Map) error {
	c.cfg.Progress.Step("check " + d.Digest.String())
	cut := &cutter{builder: chunkmap.NewBuilder()}
	if m != nil {
		cut.chunks = m.Chunks
	}
	if err := c.stream(d, cut); err != nil {
		return err
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

// stream copies a blob to w and verifies it.
func (c *checker) stream(d ocispec.Descriptor, w io.Writer) error {
	l, err := remote.Layer(c.repo.Digest(d.Digest.String()), c.opts...)
	var r io.ReadCloser
	if err == nil {
		r, err = l.Compressed()
	}
	if err != nil {
		return registryError("read blob "+d.Digest.String(), c.cfg.Target, err)
	}
	defer func() { _ = r.Close() }()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(r, d.Size+1))
	if got := digest.NewDigest(digest.SHA256, sum); n != d.Size || got != d.Digest {
		if err != nil && n < d.Size { // the client verifies too, but only a whole blob
			return registryError("read blob "+d.Digest.String(), c.cfg.Target, err)
		}
		return classify(ErrVerify, "blob %s of %d bytes: the registry has %d bytes with digest %s", d.Digest, d.Size, n, got)
	}
	return nil
}
