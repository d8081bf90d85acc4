package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/peer/source"
)

// content is what the target has now.
type content struct {
	id        digest.Digest // empty when nothing would tell it from another one
	size      int64         // bytes; negative when it is not known
	validator source.Validator
	stale     string // since when the origin has not been asked, because it is down
}

// place is somewhere content can be read: the node or the origin.
type place interface {
	// head tells what the content is now.
	head(ctx context.Context) (content, error)
	// open returns the bytes [off, off+length) of c; all from 0 on when c's size is not known.
	open(ctx context.Context, c content, s span) (io.ReadCloser, error)
}

// span is a part of a content, in bytes.
type span struct{ off, length int64 }

// Target is what is to be fetched.
type Target struct {
	// URL is set for a URL.
	URL string
	// Blob is set for a blob of a registry.
	Blob source.Blob
}

// String returns the target without what may be secret.
func (t Target) String() string {
	if t.URL != "" {
		return source.Redact(t.URL)
	}
	return t.Blob.String()
}

// ParseTarget reads http://…, https://…, and REGISTRY/NAME@DIGEST, also with oci:// before it.
func ParseTarget(s string) (Target, error) {
	if strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://") {
		_, err := source.ParseLink(s, nil, nil)
		return Target{URL: s}, err
	}
	if scheme, _, ok := strings.Cut(s, "://"); ok && scheme != "oci" {
		return Target{}, fmt.Errorf("scheme %q: want http://, https:// or oci://; shoal convert reads others", scheme)
	}
	ref, err := name.NewDigest(strings.TrimPrefix(s, "oci://"))
	if err != nil {
		return Target{}, fmt.Errorf("%q is neither a URL nor REGISTRY/NAME@sha256:DIGEST", s)
	}
	registry := ref.RegistryStr()
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	return Target{Blob: source.Blob{Registry: registry, Repository: ref.RepositoryStr(), Digest: digest.Digest(ref.DigestStr())}}, nil
}

// nodeURL is a URL read through the node.
type nodeURL struct {
	client *local.Client
	req    local.ContentRequest
}

func (p *nodeURL) head(ctx context.Context) (content, error) {
	req := p.req
	req.Head = true
	s, err := p.client.Content(ctx, req)
	if err != nil {
		return content{}, err
	}
	return content{id: s.Identity, size: s.Size, validator: s.Validator, stale: s.Stale}, nil
}

func (p *nodeURL) open(ctx context.Context, c content, s span) (io.ReadCloser, error) {
	req := p.req
	req.Identity, req.Off, req.Length = c.id, s.off, s.length
	stream, err := p.client.Content(ctx, req)
	if refused, ok := errors.AsType[*local.Error](err); ok && refused.Code == local.CodeChanged {
		return nil, fmt.Errorf("%w: %w", source.ErrChanged, err)
	}
	if err != nil {
		return nil, err
	}
	if stream.Identity != c.id || stream.Body == nil {
		return nil, errors.New("the node answers another question")
	}
	return stream.Body, nil
}

// originURL is a URL read from its own host.
type originURL struct {
	origin *source.Source
	link   source.Link
	digest digest.Digest
}

func (p *originURL) web(c content) source.Web {
	return source.Web{URL: p.link.URL, Header: p.link.Header, Validator: c.validator}
}

func (p *originURL) head(ctx context.Context) (content, error) {
	info, err := p.origin.Probe(ctx, p.web(content{}))
	if err != nil {
		return content{}, err
	}
	c := content{id: p.digest, size: info.Size, validator: info.Validator}
	if c.id == "" && info.Size >= 0 && info.Validator.Resumable() {
		b, _ := local.Name(p.link, info, "", false) // whether it may be shared is of no interest here
		c.id = b.Digest
	}
	return c, nil
}

func (p *originURL) open(ctx context.Context, c content, s span) (io.ReadCloser, error) {
	w := p.web(c)
	if c.size < 0 {
		return p.origin.Stream(ctx, w)
	}
	w.Confirm = p.digest == "" && !c.validator.IsZero()
	return p.origin.Fetch(ctx, source.Blob{Web: &w, Size: c.size}, s.off, s.length, "")
}

// blobAt is a registry's blob, read from the registry or from the mirror of the node, whose addresses the source knows.
type blobAt struct {
	source *source.Source
	blob   source.Blob
}

func (p *blobAt) head(ctx context.Context) (content, error) {
	size, err := p.source.ProbeBlob(ctx, p.blob)
	if err == nil && size < 0 {
		err = errors.New("the registry does not tell the blob's size")
	}
	return content{id: p.blob.Digest, size: size}, err
}

func (p *blobAt) open(ctx context.Context, c content, s span) (io.ReadCloser, error) {
	b := p.blob
	b.Size = c.size
	return p.source.Fetch(ctx, b, s.off, s.length, "")
}

// places returns where the target can be read: through the node, if there is one, and at the origin.
func (cfg Config) places() (node, origin place, err error) {
	if cfg.Target.URL == "" {
		if cfg.Mirror != nil {
			node = &blobAt{cfg.Mirror, cfg.Target.Blob}
		}
		return node, &blobAt{cfg.Origin, cfg.Target.Blob}, nil
	}
	link, err := source.ParseLink(cfg.Target.URL, cfg.Ignore, cfg.Header)
	if err != nil {
		return nil, nil, err
	}
	if cfg.Node != nil {
		node = &nodeURL{cfg.Node, local.ContentRequest{URL: link.URL, Header: link.Header, Digest: cfg.Digest, Ignore: cfg.Ignore,
			Share: cfg.Share}}
	}
	return node, &originURL{cfg.Origin, link, cfg.Digest}, nil
}
