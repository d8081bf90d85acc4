package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"github.com/shoal-project/shoal/registry-mirror/upstream"
)

// Origin asks the origin registry. *upstream.Client is one.
type Origin interface {
	// Manifest returns the registry's answer to GET or HEAD of a manifest with the caller's header.
	Manifest(ctx context.Context, ref upstream.Ref, method string, header http.Header) (*upstream.Response, error)
	// Blob returns its answer to HEAD of a blob.
	Blob(ctx context.Context, ref upstream.Ref, header http.Header) (*upstream.Response, error)
	// Tags and Referrers return its answers to GET of the lists.
	Tags(ctx context.Context, ref upstream.Ref, query url.Values, header http.Header) (*upstream.Response, error)
	Referrers(ctx context.Context, ref upstream.Ref, query url.Values, header http.Header) (*upstream.Response, error)
}

// BlobRef names a blob, its place, and, if known, where its chunk map is.
type BlobRef struct {
	Registry, Repository string
	Digest               digest.Digest
	Size                 int64         // bytes
	MapLayer             digest.Digest // bootstrap layer in the same repository with the blob's chunk map; empty when there is none
	MapSize              int64         // of that layer, in bytes
}

// Blobs opens blobs of the peer network.
type Blobs interface {
	// Open returns a reader of the blob and begins to fetch it. authorization is the caller's own, for the case that this host
	// has to read the origin.
	Open(ctx context.Context, ref BlobRef, authorization string) (Blob, error)
	// Warm begins to fetch a small blob that others will need, and does not wait for it. authorization is as for Open.
	Warm(ref BlobRef, authorization string)
}

// Blob is an open blob. Only bytes that Await returned may be read from File.
type Blob interface {
	// Await blocks until verified bytes are at hand at off, and returns how many of length, at least one.
	Await(ctx context.Context, off, length int64) (int64, error)
	// AwaitMoving is Await that fails when nothing of the blob has come for the time quiet, or nothing at off for much longer.
	AwaitMoving(ctx context.Context, off, length int64, quiet time.Duration) (int64, error)
	// File returns the file that holds the blob's bytes at their offsets.
	File() (*os.File, error)
	Close() error
}

// Cluster keeps what hosts tell each other of manifests, for times when the origin is down.
type Cluster interface {
	// Publish tells the seeds, soon and in the background.
	Publish(Record)
	// Lookup asks the seeds. The error says why none knew.
	Lookup(ctx context.Context, q Query) (Record, error)
}

// Config configures a Handler. The zero value of each field means its default; a negative time believes nothing.
type Config struct {
	// DefaultRegistry is the origin of requests that name none with ?ns=. Empty refuses those.
	DefaultRegistry string
	// Registries are those that may be the first part of a name instead of being told with ?ns=, besides the default one. Without a
	// default registry any host may.
	Registries []string
	// TagTTL is how long a tag is believed without asking the origin. Default 5 s.
	TagTTL time.Duration
	// VerdictTTL is how long accepted credentials are believed without asking the origin. Default 60 s.
	VerdictTTL time.Duration
	// StaleFor is how long tags and verdicts are believed while the origin is down. Default 24 h.
	StaleFor time.Duration
	// FirstByte is how long nothing may come, to here or to those it will come from, before the caller of a blob is sent to the origin.
	// While something comes it is twelve times as long. Default 5 s.
	FirstByte time.Duration
	// Stall is the same of a stream that has begun. Default 10 s.
	Stall time.Duration
	// RefuseFor is how long a blob that failed in mid-stream is refused in its repository. Default 60 s.
	RefuseFor time.Duration
	// Log is where fallbacks are reported; nil discards.
	Log *slog.Logger
	// Registerer takes the metrics; nil keeps them private.
	Registerer prometheus.Registerer
}

func (c Config) withDefaults() Config {
	c.TagTTL = cmp.Or(c.TagTTL, 5*time.Second)
	c.VerdictTTL = cmp.Or(c.VerdictTTL, time.Minute)
	c.StaleFor = cmp.Or(c.StaleFor, 24*time.Hour)
	c.FirstByte = cmp.Or(c.FirstByte, 5*time.Second)
	c.Stall = cmp.Or(c.Stall, 10*time.Second)
	c.RefuseFor = cmp.Or(c.RefuseFor, time.Minute)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Handler serves the pull side of the OCI distribution API. It is safe for concurrent use.
type Handler struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	origin  Origin
	blobs   Blobs
	cluster Cluster
	records *Records
	flights singleflight.Group
	kept    atomic.Int64 // verdicts since the start
	callers callers

	mu      sync.Mutex           // guards refused
	refused map[string]time.Time // by blobKey, until when
}

