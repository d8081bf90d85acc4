package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// Config says how registries are spoken to. The zero value asks anonymously.
type Config struct {
	Keychain  authn.Keychain    // nil: anonymous
	Transport http.RoundTripper // nil: http.DefaultTransport
	Retry     Retry
	UserAgent string
	Logger    *slog.Logger // nil discards
	// Waiting, if not nil, is told why there is a pause, in a few words, and how long it is, before each one. It may be called
	// concurrently.
	Waiting func(why string, pause time.Duration)
}

// Registry is one repository of a registry.
type Registry struct {
	repo name.Repository
	cfg  Config

	// opening is held by who asks the registry how it wants to be asked, and guards client and scopes.
	opening *semaphore.Weighted
	client  *http.Client // nil before the first request
	scopes  []string     // what the client may do
}

// NewRegistry returns the repository. Nothing is asked before the first call of a method.
func NewRegistry(repo name.Repository, cfg Config) *Registry {
	if cfg.Keychain == nil {
		cfg.Keychain = authn.NewMultiKeychain()
	}
	if cfg.Transport == nil {
		cfg.Transport = http.DefaultTransport
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "shoal"
	}
	cfg.Retry = cfg.Retry.withDefaults()
	if cfg.Waiting != nil {
		cfg.Retry.waiting = func(err error, pause time.Duration) { cfg.Waiting(repo.RegistryStr()+" "+reason(err), pause) }
	}
	return &Registry{repo: repo, cfg: cfg, opening: semaphore.NewWeighted(1)}
}

// Repository returns the name of the repository.
func (r *Registry) Repository() name.Repository { return r.repo }

// access are the rights an operation needs.
type access int

const (
	reading access = iota
	writing
)

// session returns a client that has the rights, asking the registry how it wants to be asked if need be.
func (r *Registry) session(ctx context.Context, need access, from ...name.Repository) (*http.Client, error) {
	wanted := []string{r.repo.Scope(transport.PullScope)}
	if need == writing {
		wanted = []string{r.repo.Scope(transport.PushScope)}
	}
	for _, f := range from {
		wanted = append(wanted, f.Scope(transport.PullScope))
	}
	if err := r.opening.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	defer r.opening.Release(1)
	scopes := slices.Clone(r.scopes)
	for _, w := range wanted {
		if !slices.Contains(scopes, w) {
			scopes = append(scopes, w)
		}
	}
	if r.client != nil && len(scopes) == len(r.scopes) {
		return r.client, nil
	}
	auth, err := r.cfg.Keychain.Resolve(r.repo)
	if err != nil {
		return nil, err
	}
	var rt http.RoundTripper
	err = r.cfg.Retry.do(ctx, func(ctx context.Context) error {
		ctx, w := newWatch(ctx, r.cfg.Retry.Idle)
		defer w.end()
		base := transport.NewUserAgent(onceTransport{r.cfg.Transport}, r.cfg.UserAgent)
		rt, err = transport.NewWithContext(ctx, r.repo.Registry, auth, base, scopes)
		if unreachable(err) {
			return &ownError{err} // who mistyped a name should not wait
		}
		return cause(ctx, err)
	})
	if err != nil {
		return nil, err
	}
	r.client, r.scopes = &http.Client{Transport: rt}, scopes
	return r.client, nil
}

func (r *Registry) url(format string, args ...any) *url.URL {
	return &url.URL{
		Scheme: r.repo.Scheme(), Host: r.repo.RegistryStr(),
		Path: "/v2/" + r.repo.RepositoryStr() + "/" + fmt.Sprintf(format, args...),
	}
}

// call is one request. The body of the response is the caller's to close.
type call struct {
	method string
	url    *url.URL
	header http.Header
	body   io.Reader
	length int64 // of body; -1 if not known
}

func (r *Registry) send(ctx context.Context, client *http.Client, c call) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, c.method, c.url.String(), c.body)
	if err != nil {
		return nil, &ownError{err}
	}
	req.ContentLength = c.length
	if c.body == nil {
		req.ContentLength = 0
	}
	maps.Copy(req.Header, c.header)
	resp, err := client.Do(req)
	if err != nil {
		return nil, cause(ctx, err)
	}
	return resp, nil
}

// cause puts the reason why a context ended in the place of its bare error.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return fmt.Errorf("%w", context.Cause(ctx))
	}
	return err
}

