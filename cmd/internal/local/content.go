package local

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
)

// Headers of an answer with content.
const (
	identityHeader = "Shoal-Identity"
	sizeHeader     = "Shoal-Size"
	staleHeader    = "Shoal-Stale" // since when the origin's word is believed, which is down now
)

// maxRequest bounds the body of a request, in bytes.
const maxRequest = 1 << 20

// ContentRequest asks for what a URL has.
type ContentRequest struct {
	URL string `json:"url"`
	// Header is sent to the URL's host by this node alone. A URL that needs any is read by no other host.
	Header http.Header `json:"header,omitempty"`
	// Digest is the content's sha256 digest, if the caller knows it. It is then shared and checked by that.
	Digest digest.Digest `json:"digest,omitempty"`
	// Ignore are patterns of query parameters that do not name the content.
	Ignore []string `json:"ignore,omitempty"`
	// Share has the cluster keep what the origin marks as private to its reader. Every reader still has to be one to the origin.
	Share bool `json:"share,omitempty"`
	// Identity, if set, is that of the content to go on with. Another one is CodeChanged.
	Identity digest.Digest `json:"identity,omitempty"`
	// Off and Length are the part that is wanted, in bytes. A negative length means to the end.
	Off    int64 `json:"off,omitempty"`
	Length int64 `json:"length"`
	// Head wants no bytes, only what the content is.
	Head bool `json:"head,omitempty"`
}

// Blob is a peer's open blob. *peer.Reader is one.
type Blob interface {
	AwaitMoving(ctx context.Context, off, length int64, quiet time.Duration) (int64, error)
	File() (*os.File, error)
	Close() error
}

// ContentConfig configures Content. The zero value of each duration means its default.
type ContentConfig struct {
	// Probe asks the origin what a URL has.
	Probe func(context.Context, source.Web) (source.Info, error)
	// Open opens content in the cluster.
	Open func(context.Context, peer.Blob) (Blob, error)
	// FirstByte is how long nothing may come, to here or to those it will come from, before the caller is sent to the origin.
	// While something comes it is twelve times as long, but for a part that does not begin at the start. Default 15 s.
	FirstByte time.Duration
	// Stall is the same of a stream that has begun, before it ends. Default 10 s.
	Stall time.Duration
	// StaleFor is how long what a URL had, that takes no secret, is believed while its host is down. Default 24 h.
	StaleFor time.Duration
	// Log is where failures are reported; nil discards.
	Log *slog.Logger
}

// Content serves POST /v1/content.
func Content(cfg ContentConfig) http.Handler {
	cfg.FirstByte, cfg.Stall = cmp.Or(cfg.FirstByte, 15*time.Second), cmp.Or(cfg.Stall, 10*time.Second)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	cfg.StaleFor = cmp.Or(cfg.StaleFor, 24*time.Hour)
	return &contents{cfg: cfg, seen: map[string]seen{}}
}

type contents struct {
	cfg ContentConfig

	mu   sync.Mutex // guards seen
	seen map[string]seen
}

// seen is what a URL had, by its name.
type seen struct {
	info source.Info
	at   time.Time
}

// maxSeen bounds how many URLs are remembered.
const maxSeen = 4096

// probe asks the origin what a URL has. While it is down, its last word is believed of what takes no secret; since says then of when
// that is.
func (h *contents) probe(ctx context.Context, link source.Link) (info source.Info, since time.Time, err error) {
	info, err = h.cfg.Probe(ctx, source.Web{URL: link.URL, Header: link.Header})
	h.mu.Lock()
	defer h.mu.Unlock()
	switch old, ok := h.seen[link.Name]; {
	case link.Private():
	case err == nil:
		if len(h.seen) >= maxSeen {
			clear(h.seen) // rare, and only matters while an origin is down
		}
		h.seen[link.Name] = seen{info, time.Now()}
	case !errors.Is(err, piece.ErrTransient) || ctx.Err() != nil:
		delete(h.seen, link.Name) // it is refused or gone: no more of it, whatever comes
	case ok && time.Since(old.at) < h.cfg.StaleFor:
		return old.info, old.at, nil
	}
	return info, time.Time{}, err
}