// New returns a handler. cluster may be nil.
func New(cfg Config, records *Records, origin Origin, blobs Blobs, cluster Cluster) *Handler {
	h := &Handler{cfg: cfg.withDefaults(), records: records, origin: origin, blobs: blobs, cluster: cluster,
		refused: map[string]time.Time{}}
	h.log = h.cfg.Log
	h.metrics = newMetrics(cfg.Registerer)
	h.forget()
	return h
}

// request is a parsed request.
type request struct {
	upstream.Ref
	kind   string // manifests, blobs, tags or referrers
	query  url.Values
	method string
	header http.Header
}

func (r request) authorization() string { return r.header.Get("Authorization") }

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close") // no body is read here, and the server would wait for all of it before it answers
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this mirror is read-only; push to the origin")
		return
	}
	if p := r.URL.Path; p == "/v2" || p == "/v2/" {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		w.WriteHeader(http.StatusOK)
		return
	}
	req, err := h.parse(r)
	if err != nil {
		h.refuseError(w, &answerError{status: http.StatusNotFound, code: faultCode(err), text: err.Error()})
		return
	}
	switch req.kind {
	case "manifests":
		h.serveManifest(w, r, req)
	case "blobs":
		h.serveBlob(w, r, req)
	default:
		h.serveList(w, r, req)
	}
}

// parse reads /v2/NAME/manifests/REF?ns=REGISTRY or /v2/REGISTRY/NAME/manifests/REF, and the same for blobs, tags (list) and referrers.
func (h *Handler) parse(r *http.Request) (request, error) {
	req := request{method: r.Method, header: r.Header, query: r.URL.Query()}
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok {
		return req, errors.New("not a path of the distribution API")
	}
	rest, reference, ok := cutLast(path)
	if !ok {
		return req, errors.New("not a path of the distribution API")
	}
	name, kind, ok := cutLast(rest)
	if !ok || !slices.Contains([]string{"manifests", "blobs", "tags", "referrers"}, kind) || (kind == "tags" && reference != "list") {
		return req, fmt.Errorf("%s is not served here; ask the origin", r.URL.Path)
	}
	registry := req.query.Get("ns")
	if first, rest, ok := strings.Cut(name, "/"); ok && registry == "" && h.namesRegistry(first) {
		registry, name = first, rest
	}
	registry = cmp.Or(registry, h.cfg.DefaultRegistry)
	if registry == "" {
		return req, errors.New("the request names no registry: add ?ns=REGISTRY, begin the name with it, or set mirror.default_registry")
	}
	if u, err := url.Parse("https://" + registry); err != nil || u.Host != registry || u.Hostname() == "" || strings.ContainsAny(registry, "/@?#% ") {
		return req, fmt.Errorf("registry %q is not HOST or HOST:PORT", registry)
	}
	req.kind = kind
	req.Ref = upstream.Ref{Registry: registry, Repository: name, Reference: reference}
	if kind == "blobs" || kind == "referrers" || strings.Contains(reference, ":") {
		if _, err := digest.Parse(reference); err != nil {
			return req, &nameError{"DIGEST_INVALID", fmt.Errorf("digest %q: %w", reference, err)}
		}
	} else if !isTag(reference) {
		return req, &nameError{"MANIFEST_UNKNOWN", fmt.Errorf("tag %q: want up to %d of A-Z a-z 0-9 _ . -, and no . or - first", reference, maxTag)}
	}
	if !isRepository(name) {
		return req, &nameError{"NAME_INVALID", fmt.Errorf("repository %q: want a-z 0-9 _ . - between slashes, and a letter or digit first", name)}
	}
	return req, nil
}

// namesRegistry reports whether the first part of a name is a registry. Clients that know no ?ns= are given the mirror's address with the
// registry behind it. Where there is a default registry, whose repositories may begin with what looks like a host, it has to be that one or
// one of Config.Registries: else another host would get what was meant for the default one, and its credentials.
func (h *Handler) namesRegistry(part string) bool {
	if h.cfg.DefaultRegistry == "" {
		return part == "localhost" || strings.ContainsAny(part, ".:")
	}
	return part == h.cfg.DefaultRegistry || slices.Contains(h.cfg.Registries, part)
}

// cutLast splits a path at its last slash; neither side may be empty.
func cutLast(path string) (before, after string, ok bool) {
	i := strings.LastIndexByte(path, '/')
	if i <= 0 || i == len(path)-1 {
		return "", "", false
	}
	return path[:i], path[i+1:], true
}
