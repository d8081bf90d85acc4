package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
)

const (
	hubEndpoint = "https://huggingface.co"
	maxJSON     = 64 << 20 // bytes in one answer of a hub
)

var (
	hubRepo   = regexp.MustCompile(`^[\w.-]+(/[\w.-]+)?$`)
	hubCommit = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

// hub is one repository of a model hub.
type hub struct {
	s        *session
	client   *http.Client
	endpoint string
	repo     string
	revision string // as it was given
	ref      string
}

// openHub lists a model by two requests or more: what commit its revision is, and the tree of that commit, in pages.
func (s *session) openHub(ctx context.Context, ref string) (*Model, error) {
	h := &hub{s: s, client: s.client(), ref: ref, endpoint: strings.TrimRight(s.Hub.Endpoint, "/")}
	if h.endpoint == "" {
		h.endpoint = hubEndpoint
	}
	if u, err := url.Parse(h.endpoint); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("%w %s: the hub's endpoint is no URL: %q", ErrModel, ref, printable(h.endpoint))
	}
	h.repo, h.revision, _ = strings.Cut(strings.TrimPrefix(ref, "hf://"), "@")
	if h.revision == "" {
		h.revision = "main"
	}
	if !hubRepo.MatchString(h.repo) || strings.Contains(h.repo, "..") {
		return nil, fmt.Errorf("%w %s: want hf://ORGANISATION/NAME or hf://ORGANISATION/NAME@REVISION", ErrModel, ref)
	}
	commit, err := h.commit(ctx)
	if err != nil {
		return nil, err
	}
	files, err := h.list(ctx, commit)
	if err != nil {
		return nil, err
	}
	return &Model{Name: path.Base(h.repo), Revision: commit, Files: files}, nil
}

func (h *hub) file(what, url string) *webFile {
	w := &webFile{client: h.client, what: what, url: url, header: http.Header{}, advise: h.advise}
	if h.s.Hub.Token != "" {
		w.header.Set("Authorization", "Bearer "+h.s.Hub.Token)
	}
	return w
}

// json asks for an answer and returns where the next page of it is, if there is one.
func (h *hub) json(ctx context.Context, url string) (raw []byte, next string, err error) {
	w := h.file(h.ref, url)
	err = h.s.retry(ctx, func(ctx context.Context) error {
		resp, err := w.ask(ctx, http.MethodGet, w.header.Clone())
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if raw, err = io.ReadAll(io.LimitReader(resp.Body, maxJSON+1)); err != nil {
			return serviceError(h.ref, resp.Request.URL.Host, err)
		}
		if len(raw) > maxJSON {
			return classify(ErrService, "%s: the hub's answer has more than %d bytes", h.ref, maxJSON)
		}
		next = nextPage(resp.Header.Values("Link"))
		return nil
	})
	return raw, next, err
}

// commit asks what the revision is now. From there on everything is asked for by commit.
func (h *hub) commit(ctx context.Context) (string, error) {
	raw, _, err := h.json(ctx, h.endpoint+"/api/models/"+h.repo+"/revision/"+url.PathEscape(h.revision))
	if err != nil {
		return "", err
	}
	var info struct {
		SHA string `json:"sha"`
	}
	if err := json.Unmarshal(raw, &info); err != nil || !hubCommit.MatchString(info.SHA) {
		return "", classify(ErrService, "%s: the hub's answer names no commit; is %s a model hub?", h.ref, printable(h.endpoint))
	}
	return info.SHA, nil
}

func (h *hub) list(ctx context.Context, commit string) ([]File, error) {
	c := h.s.collector(h.ref)
	var files []File
	at := h.endpoint + "/api/models/" + h.repo + "/tree/" + commit + "?recursive=true&expand=false"
	for page := 0; at != ""; page++ {
		raw, next, err := h.json(ctx, at)
		if err != nil {
			return nil, err
		}
		entries, err := parseTree(raw)
		if err != nil {
			return nil, classify(ErrService, "%s: the hub's listing: %w", h.ref, err)
		}
		for i := range entries {
			if entries[i].Type != "file" || !c.wants(entries[i].Path) {
				continue
			}
			f := h.newFile(commit, &entries[i])
			if err := c.add(&f); err != nil {
				return nil, err
			}
			files = append(files, f)
		}
		if page >= h.s.MaxFiles || next != "" && len(entries) == 0 {
			return nil, classify(ErrService, "%s: the hub's listing does not end", h.ref)
		}
		if at, err = h.follow(at, next); err != nil {
			return nil, err
		}
	}
	return c.listed(files)
}

