package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/peer/challenge"
)

const (
	// DefaultStall is used when Config.Stall is zero.
	DefaultStall = time.Second
	// DefaultPatience is used when Config.Patience is zero.
	DefaultPatience = 5 * time.Second

	maxErrorText = 512
)

// Config describes a Source. The zero Config reads public repositories over HTTPS.
type Config struct {
	// Resolve returns how a registry is reached; Endpoints.Resolve is one. Nil is that of no configuration at all.
	Resolve func(registry string) (*url.URL, *http.Client)
	// Web returns the client for URLs at a host; foreign ones were named by another host of the cluster. Endpoints.Web is one. Nil
	// is that of no configuration at all.
	Web func(host string, foreign bool) *http.Client
	// Keychain has the credentials for callers who bring none; authn.DefaultKeychain reads those of docker login. Nil is
	// anonymous access.
	Keychain authn.Keychain
	// Patience is how long the registry may take to begin its answer, with tokens and redirects. Zero is DefaultPatience.
	Patience time.Duration
	// Stall is how long it may send nothing in the middle of an answer. Zero is DefaultStall.
	Stall time.Duration
	// Mirror is set when what answers is a node's mirror, which would fetch what ProbeBlob asks for: it is asked by HEAD then, to which
	// registries that lead elsewhere need not give an answer.
	Mirror bool
	// Registerer receives the metrics. Nil keeps them out of sight.
	Registerer prometheus.Registerer
}

// Validate reports all faults of the configuration at once.
func (c Config) Validate() error {
	if c.Patience < 0 || c.Stall < 0 {
		return errors.New("source: a time is negative")
	}
	return nil
}

// Blob names a blob at its origin.
type Blob struct {
	Registry   string // HOST or HOST:PORT, as in an image's name
	Repository string
	Digest     digest.Digest
	Size       int64 // in bytes; 0 when not known
	// Web is set for what a URL has instead of a registry; Size is known then.
	Web *Web
}

// String returns the blob's name as REGISTRY/REPOSITORY@DIGEST, or its URL without what may be secret.
func (b Blob) String() string {
	if b.Web != nil {
		return Redact(b.Web.URL)
	}
	return b.Registry + "/" + b.Repository + "@" + b.Digest.String()
}

// Source reads blobs from registries. It is safe for concurrent use.
type Source struct {
	cfg     Config
	tokens  *tokens
	metrics *metrics
}

// New returns a source.
func New(cfg Config) (*Source, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Resolve == nil || cfg.Web == nil {
		endpoints, err := NewEndpoints(nil)
		if err != nil {
			return nil, err
		}
		if cfg.Resolve == nil {
			cfg.Resolve = endpoints.Resolve
		}
		if cfg.Web == nil {
			cfg.Web = endpoints.Web
		}
	}
	if cfg.Keychain == nil {
		cfg.Keychain = authn.NewMultiKeychain() // resolves to anonymous
	}
	cfg.Patience = cmp.Or(cfg.Patience, DefaultPatience)
	cfg.Stall = cmp.Or(cfg.Stall, DefaultStall)
	return &Source{cfg: cfg, tokens: newTokens(cfg.Keychain), metrics: newMetrics(cfg.Registerer)}, nil
}

// Fetch returns a reader of bytes [off, off+length) of the blob, which must be closed. It ends in io.EOF after exactly
// these bytes, and in an error with a class of package piece before. A given authorization is sent as it is, and decides
// alone; without one the keychain's credentials are used. ctx bounds the reading, too.
func (s *Source) Fetch(ctx context.Context, b Blob, off, length int64, authorization string) (io.ReadCloser, error) {
	body, err := s.fetch(ctx, b, off, length, authorization)
	s.metrics.request(err)
	if err != nil {
		return nil, fmt.Errorf("bytes [%d, %d) of %s: %w", off, off+length, b, err)
	}
	return body, nil
}

func (s *Source) fetch(ctx context.Context, b Blob, off, length int64, authorization string) (io.ReadCloser, error) {
	if off < 0 || length <= 0 || b.Size > 0 && off > b.Size-length {
		return nil, fmt.Errorf("range is not within the blob of %d bytes", b.Size)
	}
	if b.Web != nil {
		return s.fetchWeb(ctx, b, off, length)
	}
	base, client := s.cfg.Resolve(b.Registry)
	target, err := blobURL(base, b)
	if err != nil {
		return nil, err
	}
	req := request{Blob: b, off: off, length: length, url: target, client: client}

	watched, cancel := context.WithCancelCause(ctx)
	watchdog := time.AfterFunc(s.cfg.Patience, func() { cancel(ErrStalled) })
	cause := func(err error) error { return s.cause(ctx, watched, err) }
	resp, err := s.ask(watched, req, authorization)
	if err == nil {
		if err = req.check(resp); err != nil {
			_ = resp.Body.Close() // the answer is of no use
		}
	}
	watchdog.Stop()
	if err != nil {
		err = cause(err)
		cancel(nil)
		return nil, err
	}
	return &reader{source: s, request: req, body: resp.Body, left: length, watchdog: watchdog, cancel: cancel, cause: cause}, nil
}

// cause tells an ended caller from a stalled registry from any other failure.
func (s *Source) cause(outer, watched context.Context, err error) error {
	switch {
	case outer.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(outer), err)
	case errors.Is(context.Cause(watched), ErrStalled):
		s.metrics.stalls.Inc()
		return ErrStalled
	}
	return classify(err)
}

