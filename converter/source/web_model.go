package source

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
)

// openWeb reads a file or archive behind a URL. What it is called says what it is: the name the server gives it, or the URL's
// last part. A fragment #sha256=HEX is compared with all its bytes.
func (s *session) openWeb(ctx context.Context, ref string) (*Model, error) {
	u, err := url.Parse(ref)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("%w %s: no URL", ErrModel, printable(ref))
	}
	want, err := fragmentDigest(u.Fragment)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrModel, printable(ref), err)
	}
	u.Fragment = ""
	w := &webFile{client: s.client(), what: printable(u.String()), url: u.String()}
	if user := u.User; user != nil {
		w.header = basicAuth(user)
		u.User = nil
		w.url = u.String()
	}
	head, err := s.head(ctx, w)
	if err != nil {
		return nil, err
	}
	base := head.name
	if base == "" {
		base = path.Base(u.Path)
	}
	if base == "." || base == "/" {
		return nil, fmt.Errorf("%w %s: neither the URL nor the server names the file", ErrModel, w.what)
	}
	w.sums = func() ([]checksum, error) { return sha256Sum(want) }
	r := &remoteFile{name: w.what, size: head.size, tag: head.tag, get: w.get}
	m := &Model{Ref: printable(u.String()), Revision: want.String()}
	open := func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return s.openRemote(ctx, r, span{from: offset})
	}
	switch kind, stem := archiveOf(base); kind {
	case tarArchive:
		m.Name, m.each = stem, s.tarModel(w.what, func(ctx context.Context) (io.ReadCloser, error) { return open(ctx, 0) })
		return m, nil
	case zipArchive:
		m.Name = stem
		return m, s.openWebZip(ctx, m, r, head, want)
	default:
		m.Name = stem
		if head.size < 0 {
			return nil, fmt.Errorf("%w %s: the server does not tell its size, and a layer begins with it; download it and give the file", ErrModel, w.what)
		}
		m.Files, err = s.single(w.what, File{Path: base, Size: head.size, Digest: want, open: open})
		return m, err
	}
}

func basicAuth(user *url.Userinfo) http.Header {
	req := http.Request{Header: http.Header{}}
	password, _ := user.Password()
	req.SetBasicAuth(user.Username(), password)
	return req.Header
}

func fragmentDigest(fragment string) (digest.Digest, error) {
	if fragment == "" {
		return "", nil
	}
	value, ok := strings.CutPrefix(fragment, "sha256=")
	if raw, err := hex.DecodeString(value); !ok || err != nil || len(raw) != 32 {
		return "", fmt.Errorf("what stands behind # is %q; want sha256= and 64 hexadecimal digits", fragment)
	}
	return digest.NewDigestFromEncoded(digest.SHA256, strings.ToLower(value)), nil
}

// webHead is what is known of a file behind a URL before it is read.
type webHead struct {
	size   int64  // -1: not told
	tag    string // ETag or time
	name   string // that the server gives it
	ranges bool
}

// head asks for the first byte: unlike HEAD that is allowed by signed URLs, and it tells for sure whether there are ranges.
func (s *session) head(ctx context.Context, w *webFile) (*webHead, error) {
	h := &webHead{size: -1}
	err := s.retry(ctx, func(ctx context.Context) error {
		header := w.header.Clone()
		if header == nil {
			header = http.Header{}
		}
		header.Set("Range", "bytes=0-0")
		resp, err := w.ask(ctx, http.MethodGet, header)
		if status := statusOf(err); status == http.StatusRequestedRangeNotSatisfiable { // it is empty
			header.Del("Range")
			resp, err = w.ask(ctx, http.MethodGet, header)
		}
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		h.tag, h.name = tagOf(resp), dispositionName(resp.Header.Get("Content-Disposition"))
		h.size = resp.ContentLength
		if resp.StatusCode == http.StatusPartialContent {
			start, size, ok := contentRange(resp.Header.Get("Content-Range"))
			if !ok || start != 0 {
				return classify(ErrService, "%s: %s answers with the range %q", w.what, resp.Request.URL.Host, resp.Header.Get("Content-Range"))
			}
			h.size, h.ranges = size, size >= 0
		}
		return nil
	})
	return h, err
}

// dispositionName is the file name of a Content-Disposition, without folders.
func dispositionName(value string) string {
	_, params, err := mime.ParseMediaType(value)
	if err != nil {
		return ""
	}
	name := path.Base(strings.ReplaceAll(params["filename"], `\`, "/"))
	if name == "." || name == "/" || name == ".." {
		return ""
	}
	return name
}
