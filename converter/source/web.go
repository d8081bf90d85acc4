package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const maxRedirects = 10

// client is the HTTP client of one service.
func (s *session) client() *http.Client {
	return &http.Client{Transport: s.http, CheckRedirect: redirect}
}

// redirect follows to other hosts, as hubs lead to where their bytes are, but shows them no token, and never leaves TLS.
func redirect(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	switch {
	case len(via) >= maxRedirects:
		return fmt.Errorf("it leads from place to place %d times", maxRedirects)
	case via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https":
		return fmt.Errorf("it leads from https to %s://%s", req.URL.Scheme, req.URL.Host)
	case req.URL.Host != first.Host || req.URL.Scheme != first.Scheme:
		req.Header.Del("Authorization")
	}
	return nil
}

// webFile is a file behind a URL.
type webFile struct {
	client *http.Client
	what   string // it is, for errors
	url    string
	header http.Header
	advise func(*http.Response) string // what an answer means here; "" if nothing of its own
	sums   func() ([]checksum, error)  // nil: none
}

// get is what a resumer asks. A file is not asked for under the condition that it is unchanged, because servers that lead to
// others do not know the tags of those: the tags of the answers are compared instead.
func (w *webFile) get(ctx context.Context, want span, tag string) (*part, error) {
	header := w.header.Clone()
	if header == nil {
		header = http.Header{}
	}
	if !want.whole() {
		header.Set("Range", want.header())
		if strings.HasPrefix(tag, `"`) {
			header.Set("If-Range", tag)
		}
	}
	resp, err := w.ask(ctx, http.MethodGet, header)
	if statusOf(err) == http.StatusRequestedRangeNotSatisfiable {
		return nil, changed(w.what) // it is shorter now
	}
	if err != nil {
		return nil, err
	}
	p := &part{body: resp.Body, size: resp.ContentLength, tag: tagOf(resp)}
	switch {
	case resp.StatusCode == http.StatusPartialContent:
		start, size, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || start != want.from {
			resp.Body.Close()
			return nil, classify(ErrService, "%s: %s answers with the range %q, not from byte %d on",
				w.what, resp.Request.URL.Host, resp.Header.Get("Content-Range"), want.from)
		}
		p.size = size
	case want.from > 0 && (tag == "" || p.tag == tag): // it has no ranges, so what was read comes again
		p.rangeless = true
		if n, err := io.CopyN(io.Discard, resp.Body, want.from); err != nil {
			resp.Body.Close()
			return nil, cutAt(w.what, n, true, err)
		}
	}
	if want.whole() && w.sums != nil {
		if p.sums, err = w.sums(); err != nil {
			resp.Body.Close()
			return nil, classify(ErrDigest, "%s: %w", w.what, err)
		}
	}
	return p, nil
}

// ask makes one request and returns its answer if it is a good one.
func (w *webFile) ask(ctx context.Context, method string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, w.url, nil)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrModel, w.what, err)
	}
	if header != nil {
		req.Header = header
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "shoal")
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, serviceError(w.what, req.URL.Host, err)
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
		return resp, nil
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	return nil, w.refusal(resp)
}

// refusal says what an answer means that is not the file.
func (w *webFile) refusal(resp *http.Response) error {
	host := resp.Request.URL.Host
	if w.advise != nil {
		if advice := w.advise(resp); advice != "" {
			return refused(host, resp, classify(answerClass(resp.StatusCode), "%s: %s", w.what, advice))
		}
	}
	answer := &statusError{resp.StatusCode, statusAdvice(resp.StatusCode, host)}
	return refused(host, resp, classify(answerClass(resp.StatusCode), "%s: %w", w.what, answer))
}

// statusError is an answer that is no file.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

func statusOf(err error) int {
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status
	}
	return 0
}

// refused makes an error transient if the same request may be granted later.
func refused(host string, resp *http.Response, err error) error {
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return &transient{err, fmt.Sprintf("%s answered %d", host, resp.StatusCode), retryAfter(resp.Header)}
	}
	return err
}

// answerClass is the class of an answer: what is not there is no fault of the service, and does not come by asking again.
func answerClass(status int) error {
	if status == http.StatusNotFound || status == http.StatusGone {
		return ErrModel
	}
	return ErrService
}

func statusAdvice(status int, host string) string {
	switch {
	case status == http.StatusUnauthorized:
		return host + " wants credentials (401)"
	case status == http.StatusForbidden:
		return host + " forbids it (403); ask its owner for the right to read it"
	case status == http.StatusNotFound, status == http.StatusGone:
		return fmt.Sprintf("%s has no such file (%d); check the name", host, status)
	case status == http.StatusTooManyRequests:
		return host + " limits requests (429); run again later"
	case status >= http.StatusInternalServerError:
		return fmt.Sprintf("%s is in trouble (%d); run again later", host, status)
	}
	return fmt.Sprintf("%s answered %d %s", host, status, http.StatusText(status))
}

// serviceError says why no answer came. What may work the next time is transient.
func serviceError(what, host string, err error) error {
	if urlErr, ok := errors.AsType[*url.Error](err); ok {
		err = urlErr.Err // its text repeats the URL, which may hold a secret
	}
	why := host + " did not answer"
	switch dns, isDNS := errors.AsType[*net.DNSError](err); {
	case errors.Is(err, context.Canceled):
		return err
	case isDNS && dns.IsNotFound:
		return classify(ErrService, "%s: %s cannot be resolved: %w", what, host, dns)
	case errors.Is(err, syscall.ECONNREFUSED):
		why = "nobody listens on " + host
		err = classify(ErrService, "%s: nobody listens on %s; is it running, and the name right? (%w)", what, host, err)
	default:
		err = classify(ErrService, "%s: %s: %w", what, host, err)
	}
	return &transient{err: err, why: why}
}

// retryAfter reads how long a service asks to wait: seconds, or a date.
func retryAfter(header http.Header) time.Duration {
	value := header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		if now, err := http.ParseTime(header.Get("Date")); err == nil { // the clock that said when
			return max(0, at.Sub(now))
		}
		return max(0, time.Until(at))
	}
	return 0
}

// tagOf is what tells one content of a URL from another.
func tagOf(resp *http.Response) string {
	if tag := resp.Header.Get("ETag"); tag != "" {
		return tag
	}
	return resp.Header.Get("Last-Modified")
}

// contentRange reads "bytes FIRST-LAST/SIZE"; a size that is not told is -1.
func contentRange(value string) (start, size int64, ok bool) {
	value, ok = strings.CutPrefix(value, "bytes ")
	span, total, found := strings.Cut(value, "/")
	first, last, dash := strings.Cut(span, "-")
	if !ok || !found || !dash {
		return 0, 0, false
	}
	start, err1 := strconv.ParseInt(first, 10, 64)
	end, err2 := strconv.ParseInt(last, 10, 64)
	size, err3 := strconv.ParseInt(total, 10, 64)
	if total == "*" {
		size, err3 = -1, nil
	}
	if errors.Join(err1, err2, err3) != nil || start < 0 || end < start || size >= 0 && end >= size {
		return 0, 0, false
	}
	return start, size, true
}