// request is one range of one blob, and where it is.
type request struct {
	Blob
	off, length int64
	url         *url.URL
	client      *http.Client
	head        bool // no bytes are wanted
}

func (r request) send(ctx context.Context, authorization string) (*http.Response, error) {
	method := http.MethodGet
	if r.head {
		method = http.MethodHead
	}
	req, err := http.NewRequestWithContext(ctx, method, r.url.String(), nil)
	if err != nil {
		return nil, err
	}
	if !r.head {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.off, r.off+r.length-1))
	}
	req.Header.Set("Accept-Encoding", "identity")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := r.client.Do(req)
	return resp, withoutURL(err)
}

// withoutURL takes the URL out of an HTTP client's error: it may be signed for its reader, as those are that registries redirect to.
func withoutURL(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}

// blobURL refuses names that would lead out of the registry's tree.
func blobURL(base *url.URL, b Blob) (*url.URL, error) {
	if err := b.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w", b.Digest, err)
	}
	for part := range strings.SplitSeq(b.Repository, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "?#%\\") {
			return nil, fmt.Errorf("repository %q is not a name", b.Repository)
		}
	}
	return base.JoinPath("v2", b.Repository, "blobs", b.Digest.String()), nil
}

// ask sends the request, and once more with a new token when the first answer is a challenge.
func (s *Source) ask(ctx context.Context, r request, authorization string) (*http.Response, error) {
	if authorization != "" {
		return r.send(ctx, authorization)
	}
	header, err := s.tokens.current(ctx, r.Blob)
	if err != nil {
		return nil, err
	}
	resp, err := r.send(ctx, header)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	c, ok := challenge.Parse(resp)
	if !ok {
		return resp, nil
	}
	drain(resp)
	if header, err = s.tokens.renew(ctx, r, header, c); err != nil {
		return nil, err
	}
	return r.send(ctx, header)
}

// drain makes the connection ready for the next request.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, maxErrorText) // what is longer costs the connection
	_ = resp.Body.Close()
}

// check makes sure that the answer is the range asked for, before a byte of it is read.
func (r request) check(resp *http.Response) error {
	switch {
	case resp.StatusCode == http.StatusPartialContent:
		return r.checkPartial(resp)
	case resp.StatusCode == http.StatusOK && r.off > 0:
		return ErrRangeIgnored
	case resp.StatusCode == http.StatusOK:
		if n := resp.ContentLength; n >= 0 && (n < r.length || r.Size > 0 && n != r.Size) {
			return fmt.Errorf("registry sends a blob of %d bytes, want %d", n, max(r.length, r.Size))
		}
		return nil
	}
	return refusal(resp, "registry")
}

// refusal is the error for an answer that is none.
func refusal(resp *http.Response, who string) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorText)) // only for the message
	return &StatusError{
		Who:        who,
		Status:     resp.StatusCode,
		RetryAfter: parseRetryAfter(resp.Header.Get("Retry-After"), time.Now()),
		Text:       strings.Join(strings.Fields(string(text)), " "),
	}
}

// checkPartial compares Content-Range, "bytes FIRST-LAST/TOTAL" where TOTAL may be "*".
func (r request) checkPartial(resp *http.Response) error {
	got := resp.Header.Get("Content-Range")
	want := fmt.Sprintf("bytes %d-%d/", r.off, r.off+r.length-1)
	total, ok := strings.CutPrefix(got, want)
	if !ok {
		return fmt.Errorf("registry sends Content-Range %q, want %q", got, want)
	}
	if n, err := strconv.ParseInt(total, 10, 64); total != "*" && (err != nil || r.Size > 0 && n != r.Size) {
		return fmt.Errorf("registry sends Content-Range %q, but the blob has %d bytes", got, r.Size)
	}
	if n := resp.ContentLength; n >= 0 && n != r.length {
		return fmt.Errorf("registry announces %d bytes, want %d", n, r.length)
	}
	return nil
}

// reader is the body cut to what was asked for, under a watchdog that runs while a Read waits.
type reader struct {
	source   *Source
	request  request
	body     io.ReadCloser
	left     int64 // negative when the origin did not tell
	watchdog *time.Timer
	cancel   context.CancelCauseFunc
	cause    func(error) error // classifies a failure of body
	confirm  func() error      // if not nil, has to agree before the last byte goes out
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	r.watchdog.Reset(r.source.cfg.Stall)
	if r.left < 0 {
		return r.readUnknown(p)
	}
	n, err := r.body.Read(p[:min(int64(len(p)), r.left)])
	r.watchdog.Stop()
	if n > 0 && int64(n) == r.left && r.confirm != nil {
		if err := r.confirm(); err != nil {
			return 0, fmt.Errorf("%s, at its end: %w", r.request, err)
		}
	}
	r.left -= int64(n)
	r.source.metrics.fetched.Add(float64(n))
	if err == nil || r.left == 0 {
		return n, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, fmt.Errorf("%s, %d bytes before the end of the range: %w", r.request, r.left, r.cause(err))
}

// readUnknown is Read without a length to hold the origin to.
func (r *reader) readUnknown(p []byte) (int, error) {
	n, err := r.body.Read(p)
	r.watchdog.Stop()
	r.source.metrics.fetched.Add(float64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s: %w", r.request, r.cause(err))
	}
	return n, err
}

// Close ends the transfer; after the last byte the connection is kept for the next request.
func (r *reader) Close() error {
	r.watchdog.Stop()
	r.cancel(nil)
	return r.body.Close()
}
