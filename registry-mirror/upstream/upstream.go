package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/attribute"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/tracing"
)

const (
	// MaxManifest is the largest manifest or index that is accepted, in bytes, as the distribution specification advises.
	MaxManifest = 4 << 20
	// DefaultTimeout is used when Config.Timeout is zero.
	DefaultTimeout = 5 * time.Second

	maxErrorBody = 16 << 10
	digestHeader = "Docker-Content-Digest"
)

// ErrTooLarge means that the registry sent more than MaxManifest bytes for a manifest or a list.
var ErrTooLarge = errors.New("manifest or list is larger than 4 MiB")

// passed returns the caller's headers that mean the same to the origin as to the mirror.
func passed() []string { return []string{"Accept", "Authorization", "User-Agent"} }

// kept returns the headers of an answer that a caller needs to go on.
func kept() []string {
	return []string{"WWW-Authenticate", "Retry-After", "Docker-Distribution-Api-Version", "Link", "OCI-Filters-Applied"}
}

// Config describes a Client.
type Config struct {
	// Resolve returns the URL below which a registry's /v2/ is, and the client to reach it with. It must not be nil.
	Resolve func(registry string) (*url.URL, *http.Client)
	// Timeout bounds each request with its answer. Zero is DefaultTimeout.
	Timeout time.Duration
}

// Validate reports all faults of the configuration at once.
func (c Config) Validate() error {
	var errs []error
	if c.Resolve == nil {
		errs = append(errs, errors.New("upstream: no resolver of registries"))
	}
	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("upstream: timeout is %s, want 0 (%s) or more", c.Timeout, DefaultTimeout))
	}
	return errors.Join(errs...)
}

// Client asks registries. It is safe for concurrent use and keeps nothing but anonymous tokens.
type Client struct {
	cfg       Config
	anonymous anonymous
}

// New returns a client.
func New(cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	return &Client{cfg: cfg}, nil
}

// Ref names a manifest or a blob at its origin.
type Ref struct {
	Registry   string // HOST or HOST:PORT
	Repository string
	Reference  string // a tag or a digest; for a blob a digest
}

// String returns the name as people write it.
func (r Ref) String() string {
	separator := ":"
	if strings.Contains(r.Reference, ":") {
		separator = "@"
	}
	return r.Registry + "/" + r.Repository + separator + r.Reference
}

// Response is what the registry answered.
type Response struct {
	Status    int           // of HTTP; the fields below but Header and Body are set for 200 only
	MediaType string        // without parameters
	Digest    digest.Digest // computed from Body for a GET, else as the registry says; may be empty after a HEAD
	Size      int64         // in bytes; -1 when a HEAD did not tell
	Body      []byte        // of a GET; the start of the error's text for other statuses than 200
	Header    http.Header   // WWW-Authenticate, Retry-After, Docker-Distribution-Api-Version, Link and OCI-Filters-Applied, where present
}

// Manifest asks for a manifest with method GET or HEAD. Of the caller's header, Accept, Authorization and User-Agent are
// passed on. The body of a GET has the digest that was asked for and that the registry announced, or the error is a
// *piece.MismatchError; more than MaxManifest bytes are ErrTooLarge; a registry that cannot be reached, or not in time,
// is piece.ErrTransient.
func (c *Client) Manifest(ctx context.Context, ref Ref, method string, header http.Header) (*Response, error) {
	if method != http.MethodGet && method != http.MethodHead {
		return nil, fmt.Errorf("manifest %s: method %s is neither GET nor HEAD", ref, method)
	}
	resp, err := c.do(ctx, call{ref: ref, kind: "manifests", method: method, header: header})
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", ref, err)
	}
	return resp, nil
}

// Blob asks whether a blob is there, how large it is, and whether the caller may have it, without its bytes. The headers
// and errors are those of Manifest.
func (c *Client) Blob(ctx context.Context, ref Ref, header http.Header) (*Response, error) {
	if _, err := digest.Parse(ref.Reference); err != nil {
		return nil, fmt.Errorf("blob %s: %w", ref, err)
	}
	resp, err := c.do(ctx, call{ref: ref, kind: "blobs", method: http.MethodHead, header: header})
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", ref, err)
	}
	return resp, nil
}

// Tags asks for the repository's tags; query may have n and last. The answer is passed on as it is, and has no digest. The headers and
// errors are those of Manifest.
func (c *Client) Tags(ctx context.Context, ref Ref, query url.Values, header http.Header) (*Response, error) {
	ref.Reference = "list"
	resp, err := c.do(ctx, call{ref: ref, kind: "tags", method: http.MethodGet, query: query, header: header})
	if err != nil {
		return nil, fmt.Errorf("tags of %s/%s: %w", ref.Registry, ref.Repository, err)
	}
	return resp, nil
}

// Referrers asks for what refers to the manifest with the digest ref.Reference; query may have artifactType. The answer is like that of Tags.
func (c *Client) Referrers(ctx context.Context, ref Ref, query url.Values, header http.Header) (*Response, error) {
	resp, err := c.do(ctx, call{ref: ref, kind: "referrers", method: http.MethodGet, query: query, header: header})
	if err != nil {
		return nil, fmt.Errorf("referrers of %s: %w", ref, err)
	}
	return resp, nil
}