// Manifest returns the manifest or index under a tag or digest, with its descriptor. Errors: ErrNotFound, ErrDigest, those of
// the registry.
func (r *Registry) Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	var desc ocispec.Descriptor
	var raw []byte
	client, err := r.session(ctx, reading)
	if err != nil {
		return desc, nil, err
	}
	err = r.cfg.Retry.do(ctx, func(ctx context.Context) error {
		ctx, w := newWatch(ctx, r.cfg.Retry.Idle)
		defer w.end()
		resp, err := r.send(ctx, client, call{method: http.MethodGet, url: r.url("manifests/%s", ref), header: http.Header{
			"Accept": {strings.Join(manifestTypes(), ", ")},
		}})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			return fmt.Errorf("manifest %s: %w (%w)", ref, ErrNotFound, wantStatus(resp, http.StatusOK))
		}
		if err := wantStatus(resp, http.StatusOK); err != nil {
			return err
		}
		if raw, err = io.ReadAll(io.LimitReader(resp.Body, maxManifest+1)); err != nil {
			return cause(ctx, err)
		}
		desc, err = describe(ref, resp.Header.Get("Content-Type"), raw)
		return err
	})
	return desc, raw, err
}

// manifestTypes are the kinds of manifest that are asked for.
func manifestTypes() []string {
	return []string{
		ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest,
		"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
		"application/vnd.docker.distribution.manifest.v1+prettyjws",
	}
}

// describe checks a manifest and returns its descriptor.
func describe(ref, mediaType string, raw []byte) (ocispec.Descriptor, error) {
	if len(raw) > maxManifest {
		return ocispec.Descriptor{}, fmt.Errorf("manifest %s has more than %d bytes: %w", ref, maxManifest, ErrDigest)
	}
	mediaType, _, _ = strings.Cut(mediaType, ";")
	desc := ocispec.Descriptor{MediaType: strings.TrimSpace(mediaType), Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if want, err := digest.Parse(ref); err == nil {
		if got := want.Algorithm().FromBytes(raw); got != want {
			return desc, fmt.Errorf("manifest %s: %w: it has %s", ref, ErrDigest, got)
		}
		desc.Digest = want
	}
	return desc, nil
}

// Has reports whether the blob is there. The registry is believed: it compared the digest when the blob was uploaded.
func (r *Registry) Has(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	client, err := r.session(ctx, reading)
	if err != nil {
		return false, err
	}
	return r.has(ctx, client, d.Digest, d.Size)
}

// has reports whether the blob is there, of so many bytes, unless size is below zero. Who says that it is there with another size does not have it:
// it may be no registry at all, but something on the way that answers whatever is asked.
func (r *Registry) has(ctx context.Context, client *http.Client, d digest.Digest, size int64) (bool, error) {
	got, err := r.stat(ctx, client, d)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil && (size < 0 || got < 0 || got == size), err
}

// PutManifest writes a manifest whose blobs are there, under its digest or a tag.
func (r *Registry) PutManifest(ctx context.Context, ref, mediaType string, raw []byte) error {
	client, err := r.session(ctx, writing)
	if err != nil {
		return err
	}
	vague := false
	err = r.cfg.Retry.do(ctx, func(ctx context.Context) error {
		ctx, w := newWatch(ctx, r.cfg.Retry.Commit)
		defer w.end()
		resp, err := r.send(ctx, client, call{
			method: http.MethodPut, url: r.url("manifests/%s", ref), body: strings.NewReader(string(raw)), length: int64(len(raw)),
			header: http.Header{"Content-Type": {mediaType}},
		})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		vague = resp.StatusCode != http.StatusCreated
		return wantStatus(resp, http.StatusOK, http.StatusCreated, http.StatusAccepted)
	})
	if err != nil || !vague {
		return err
	}
	return r.confirm(ctx, ref, raw)
}

// confirm reads back a manifest whose registry did not say that it has written it.
func (r *Registry) confirm(ctx context.Context, ref string, raw []byte) error {
	_, got, err := r.Manifest(ctx, ref)
	if err == nil && !bytes.Equal(got, raw) {
		err = errors.New("it answers with something else")
	}
	if err != nil {
		return fmt.Errorf("%s took manifest %s and does not have it; is it a registry, and nothing between? (%w)", r.repo.RegistryStr(), ref, err)
	}
	return nil
}

// Blob returns the bytes of a blob from offset on. It reads on over broken connections. From offset 0 it ends in an error of class ErrDigest
// instead of EOF if the bytes are not those of the descriptor; from another one nothing but their number can be told. The context
// bounds the reading too.
func (r *Registry) Blob(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	client, err := r.session(ctx, reading)
	if err != nil {
		return nil, err
	}
	b := &blobReader{ctx: ctx, r: r, client: client, desc: d, tries: tries{retry: r.cfg.Retry}, offset: offset}
	if err := b.reopen(nil); err != nil {
		return nil, err
	}
	return verified(b, d, offset), nil
}
