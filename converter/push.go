package converter

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/image"
)

// sink is where an image goes.
type sink interface {
	// blob brings a blob there unless it is there.
	blob(ctx context.Context, l v1.Layer) error
	// manifest brings a manifest there, under its digest or a tag.
	manifest(ctx context.Context, ref name.Reference, m image.Blob) error
}

func newSink(cfg *Config, target name.Tag) (sink, error) {
	if cfg.DryRun {
		return nowhere{}, nil
	}
	pusher, err := remote.NewPusher(remoteOptions(cfg)...)
	if err != nil {
		return nil, fmt.Errorf("registry client: %w", err)
	}
	return &registry{cfg: cfg, target: target, pusher: pusher}, nil
}

func remoteOptions(cfg *Config) []remote.Option {
	return append([]remote.Option{
		remote.WithAuthFromKeychain(keychain{authn.DefaultKeychain}),
		remote.WithUserAgent("shoal"),
	}, cfg.Remote...)
}

// keychain tells broken credentials from a registry that refuses.
type keychain struct{ authn.Keychain }

func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	auth, err := k.Keychain.Resolve(r)
	if err != nil {
		return nil, classify(ErrConfig, "credentials for %s: %w; mend the file that docker login, podman login or skopeo login wrote",
			r.RegistryStr(), err)
	}
	return auth, nil
}

// nowhere is the sink of a dry run.
type nowhere struct{}

func (nowhere) blob(context.Context, v1.Layer) error                       { return nil }
func (nowhere) manifest(context.Context, name.Reference, image.Blob) error { return nil }

type registry struct {
	cfg    *Config
	target name.Tag
	pusher *remote.Pusher
}

func (r *registry) blob(ctx context.Context, l v1.Layer) error {
	digest, err := l.Digest()
	if err != nil {
		return err
	}
	size, err := l.Size()
	if err != nil {
		return err
	}
	r.cfg.Progress.Plan(Push, size)
	counted := &countedLayer{Layer: l, progress: r.cfg.Progress}
	var upload v1.Layer = counted
	if m, ok := l.(*remote.MountableLayer); ok {
		counted.Layer = m.Layer
		upload = &remote.MountableLayer{Layer: counted, Reference: m.Reference}
	}
	if err := r.pusher.Upload(ctx, r.target.Context(), upload); err != nil {
		return registryError(fmt.Sprintf("push blob %s (%d bytes) to %s", digest, size, r.target.Context()), r.cfg.Target, err)
	}
	r.cfg.Progress.Done(Push, size-counted.done.Load()) // what the registry had already
	r.cfg.Logger.DebugContext(ctx, "blob pushed", "digest", digest.String(), "size", size)
	return nil
}

func (r *registry) manifest(ctx context.Context, ref name.Reference, m image.Blob) error {
	if err := r.pusher.Push(ctx, ref, taggable{m}); err != nil {
		return registryError("push manifest "+ref.String(), r.cfg.Target, err)
	}
	return nil
}

// taggable is a manifest as the registry client wants it; what it refers to was pushed before.
type taggable struct{ image.Blob }

func (t taggable) RawManifest() ([]byte, error) { return t.Bytes, nil }
func (t taggable) MediaType() (types.MediaType, error) {
	return types.MediaType(t.Descriptor.MediaType), nil
}
func (t taggable) Digest() (v1.Hash, error) { return v1.NewHash(t.Descriptor.Digest.String()) }
func (t taggable) Size() (int64, error)     { return t.Descriptor.Size, nil }

// blobLayer is a blob of ours as the registry client wants it.
type blobLayer struct {
	desc ocispec.Descriptor
	open func() io.ReadCloser // from the start; may be called again for another try
}

func (l *blobLayer) Digest() (v1.Hash, error)             { return v1.NewHash(l.desc.Digest.String()) }
func (l *blobLayer) DiffID() (v1.Hash, error)             { return l.Digest() }
func (l *blobLayer) Compressed() (io.ReadCloser, error)   { return l.open(), nil }
func (l *blobLayer) Uncompressed() (io.ReadCloser, error) { return l.open(), nil }
func (l *blobLayer) Size() (int64, error)                 { return l.desc.Size, nil }
func (l *blobLayer) MediaType() (types.MediaType, error) {
	return types.MediaType(l.desc.MediaType), nil
}

// countedLayer reports what is read of a layer. Uploads of one layer follow each other, but the client may still read for
// an upload that has failed.
type countedLayer struct {
	v1.Layer
	progress Progress
	done     atomic.Int64
}

func (l *countedLayer) Compressed() (io.ReadCloser, error) {
	r, err := l.Layer.Compressed()
	if err != nil {
		return nil, err
	}
	l.progress.Done(Push, -l.done.Swap(0))
	return &countedReader{r: r, layer: l}, nil
}

// countedReader is the body of an upload. The HTTP client may close it while it reads.
type countedReader struct {
	layer *countedLayer

	mu sync.Mutex
	r  io.ReadCloser // guarded by mu
}

func (r *countedReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.r.Read(p)
	r.layer.done.Add(int64(n))
	r.layer.progress.Done(Push, int64(n))
	return n, err
}

func (r *countedReader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.r.Close()
}

func byteReader(b []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(b)) }