// call is one request to a registry.
type call struct {
	ref          Ref
	kind, method string
	query        url.Values
	header       http.Header
}

// named reports whether the answer has the digest that the reference says, if it is one.
func (c call) named() bool { return c.kind == "manifests" || c.kind == "blobs" }

func (c *Client) do(ctx context.Context, call call) (*Response, error) {
	asked, span := tracing.Start(ctx, "ask registry", attribute.String("http.request.method", call.method), attribute.String("shoal.reference", call.ref.String()))
	out, err := c.exchange(asked, call)
	tracing.End(ctx, span, err)
	return out, err
}

func (c *Client) exchange(ctx context.Context, call call) (*Response, error) {
	base, client := c.cfg.Resolve(call.ref.Registry)
	target, err := join(base, call.ref, call.kind)
	if err != nil {
		return nil, err
	}
	target.RawQuery = call.query.Encode()
	limited, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeout, fmt.Errorf("no answer within %s", c.cfg.Timeout))
	defer cancel()
	req, err := http.NewRequestWithContext(limited, call.method, target.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, key := range passed() {
		if values := call.header.Values(key); len(values) > 0 {
			req.Header[key] = values
		}
	}
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := c.ask(client, req, call.ref)
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // the wrapper shows where the registry sent us, which may be signed for its reader
	}
	if err != nil {
		return nil, classify(ctx, limited, err)
	}
	defer resp.Body.Close()
	out, err := read(resp, call)
	if err != nil {
		return nil, classify(ctx, limited, err)
	}
	return out, nil
}

// join refuses names that would lead out of the registry's tree.
func join(base *url.URL, ref Ref, kind string) (*url.URL, error) {
	for part := range strings.SplitSeq(ref.Repository+"/"+ref.Reference, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "?#%\\") {
			return nil, errors.New("not a name of the form REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@DIGEST")
		}
	}
	if strings.Contains(ref.Reference, "/") {
		return nil, errors.New("a tag has no slash")
	}
	return base.JoinPath("v2", ref.Repository, kind, ref.Reference), nil
}

// classify makes a failed exchange piece.ErrTransient, unless the caller left or the content was wrong.
func classify(outer, limited context.Context, err error) error {
	switch {
	case outer.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(outer), err)
	case errors.Is(err, piece.ErrMismatch), errors.Is(err, ErrTooLarge):
		return err
	case limited.Err() != nil:
		return fmt.Errorf("%w: %w", piece.ErrTransient, context.Cause(limited))
	}
	return fmt.Errorf("%w: %w", piece.ErrTransient, err)
}

func read(resp *http.Response, call call) (*Response, error) {
	out := &Response{Status: resp.StatusCode, Size: -1, Header: http.Header{}}
	for _, key := range kept() {
		if values := resp.Header.Values(key); len(values) > 0 {
			out.Header[http.CanonicalHeaderKey(key)] = values
		}
	}
	if resp.StatusCode != http.StatusOK {
		out.Body, _ = io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // as much of the text as came
		return out, nil
	}
	out.MediaType = mediaType(resp.Header)
	out.Size = resp.ContentLength
	if !call.named() {
		return out, out.readPlain(resp.Body)
	}
	if announced := resp.Header.Get(digestHeader); announced != "" {
		d, err := digest.Parse(announced)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", digestHeader, announced, err)
		}
		out.Digest = d
	}
	if want, err := digest.Parse(call.ref.Reference); err == nil {
		if out.Digest != "" && out.Digest.Algorithm() == want.Algorithm() && out.Digest != want {
			return nil, mismatch(call.kind, want, out.Digest)
		}
		out.Digest = want
	}
	if resp.Request.Method == http.MethodHead {
		return out, nil
	}
	return out, out.readBody(resp.Body, call.kind)
}

// readBody reads a manifest and checks it against the digest known so far, or computes that.
func (r *Response) readBody(body io.Reader, kind string) error {
	if err := r.readPlain(body); err != nil {
		return err
	}
	want := r.Digest
	algorithm := digest.Canonical
	if want != "" {
		algorithm = want.Algorithm()
	}
	r.Digest = algorithm.FromBytes(r.Body)
	if want != "" && r.Digest != want {
		return mismatch(kind, want, r.Digest)
	}
	return nil
}

// readPlain reads a body whose digest nobody knows.
func (r *Response) readPlain(body io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(body, MaxManifest+1))
	if err != nil {
		return err
	}
	if len(data) > MaxManifest {
		return ErrTooLarge
	}
	r.Body, r.Size = data, int64(len(data))
	return nil
}

func mismatch(kind string, want, got digest.Digest) error {
	return &piece.MismatchError{Unit: strings.TrimSuffix(kind, "s"), Want: want.String(), Got: got.String()}
}

func mediaType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return h.Get("Content-Type")
	}
	return t
}