// follow returns the next page, which must be at the same host: the token goes there.
func (h *hub) follow(at, next string) (string, error) {
	if next == "" {
		return "", nil
	}
	from, err := url.Parse(at)
	if err != nil {
		return "", err
	}
	to, err := from.Parse(next)
	if err != nil || to.Host != from.Host || to.Scheme != from.Scheme {
		return "", classify(ErrService, "%s: the hub's listing goes on elsewhere: %s", h.ref, printable(next))
	}
	return to.String(), nil
}

// treeEntry is one file or folder of a hub's listing.
type treeEntry struct {
	Type string `json:"type"`
	OID  string `json:"oid"`
	Size int64  `json:"size"`
	Path string `json:"path"`
	LFS  *struct {
		OID  string `json:"oid"`
		Size int64  `json:"size"`
	} `json:"lfs"`
}

// parseTree reads a page of a listing. A file has a size and a checksum: that of its content if it is large, of its git
// blob otherwise. Some mirrors of hubs leave the latter out.
func parseTree(raw []byte) ([]treeEntry, error) {
	var entries []treeEntry
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, err
	}
	for i := range entries {
		e := &entries[i]
		if e.Type != "file" {
			continue
		}
		if e.Path == "" {
			return nil, errors.New("a file has no name")
		}
		var err error
		if e.LFS != nil {
			e.Size, e.OID = e.LFS.Size, strings.TrimPrefix(e.LFS.OID, "sha256:")
			_, err = sha256Sum(digest.NewDigestFromEncoded(digest.SHA256, e.OID))
		} else if e.OID != "" {
			_, err = gitSum(e.OID, e.Size)
		}
		if err != nil || e.Size < 0 {
			return nil, fmt.Errorf("%q has %d bytes and the checksum %q, which cannot be", e.Path, e.Size, e.OID)
		}
	}
	return entries, nil
}

func (h *hub) newFile(commit string, e *treeEntry) File {
	f := File{Path: e.Path, Size: e.Size}
	at := h.endpoint + "/" + h.repo + "/resolve/" + commit + "/" + escapePath(e.Path)
	w := h.file(h.ref+": "+e.Path, at)
	size, oid := e.Size, e.OID
	switch {
	case e.LFS != nil:
		f.Digest = digest.NewDigestFromEncoded(digest.SHA256, oid)
		w.sums = func() ([]checksum, error) { return sha256Sum(f.Digest) }
	case oid != "":
		w.sums = func() ([]checksum, error) { return gitSum(oid, size) }
	}
	r := &remoteFile{name: w.what, size: size, get: w.get}
	f.open = func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return h.s.openRemote(ctx, r, span{from: offset})
	}
	f.url = func(context.Context) (string, error) { return at, nil }
	return f
}

func escapePath(name string) string {
	parts := strings.Split(name, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

// nextPage finds the target of rel="next" in Link headers.
func nextPage(links []string) string {
	for _, header := range links {
		for link := range strings.SplitSeq(header, ",") {
			target, params, _ := strings.Cut(link, ";")
			target = strings.TrimSpace(target)
			if strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") && strings.HasPrefix(target, "<") && strings.HasSuffix(target, ">") {
				return target[1 : len(target)-1]
			}
		}
	}
	return ""
}

// advise says what a hub means by an answer.
func (h *hub) advise(resp *http.Response) string {
	host := resp.Request.URL.Host
	code := resp.Header.Get("X-Error-Code")
	switch {
	case code == "GatedRepo":
		return fmt.Sprintf("the model is gated (%d): accept its licence at %s/%s, then run again with a token of that account",
			resp.StatusCode, printable(h.endpoint), h.repo)
	case resp.StatusCode == http.StatusUnauthorized && h.s.Hub.Token == "":
		return host + " wants a token (401), as it does for private models and for names that do not exist; check the name, or give a token that may read it (HF_TOKEN)"
	case resp.StatusCode == http.StatusUnauthorized:
		return host + " does not accept the token (401), or the name does not exist; check both"
	case resp.StatusCode == http.StatusForbidden:
		return host + " forbids it (403); the token lacks the right to read this model, or its licence was not accepted at the hub"
	case code == "RevisionNotFound":
		return fmt.Sprintf("%s knows the model, but no revision %s (404)", host, h.revision)
	case code == "EntryNotFound":
		return host + " lists the file but does not have it (404)"
	case resp.StatusCode == http.StatusNotFound:
		return fmt.Sprintf("%s knows no model %s, or no revision %s of it (404); check both", host, h.repo, h.revision)
	case resp.StatusCode == http.StatusTooManyRequests && h.s.Hub.Token == "":
		return host + " limits requests (429); run again later, or with a token (HF_TOKEN), for which the limit is higher"
	}
	return ""
}
