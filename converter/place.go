package converter

import (
	"context"
	"io"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/repository"
	"github.com/shoal-project/shoal/converter/source"
)

// sink is where an image goes. See package repository.
type sink interface {
	Push(ctx context.Context, b repository.Blob) (repository.Outcome, error)
	Create(ctx context.Context) (repository.Upload, error)
	PutManifest(ctx context.Context, ref, mediaType string, raw []byte) error
}

// place is where an image is or goes: a repository or a layout.
type place interface {
	sink
	Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error)
	Blob(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error)
	// Writable asks whether blobs may be written, with nothing written.
	Writable(ctx context.Context) error
}

// foresee asks a target, for a dry run, what can be asked with nothing written.
func foresee(ctx context.Context, at place, target repository.Reference, progress Progress) error {
	progress.Step(Push, "ask "+target.String())
	if err := at.Writable(ctx); err != nil {
		return targetError(target, "write the image", err)
	}
	return nil
}

// store is a place that can also be asked what it has, and what refers to it. Registries and layouts are both.
type store interface {
	place
	// Stat returns the size of a blob, -1 if it is not said; Has reports whether it is there whole.
	Stat(ctx context.Context, d digest.Digest) (int64, error)
	Has(ctx context.Context, d ocispec.Descriptor) (bool, error)
	// Referrers lists the manifests that name d as their subject; Refer adds one.
	Referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error)
	Refer(ctx context.Context, subject digest.Digest, desc ocispec.Descriptor, raw []byte) error
}

// Access says how registries are spoken to. The zero value asks anonymously over TLS.
type Access struct {
	// PlainHTTP speaks HTTP to all registries; loopback addresses always get it.
	PlainHTTP bool
	repository.Config
}

func (a *Access) nameOptions() []name.Option {
	if a.PlainHTTP {
		return []name.Option{name.Insecure}
	}
	return nil
}

// places opens registries and layouts, each repository once, so that its session is shared.
type places struct {
	access Access

	mu           sync.Mutex
	repositories map[string]*repository.Registry // guarded by mu
}

func newPlaces(access Access) *places {
	if access.Keychain != nil {
		access.Keychain = keychain{access.Keychain}
	}
	return &places{access: access, repositories: map[string]*repository.Registry{}}
}

// parse reads a reference; the error is of class ErrConfig and says which flag it is of.
func (p *places) parse(what, ref string) (repository.Reference, error) {
	r, err := repository.ParseReference(ref, p.access.nameOptions()...)
	if path := strings.HasPrefix(ref, "./") || strings.HasPrefix(ref, "../"); err != nil || path || isURL(ref) {
		if advice := source.Advice(ref); advice != "" {
			return r, classify(ErrConfig, "%s %s: %s", what, ref, advice)
		}
	}
	if err != nil {
		return r, classify(ErrConfig, "%s: %w", what, err)
	}
	return r, nil
}

// isURL tells oci://REGISTRY/NAME, as models are written, from a layout.
func isURL(ref string) bool {
	rest, ok := strings.CutPrefix(ref, "oci://")
	return ok && !strings.HasPrefix(rest, "/")
}

// parseImage reads the reference of an image that is there: in a registry it has a tag or a digest.
func (p *places) parseImage(what, ref string) (repository.Reference, error) {
	r, err := p.parse(what, ref)
	if err == nil && !r.IsLayout() && r.Name() == "" {
		err = classify(ErrConfig, "%s %s has no tag; add one, such as %s:v1", what, ref, ref)
	}
	return r, err
}

func (p *places) at(ref repository.Reference) store {
	if ref.IsLayout() {
		return repository.NewLayout(ref.Folder)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key := ref.Registry.Name()
	if p.repositories[key] == nil {
		p.repositories[key] = repository.NewRegistry(ref.Registry, p.access.Config)
	}
	return p.repositories[key]
}

// images opens what a base image is read from, and the name to ask it for.
func (p *places) images(what, ref string) (source.Images, string, error) {
	if path, ok := strings.CutPrefix(ref, dockerArchiveMark); ok {
		archive, tag, err := source.OpenDockerArchive(path)
		if err != nil {
			return nil, "", &classified{ErrSource, err}
		}
		return archive, tag, nil
	}
	r, err := p.parse(what, hubName(ref))
	if err != nil {
		return nil, "", err
	}
	if !r.IsLayout() && r.Name() == "" {
		r.Tag = name.DefaultTag // as all tools that pull do
	}
	return p.at(r), r.Name(), nil
}

// hubName completes a name without a registry, which means Docker Hub to all tools that pull images.
func hubName(ref string) string {
	host, _, ok := strings.Cut(ref, "/")
	if strings.ContainsAny(ref, " @") || strings.HasPrefix(ref, "oci:") || ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		return ref
	}
	if full, err := name.ParseReference(ref); err == nil && source.Advice(ref) == "" {
		return full.Name()
	}
	return ref
}

const dockerArchiveMark = "docker-archive:"

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
