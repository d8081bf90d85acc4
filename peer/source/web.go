package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-project/shoal/peer/piece"
)

// ErrChanged means that a URL no longer has what it had when the download began: its ETag, its Last-Modified or its length is
// another one. It is piece.ErrMismatch, since what was read meanwhile may be of either.
var ErrChanged = fmt.Errorf("content changed at the origin: %w", piece.ErrMismatch)

// Web is a URL as one host reads it, and what it had when it was probed.
type Web struct {
	// URL is what is asked for, with all that is secret in it.
	URL string
	// Header is sent to the URL's own host, and to nobody it redirects to.
	Header http.Header
	// Validator is what every answer must show. The zero Validator is shown by all.
	Validator Validator
	// Foreign says that another host named the URL: it may not lead to services of this machine.
	Foreign bool
	// Confirm has the origin asked once more before the last byte, whether it still has this content: of what has no digest, that is
	// the only proof that all bytes are of one content.
	Confirm bool
}

// Validator tells one content of a URL from the next.
type Validator struct {
	ETag     string `json:"etag,omitempty"`
	Modified string `json:"modified,omitempty"` // Last-Modified as the origin wrote it
}

// validatorOf reads the validator of an answer.
func validatorOf(h http.Header) Validator {
	return Validator{ETag: h.Get("ETag"), Modified: h.Get("Last-Modified")}
}

// Strong reports whether two contents with this validator are the same byte by byte: an ETag that is not weak.
func (v Validator) Strong() bool { return v.ETag != "" && !strings.HasPrefix(v.ETag, "W/") }

// Resumable reports whether parts of two answers with this validator may be put together: an ETag that is not weak, or a time without
// any ETag. A weak ETag stays the same when bytes change that the origin thinks of no weight.
func (v Validator) Resumable() bool { return v.Strong() || v.ETag == "" && v.Modified != "" }

// IsZero reports whether the origin tells nothing that would change with the content.
func (v Validator) IsZero() bool { return v.key() == "" }

// key is what is compared: the ETag, or without one the time.
func (v Validator) key() string {
	if v.ETag != "" {
		return "etag " + v.ETag
	}
	if v.Modified != "" {
		return "modified " + v.Modified
	}
	return ""
}

// String returns what is compared, for identities and for people.
func (v Validator) String() string { return v.key() }

// same reports whether an answer is of the content that v stands for.
func (v Validator) same(got Validator) bool { return v.IsZero() || v.key() == got.key() }

// Info is what a URL has now.
type Info struct {
	Size      int64 // bytes; negative when the origin does not tell
	Validator Validator
	// NoStore and Private are what Cache-Control and Vary say: that nobody may keep the answer, or only the reader.
	NoStore, Private bool
}

// Probe asks what the URL has, and with that whether the origin gives it to this reader. It reads one byte at the most.
func (s *Source) Probe(ctx context.Context, w Web) (Info, error) {
	watched, cancel := context.WithTimeoutCause(ctx, s.cfg.Patience, ErrStalled)
	defer cancel()
	info, err := s.probe(watched, w)
	s.metrics.request(err)
	if err != nil {
		return Info{}, fmt.Errorf("%s: %w", Redact(w.URL), s.cause(ctx, watched, err))
	}
	return info, nil
}

func (s *Source) probe(ctx context.Context, w Web) (Info, error) {
	resp, err := s.askWeb(ctx, w, "bytes=0-0")
	if err != nil {
		return Info{}, err
	}
	defer resp.Body.Close() // of a server without ranges this ends the connection
	info := Info{Size: resp.ContentLength, Validator: validatorOf(resp.Header)}
	info.NoStore, info.Private = keeping(resp.Header)
	switch resp.StatusCode {
	case http.StatusOK:
		return info, nil
	case http.StatusPartialContent:
		info.Size, err = totalOf(resp.Header.Get("Content-Range"), "bytes 0-0/")
		if err == nil {
			drain(resp)
		}
		return info, err
	case http.StatusRequestedRangeNotSatisfiable: // there is no first byte
		if n, err := totalOf(resp.Header.Get("Content-Range"), "bytes */"); err == nil && n == 0 {
			info.Size = 0
			return info, nil
		}
	}
	return Info{}, refusal(resp, originOf(w.URL))
}