// ServeHTTP implements http.Handler.
func (h *contents) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var req ContentRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req); err != nil {
		refuse(w, http.StatusBadRequest, &Error{CodeBad, "request: " + err.Error()})
		return
	}
	c, since, err := h.resolve(r.Context(), req)
	if err != nil {
		refuseError(w, err)
		return
	}
	off, length, err := part(req, c.Size)
	if err != nil {
		refuseError(w, err)
		return
	}
	w.Header().Set(identityHeader, c.Digest.String())
	if !since.IsZero() {
		h.cfg.Log.Warn("the origin is down, its last word is believed", "digest", c.Digest)
		w.Header().Set(staleHeader, since.UTC().Format(time.RFC3339))
	}
	w.Header().Set(sizeHeader, strconv.FormatInt(c.Size, 10))
	v := c.Access.Validator
	if v.ETag != "" {
		w.Header().Set("ETag", v.ETag)
	}
	if v.Modified != "" {
		w.Header().Set("Last-Modified", v.Modified)
	}
	if req.Head || length == 0 {
		w.WriteHeader(http.StatusOK)
		return
	}
	h.stream(w, r, c, span{off, length})
}

// span is a part of a content, in bytes.
type span struct{ off, length int64 }

// resolve asks the origin what the URL has, and with that whether the caller may read it, and names it.
func (h *contents) resolve(ctx context.Context, req ContentRequest) (b peer.Blob, since time.Time, err error) {
	link, err := source.ParseLink(req.URL, req.Ignore, req.Header)
	if err != nil {
		return b, since, &Error{CodeBad, err.Error()}
	}
	info, since, err := h.probe(ctx, link)
	if err != nil {
		return b, since, err
	}
	if b, err = Name(link, info, req.Digest, req.Share); err != nil {
		return b, since, err
	}
	if req.Identity != "" && req.Identity != b.Digest {
		return b, since, &Error{CodeChanged, "the content changed at the origin: it has " + info.Validator.String()}
	}
	return b, since, nil
}

// Name gives what a URL has the identity by which the cluster shares it, or says why it must not be shared.
func Name(link source.Link, info source.Info, d digest.Digest, share bool) (peer.Blob, error) {
	b := peer.Blob{Digest: d, Size: info.Size, Origin: peer.Origin{URL: link.Shared, Validator: info.Validator},
		Access: peer.Access{URL: link.URL, Header: link.Header, Validator: info.Validator}}
	if d == "" {
		b.Digest = piece.URLID(link.Name, info.Validator.String(), info.Size)
	} else if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return b, &Error{CodeBad, fmt.Sprintf("digest %q: want sha256: and 64 hexadecimal digits", d)}
	}
	switch {
	case info.Size < 0:
		return b, &Error{CodeUnsuitable, "the origin does not tell the content's length"}
	case info.NoStore:
		return b, &Error{CodeUnsuitable, "the origin forbids everybody to keep it (Cache-Control: no-store)"}
	case info.Private && !share:
		return b, &Error{CodeUnsuitable, "the origin marks it as for its reader alone (Cache-Control: private, or Vary); --share has the cluster keep it all the same"}
	case d == "" && info.Validator.IsZero():
		return b, &Error{CodeUnsuitable, "the origin tells neither ETag nor Last-Modified, so that nobody would notice a change; --digest does without"}
	case d == "" && link.Private() && !info.Validator.Strong():
		return b, &Error{CodeUnsuitable, "reading it takes a secret, and without a strong ETag nothing tells what one reader gets from what another does; --digest does without"}
	}
	return b, nil
}

// part returns the part of a content that is wanted, within its size, or says why it cannot be had.
func part(req ContentRequest, size int64) (off, length int64, err error) {
	off, length = req.Off, req.Length
	if off < 0 || off > size || off == size && length > 0 {
		return 0, 0, &Error{CodeRange, fmt.Sprintf("byte %d is not within the content's %d bytes", off, size)}
	}
	if length < 0 || length > size-off {
		length = size - off
	}
	if req.Digest != "" && !req.Head && length > 0 && off+length < size {
		// Any URL can be said to have any digest, and what is read of it is shared by that: only who comes to the end notices that it is not so.
		return 0, 0, &Error{CodeBad, "a part that ends before the whole does cannot be checked against the digest of the whole; ask without the digest"}
	}
	return off, length, nil
}

