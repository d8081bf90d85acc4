// Package hubtest serves a folder as a model hub of Hugging Face's kind does, for tests and demonstrations: the listing of a
// commit in pages, small files by git sha1, large ones by sha256 and through a redirect. The hub's own client downloads from it.
package hubtest

import (
	"crypto/sha1" // git names its blobs so
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Hub serves one model. Its fields are set before it serves. Every revision is the same commit, except Missing.
type Hub struct {
	ID      string // ORGANISATION/NAME
	Dir     string
	Large   int64  // files of so many bytes or more have a sha256 and are served by Store; 0 is 10 MiB
	Store   string // URL of the same handler on another host for large files; "" serves them here
	Token   string // that is wanted; "" none
	Gated   bool   // nobody has accepted the licence
	Missing string // a revision that does not exist
	Page    int    // files in a page of the listing; 0 is 1000
	// Fault, if not nil, sees each request first, and answers it if it returns true.
	Fault func(w http.ResponseWriter, r *http.Request) bool

	once   sync.Once
	files  []file
	commit string
	err    error
}

type file struct {
	Type string `json:"type"`
	OID  string `json:"oid"`
	Size int64  `json:"size"`
	Path string `json:"path"`
	LFS  *lfs   `json:"lfs,omitempty"`
}

type lfs struct {
	OID         string `json:"oid"`
	Size        int64  `json:"size"`
	PointerSize int    `json:"pointerSize"`
}

// storePath begins the URLs of large files; they need no token, as with signed URLs.
const storePath = "/store/"

// Commit returns the commit that is served, which hangs on names and content.
func (h *Hub) Commit() (string, error) {
	h.once.Do(h.read)
	return h.commit, h.err
}

func (h *Hub) read() {
	sum := sha1.New() // see above
	h.err = filepath.WalkDir(h.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(h.Dir, path)
		if err != nil {
			return err
		}
		f, err := h.newFile(path, filepath.ToSlash(rel))
		h.files = append(h.files, f)
		fmt.Fprintf(sum, "%s %s\n", f.OID, f.Path)
		return err
	})
	h.commit = hex.EncodeToString(sum.Sum(nil))
}

func (h *Hub) newFile(path, rel string) (file, error) {
	f, err := os.Open(path)
	if err != nil {
		return file{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return file{}, err
	}
	out := file{Type: "file", Size: info.Size(), Path: rel}
	git, sha := sha1.New(), sha256.New() // see above
	fmt.Fprintf(git, "blob %d\x00", out.Size)
	if _, err := io.Copy(io.MultiWriter(git, sha), f); err != nil {
		return file{}, err
	}
	out.OID = hex.EncodeToString(git.Sum(nil))
	large := h.Large
	if large == 0 {
		large = 10 << 20
	}
	if out.Size >= large {
		out.LFS = &lfs{OID: hex.EncodeToString(sha.Sum(nil)), Size: out.Size, PointerSize: 134}
	}
	return out, nil
}

// ServeHTTP answers as the hub does.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.once.Do(h.read); h.err != nil {
		http.Error(w, h.err.Error(), http.StatusInternalServerError)
		return
	}
	if h.Fault != nil && h.Fault(w, r) {
		return
	}
	path := r.URL.EscapedPath()
	if rest, ok := strings.CutPrefix(path, storePath); ok {
		h.serveStored(w, r, rest)
		return
	}
	api, model := "/api/models/"+h.ID+"/", "/"+h.ID+"/resolve/"
	if h.Token != "" && r.Header.Get("Authorization") != "Bearer "+h.Token {
		refuse(w, http.StatusUnauthorized, "RepoNotFound", "Invalid username or password.")
		return
	}
	switch {
	case strings.HasPrefix(path, api+"revision/"):
		h.serveInfo(w, strings.TrimPrefix(path, api+"revision/"))
	case strings.HasPrefix(path, api+"tree/"):
		h.serveTree(w, r, strings.TrimPrefix(path, api+"tree/"))
	case strings.HasPrefix(path, model):
		h.serveFile(w, r, strings.TrimPrefix(path, model))
	default:
		refuse(w, http.StatusNotFound, "RepoNotFound", "Repository not found")
	}
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("X-Error-Code", code)
	w.Header().Set("X-Error-Message", message)
	http.Error(w, `{"error":"`+message+`"}`, status)
}