// keeping reads what the origin says of caches.
func keeping(h http.Header) (noStore, private bool) {
	for _, line := range h.Values("Cache-Control") {
		for directive := range strings.SplitSeq(strings.ToLower(line), ",") {
			name, _, _ := strings.Cut(strings.TrimSpace(directive), "=")
			noStore = noStore || name == "no-store"
			private = private || name == "private"
		}
	}
	for _, line := range h.Values("Vary") {
		for field := range strings.SplitSeq(strings.ToLower(line), ",") {
			switch strings.TrimSpace(field) {
			case "*", "authorization", "cookie":
				private = true
			}
		}
	}
	return noStore, private
}

// totalOf returns the size of the whole from a Content-Range; -1 when it is not told.
func totalOf(header, prefix string) (int64, error) {
	total, ok := strings.CutPrefix(header, prefix)
	if ok && total == "*" {
		return -1, nil
	}
	n, err := strconv.ParseInt(total, 10, 64)
	if !ok || err != nil || n < 0 {
		return 0, fmt.Errorf("origin sends Content-Range %q, want %sSIZE", header, prefix)
	}
	return n, nil
}

func originOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "origin"
	}
	return u.Host
}

// askWeb sends the request. Its headers go to the URL's own host only.
func (s *Source) askWeb(ctx context.Context, w Web, byteRange string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.URL, nil)
	if err != nil {
		return nil, errors.New("the URL cannot be asked for") // the error would show it
	}
	for key, values := range w.Header {
		req.Header[http.CanonicalHeaderKey(key)] = values
	}
	req.Header.Set("Accept-Encoding", "identity")
	if byteRange != "" {
		req.Header.Set("Range", byteRange)
	}
	if v := w.Validator; v.Strong() {
		req.Header.Set("If-Match", v.ETag)
	} else if v.ETag == "" && v.Modified != "" {
		req.Header.Set("If-Unmodified-Since", v.Modified)
	}
	resp, err := s.cfg.Web(req.URL.Host, w.Foreign).Do(req)
	return resp, withoutURL(err)
}

// fetchWeb is fetch for a URL.
func (s *Source) fetchWeb(ctx context.Context, b Blob, off, length int64) (io.ReadCloser, error) {
	w := *b.Web
	byteRange := ""
	if off > 0 || length < b.Size {
		byteRange = fmt.Sprintf("bytes=%d-%d", off, off+length-1)
	}
	watched, cancel := context.WithCancelCause(ctx)
	watchdog := time.AfterFunc(s.cfg.Patience, func() { cancel(ErrStalled) })
	cause := func(err error) error { return s.cause(ctx, watched, err) }
	resp, err := s.askWeb(watched, w, byteRange)
	if err == nil {
		if err = checkWeb(resp, b, off, length); err != nil {
			_ = resp.Body.Close() // the answer is of no use
		}
	}
	watchdog.Stop()
	if err != nil {
		err = cause(err)
		cancel(nil)
		return nil, err
	}
	r := &reader{source: s, request: request{Blob: b, off: off, length: length}, body: resp.Body, left: length, watchdog: watchdog,
		cancel: cancel, cause: cause}
	if w.Confirm {
		r.confirm = func() error { return s.confirm(ctx, b) }
	}
	return r, nil
}