func (h *contents) stream(w http.ResponseWriter, r *http.Request, b peer.Blob, s span) {
	blob, ready, err := h.open(r.Context(), b, s)
	if err != nil {
		h.cfg.Log.Warn("content not served", "digest", b.Digest, "error", err)
		refuseError(w, err)
		return
	}
	defer blob.Close()
	w.Header().Set("Content-Length", strconv.FormatInt(s.length, 10))
	w.Header().Set("Content-Type", "application/octet-stream")
	status := http.StatusOK
	if s.length != b.Size {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", s.off, s.off+s.length-1, b.Size))
		status = http.StatusPartialContent
	}
	w.WriteHeader(status)
	if err := h.copy(r.Context(), w, blob, s, ready); err != nil && r.Context().Err() == nil {
		h.cfg.Log.Warn("content cut", "digest", b.Digest, "error", err)
	}
}

// open opens the content and waits for its first bytes.
func (h *contents) open(ctx context.Context, b peer.Blob, s span) (Blob, int64, error) {
	opening, cancel := context.WithTimeoutCause(ctx, h.cfg.FirstByte, fmt.Errorf("not opened within %v", h.cfg.FirstByte))
	defer cancel()
	blob, err := h.cfg.Open(opening, b)
	if err != nil {
		return nil, 0, err
	}
	waiting := ctx
	if s.off > 0 { // what has no chunk map moves from its beginning on: it may be long before that has come here
		waiting, cancel = context.WithTimeoutCause(ctx, h.cfg.FirstByte, fmt.Errorf("no first byte within %v", h.cfg.FirstByte))
		defer cancel()
	}
	ready, err := blob.AwaitMoving(waiting, s.off, s.length, h.cfg.FirstByte)
	if err != nil {
		_ = blob.Close() // only read from
		return nil, 0, err
	}
	return blob, ready, nil
}

// copy sends a part as its bytes come, by sendfile. ready bytes at its start are at hand.
func (h *contents) copy(ctx context.Context, w io.Writer, blob Blob, s span, ready int64) error {
	f, err := blob.File()
	if err != nil {
		return err
	}
	if _, err := f.Seek(s.off, io.SeekStart); err != nil {
		return err
	}
	for left := s.length; ; {
		if _, err := io.CopyN(w, f, ready); err != nil {
			return err
		}
		if left -= ready; left == 0 {
			return nil
		}
		if ready, err = blob.AwaitMoving(ctx, s.off+s.length-left, left, h.cfg.Stall); err != nil {
			return err
		}
	}
}

// Code is the class of a refusal.
type Code string

// The classes of refusals.
const (
	CodeBad         Code = "bad"         // the request makes no sense
	CodeDenied      Code = "denied"      // the origin, or this node, refuses this caller
	CodeAbsent      Code = "absent"      // the origin has no such content
	CodeRange       Code = "range"       // the content has no such part
	CodeChanged     Code = "changed"     // the content is another one now
	CodeMismatch    Code = "mismatch"    // the content has not the digest it should
	CodeUnsuitable  Code = "unsuitable"  // it must not or cannot be shared; ask the origin
	CodeUnavailable Code = "unavailable" // not now; ask the origin
)

// Error is a refusal.
type Error struct {
	Code Code   `json:"code"`
	Text string `json:"error"`
}

func (e *Error) Error() string { return e.Text }

// refuseError answers with err, whatever it is.
func refuseError(w http.ResponseWriter, err error) {
	if e, ok := errors.AsType[*Error](err); ok {
		status := http.StatusUnprocessableEntity
		switch e.Code {
		case CodeBad:
			status = http.StatusBadRequest
		case CodeRange:
			status = http.StatusRequestedRangeNotSatisfiable
		case CodeChanged:
			status = http.StatusPreconditionFailed
		}
		refuse(w, status, e)
		return
	}
	status, code := classify(err)
	refuse(w, status, &Error{code, err.Error()})
}

// classify returns what stands for the class of an error.
func classify(err error) (status int, code Code) {
	switch {
	case errors.Is(err, source.ErrChanged):
		return http.StatusPreconditionFailed, CodeChanged
	case errors.Is(err, piece.ErrMismatch):
		return http.StatusConflict, CodeMismatch
	case errors.Is(err, piece.ErrDenied):
		return http.StatusForbidden, CodeDenied
	case errors.Is(err, piece.ErrAbsent):
		return http.StatusNotFound, CodeAbsent
	}
	return http.StatusServiceUnavailable, CodeUnavailable
}

func refuse(w http.ResponseWriter, status int, e *Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e) // the caller may have left
}