// known resolves a revision, escaped as it is in the path.
func (h *Hub) known(w http.ResponseWriter, revision string) bool {
	w.Header().Set("X-Repo-Commit", h.commit)
	if revision, err := url.PathUnescape(revision); err != nil || revision == h.Missing {
		refuse(w, http.StatusNotFound, "RevisionNotFound", "Invalid rev id: "+h.Missing)
		return false
	}
	return true
}

func (h *Hub) serveInfo(w http.ResponseWriter, revision string) {
	if !h.known(w, revision) {
		return
	}
	type sibling struct {
		Name string `json:"rfilename"`
	}
	siblings := []sibling{}
	for _, f := range h.files {
		siblings = append(siblings, sibling{f.Path})
	}
	gated := any(false)
	if h.Gated {
		gated = "manual"
	}
	writeJSON(w, map[string]any{
		"id": h.ID, "modelId": h.ID, "sha": h.commit, "private": h.Token != "", "gated": gated, "disabled": false,
		"tags": []string{}, "downloads": 0, "likes": 0, "siblings": siblings,
		"lastModified": time.Unix(0, 0).UTC().Format("2006-01-02T15:04:05.000Z"),
	})
}

func (h *Hub) serveTree(w http.ResponseWriter, r *http.Request, revision string) {
	if !h.known(w, revision) {
		return
	}
	page := h.Page
	if page == 0 {
		page = 1000
	}
	from, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
	from = min(max(from, 0), len(h.files))
	to := min(from+page, len(h.files))
	if to < len(h.files) {
		next := *r.URL
		next.Scheme, next.Host = "http", r.Host
		query := next.Query()
		query.Set("cursor", strconv.Itoa(to))
		next.RawQuery = query.Encode()
		w.Header().Set("Link", "<"+next.String()+`>; rel="next"`)
	}
	writeJSON(w, append([]file{}, h.files[from:to]...))
}

func (h *Hub) serveFile(w http.ResponseWriter, r *http.Request, rest string) {
	revision, escaped, _ := strings.Cut(rest, "/")
	if !h.known(w, revision) {
		return
	}
	if h.Gated {
		refuse(w, http.StatusForbidden, "GatedRepo", "Access to model "+h.ID+" is restricted")
		return
	}
	path, _ := url.PathUnescape(escaped)
	for _, f := range h.files {
		if f.Path != path {
			continue
		}
		if f.LFS == nil {
			w.Header().Set("ETag", `"`+f.OID+`"`)
			h.serveContent(w, r, path)
			return
		}
		w.Header().Set("X-Linked-Size", strconv.FormatInt(f.Size, 10))
		w.Header().Set("X-Linked-Etag", `"`+f.LFS.OID+`"`)
		http.Redirect(w, r, h.Store+storePath+f.LFS.OID, http.StatusFound)
		return
	}
	refuse(w, http.StatusNotFound, "EntryNotFound", "Entry not found")
}

func (h *Hub) serveStored(w http.ResponseWriter, r *http.Request, oid string) {
	for _, f := range h.files {
		if f.LFS != nil && f.LFS.OID == oid {
			w.Header().Set("ETag", `"`+oid+`"`)
			w.Header().Set("Content-Type", "application/octet-stream")
			h.serveContent(w, r, f.Path)
			return
		}
	}
	http.NotFound(w, r)
}

func (h *Hub) serveContent(w http.ResponseWriter, r *http.Request, path string) {
	f, err := os.Open(filepath.Join(h.Dir, filepath.FromSlash(path)))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	http.ServeContent(w, r, "", time.Time{}, f)
}

func writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value)
}