// checkWeb makes sure that the answer is the part of the content that was asked for, before a byte of it is read.
func checkWeb(resp *http.Response, b Blob, off, length int64) error {
	if resp.StatusCode == http.StatusPreconditionFailed {
		return fmt.Errorf("%w: it is no longer the one with %s", ErrChanged, b.Web.Validator)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		return refusal(resp, originOf(b.Web.URL))
	}
	if got := validatorOf(resp.Header); !b.Web.Validator.same(got) {
		return fmt.Errorf("%w: it has %s, had %s", ErrChanged, got, b.Web.Validator)
	}
	total := resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		var err error
		if total, err = totalOf(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/", off, off+length-1)); err != nil {
			return err
		}
		if n := resp.ContentLength; n >= 0 && n != length {
			return fmt.Errorf("origin announces %d bytes, want %d", n, length)
		}
	}
	if total >= 0 && total != b.Size {
		return fmt.Errorf("%w: it has %d bytes, had %d", ErrChanged, total, b.Size)
	}
	if resp.StatusCode == http.StatusOK && off > 0 {
		return ErrRangeIgnored
	}
	return nil
}

// confirm asks whether the URL still has the content that was read. A reader whose right has ended meanwhile, as that of a presigned
// URL does, cannot ask; a strong ETag at the start of the answer has to do then.
func (s *Source) confirm(ctx context.Context, b Blob) error {
	info, err := s.Probe(ctx, *b.Web)
	if status, ok := errors.AsType[*StatusError](err); ok && status.Status == http.StatusPreconditionFailed {
		return fmt.Errorf("%w while it was read", ErrChanged)
	}
	if errors.Is(err, piece.ErrDenied) && b.Web.Validator.Strong() {
		return nil
	}
	if err != nil {
		return err
	}
	if !b.Web.Validator.same(info.Validator) || info.Size >= 0 && info.Size != b.Size {
		return fmt.Errorf("%w while it was read: it has %s and %d bytes, had %s and %d", ErrChanged, info.Validator, info.Size,
			b.Web.Validator, b.Size)
	}
	return nil
}

// Stream returns all that a URL has now, also where the origin does not tell how much that is. It ends in io.EOF where the origin says
// so.
func (s *Source) Stream(ctx context.Context, w Web) (io.ReadCloser, error) {
	watched, cancel := context.WithCancelCause(ctx)
	watchdog := time.AfterFunc(s.cfg.Patience, func() { cancel(ErrStalled) })
	resp, err := s.askWeb(watched, w, "")
	if err == nil && resp.StatusCode != http.StatusOK {
		err = refusal(resp, originOf(w.URL))
		_ = resp.Body.Close() // read as far as it is of use
	}
	watchdog.Stop()
	s.metrics.request(err)
	if err != nil {
		err = fmt.Errorf("%s: %w", Redact(w.URL), s.cause(ctx, watched, err))
		cancel(nil)
		return nil, err
	}
	return &reader{source: s, request: request{Blob: Blob{Web: &w}}, body: resp.Body, left: resp.ContentLength, watchdog: watchdog,
		cancel: cancel, cause: func(err error) error { return s.cause(ctx, watched, err) }}, nil
}

// ProbeBlob asks how many bytes a registry's blob has, and with that whether the registry gives it to this reader.
func (s *Source) ProbeBlob(ctx context.Context, b Blob) (size int64, err error) {
	watched, cancel := context.WithTimeoutCause(ctx, s.cfg.Patience, ErrStalled)
	defer cancel()
	size, err = s.probeBlob(watched, b)
	s.metrics.request(err)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", b, s.cause(ctx, watched, err))
	}
	return size, nil
}

func (s *Source) probeBlob(ctx context.Context, b Blob) (int64, error) {
	base, client := s.cfg.Resolve(b.Registry)
	target, err := blobURL(base, b)
	if err != nil {
		return 0, err
	}
	resp, err := s.ask(ctx, request{Blob: b, length: 1, url: target, client: client, head: s.cfg.Mirror}, "")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close() // of a registry without ranges this ends the connection
	switch resp.StatusCode {
	case http.StatusOK:
		return resp.ContentLength, nil
	case http.StatusPartialContent:
		return totalOf(resp.Header.Get("Content-Range"), "bytes 0-0/")
	}
	return 0, refusal(resp, "registry")
}
