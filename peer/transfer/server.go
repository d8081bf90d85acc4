package transfer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/shoal-project/shoal/peer/piece"
)

const (
	// DefaultUploadSlots is used when Config.UploadSlots is zero: as many as a peer has requests out. With more, some hosts are asked too much
	// and others too little.
	DefaultUploadSlots = 8
	// DefaultHavesInterval is used when Config.HavesInterval is zero.
	DefaultHavesInterval = 20 * time.Millisecond
	// DefaultSpacing is used when Config.Spacing is zero: about what ten uploads at a time and the news of their arrival take.
	DefaultSpacing = 200 * time.Millisecond
	// DefaultUploadStall is used when Config.UploadStall is zero.
	DefaultUploadStall = 10 * time.Second

	demandHeader  = "Shoal-Demanded" // of a request that a reader waits for
	aloneHeader   = "Shoal-Alone"    // of a request of who cannot get the range from another peer
	busyHeader    = "Shoal-Busy"
	busyHost      = "host"  // its value when no upload slot is free
	busyPiece     = "piece" // its value when another peer is getting the piece
	aliveInterval = time.Second
	havesBurst    = 4        // frames of changes that may go at once
	maxSpec       = 64 << 10 // bytes of the body of haves
	demandSlots   = 64       // for what readers wait for, so that nobody opens files without end
	suspectSlots  = 2        // each reads and hashes up to piece.MaxSize bytes
)

// Blobs is what the handler serves. Its methods are called concurrently.
type Blobs interface {
	// Open returns a file that holds bytes [off, off+length) of the blob at their offsets, verified, and as long as the
	// blob; a negative length means to the blob's end. The file's own offset belongs to the caller until it calls release.
	// The error is piece.ErrAbsent when any of these bytes is missing or was found to be bad.
	Open(d digest.Digest, off, length int64) (f *os.File, release func(), err error)
	// Groups returns the group digests of a held piece, or piece.ErrAbsent.
	Groups(d digest.Digest, i piece.Index) ([]piece.Digest, error)
	// Suspect reads piece i back from the disk and drops it when it is bad.
	Suspect(d digest.Digest, i piece.Index) error
	// Watch returns the live state of a task, which it may begin: spec is the body of the request, not yet parsed.
	Watch(ctx context.Context, d digest.Digest, spec json.RawMessage) (Haves, error)
}

// Haves is the live state of one task. *store.Blob is one.
type Haves interface {
	// Have returns a copy of the set of the pieces held.
	Have() *piece.Set
	// Changed returns a channel that is closed when the set changes next.
	Changed() <-chan struct{}
	// Close is called when nobody watches any more.
	Close() error
}

// Introducer is a Haves whose watcher is told who else watches.
type Introducer interface {
	// Watchers returns the addresses of some others, 64 at the most.
	Watchers() []string
}

// Failer is a Haves whose watcher is told why there is nothing new.
type Failer interface {
	// Failure returns what keeps the host from fetching the blob now; nil when nothing does.
	Failure() error
}

// Config describes the serving end. The zero Config serves every caller.
type Config struct {
	// Token is the cluster's; a request without it is refused with 401. Empty lets everybody in.
	Token string
	// UploadSlots bounds the ranges sent at a time; more are refused with 503. Zero is DefaultUploadSlots.
	UploadSlots int
	// Spacing is how long after a range began to be sent to one peer it is refused to others with 503, and four times as long while this host
	// sends ranges that it did not send in that time: they take another piece meanwhile, and this one from the first receiver. So what is rare
	// leaves a host once. What a reader waits for is refused only while others ask for something else, and nothing to who cannot get it from the
	// first receiver. Zero is DefaultSpacing, negative never refuses.
	Spacing time.Duration
	// UploadStall ends an upload whose receiver takes no byte for this long. Zero is DefaultUploadStall.
	UploadStall time.Duration
	// HavesInterval is the mean time between two frames of changes, up to three times as long where pieces come slowly; after a pause some go
	// at once. Zero is DefaultHavesInterval.
	HavesInterval time.Duration
	// Pacer holds back what is sent. Nil sends as fast as the network takes it.
	Pacer Pacer
	// Uploaded, if not nil, is told who, HOST:PORT, got how many bytes of what.
	Uploaded func(remote string, d digest.Digest, n int64)
	// Log receives failures of the own disk. Nil discards it.
	Log *slog.Logger
	// Registerer receives the metrics. Nil keeps them out of sight.
	Registerer prometheus.Registerer
}

// Validate reports all faults of the configuration at once.
func (c Config) Validate() error {
	var errs []error
	if c.UploadSlots < 0 {
		errs = append(errs, fmt.Errorf("transfer: upload slots are %d, want 0 (%d) or more", c.UploadSlots, DefaultUploadSlots))
	}
	if c.UploadStall < 0 || c.HavesInterval < 0 {
		errs = append(errs, errors.New("transfer: a time is negative"))
	}
	return errors.Join(errs...)
}

type handler struct {
	cfg      Config
	blobs    Blobs
	log      *slog.Logger
	metrics  *serverMetrics
	suspects chan struct{}

	mu      sync.Mutex // guards what follows
	slots   *Slots[upRange]
	awaited *Slots[upRange] // of what readers wait for
	bulkAt  time.Time       // when something else was asked for last
}

// upRange is a range of a blob that is being sent, or was a moment ago.
type upRange struct {
	digest digest.Digest
	off    int64
}

// NewHandler returns the serving end of the wire. The server it runs in must have no WriteTimeout, because haves never
// end, and a BaseContext that is cancelled on shutdown, which is what ends them. With ConnContext as its ConnContext it knows what has come to
// its receiver, and without only what was sent.
func NewHandler(cfg Config, blobs Blobs) (http.Handler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.UploadSlots = cmp.Or(cfg.UploadSlots, DefaultUploadSlots)
	cfg.Spacing = cmp.Or(cfg.Spacing, DefaultSpacing)
	cfg.UploadStall = cmp.Or(cfg.UploadStall, DefaultUploadStall)
	cfg.HavesInterval = cmp.Or(cfg.HavesInterval, DefaultHavesInterval)
	if cfg.Pacer == nil {
		cfg.Pacer = unpaced{}
	}
	h := &handler{
		cfg: cfg, blobs: blobs, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
		metrics: newServerMetrics(cfg.Registerer),
		slots:   NewSlots[upRange](cfg.UploadSlots, cfg.Spacing), awaited: NewSlots[upRange](demandSlots, -1), suspects: make(chan struct{}, suspectSlots),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/blobs/{digest}", h.serveBlob)
	mux.HandleFunc("GET /v1/blobs/{digest}/groups", h.serveGroups)
	mux.HandleFunc("POST /v1/blobs/{digest}/suspect", h.serveSuspect)
	mux.HandleFunc("POST /v1/tasks/{digest}/haves", h.serveHaves)
	return RequireToken(cfg.Token, mux), nil
}

// RequireToken passes on the requests that carry the cluster's token and answers 401 to others, in a time that does not
// tell how much of the token was right. An empty token passes everything on.
func RequireToken(token string, next http.Handler) http.Handler {
	if token == "" {
		return next
	}
	want := sha256.Sum256([]byte("Bearer " + token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got := sha256.Sum256([]byte(r.Header.Get("Authorization")))
		if subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
			http.Error(w, "this host belongs to another cluster: the token differs", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (h *handler) serveBlob(w http.ResponseWriter, r *http.Request) {
	d, ok := parseDigest(w, r)
	if !ok {
		return
	}
	off, length, err := parseRange(r.Header.Get("Range"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestedRangeNotSatisfiable)
		return
	}
	h.metrics.requests.Inc()
	h.came(laneOf(r))
	demanded := r.Header.Get(demandHeader) != ""
	if !h.take(demanded) {
		h.refuse(w, busyHost, "all upload slots are taken")
		return
	}
	defer h.untake(demanded, laneOf(r))
	f, release, err := h.blobs.Open(d, off, length)
	if err != nil {
		h.fail(w, d, err)
		return
	}
	if r.Header.Get(aloneHeader) == "" && !h.begin(upRange{d, off}, demanded, laneOf(r)) {
		release()
		h.refuse(w, busyPiece, "another peer gets this piece, or has it by now")
		return
	}
	defer release()
	w.Header().Set("Content-Type", "application/octet-stream") // ServeContent would read the file to guess it
	w.Header().Set("ETag", `"`+d.String()+`"`)
	u := &upload{ResponseWriter: w, ctx: r.Context(), task: d.String(), pacer: h.cfg.Pacer, stall: h.cfg.UploadStall}
	http.ServeContent(u, r, "", time.Time{}, f)
	h.metrics.uploaded.Add(float64(u.sent))
	if errors.Is(u.err, unix.EIO) { // the disk's, a socket has none: the piece is lost, and nobody else would find out
		h.log.Error("blob cannot be read from the disk", "digest", d, "error", u.err)
		_ = h.blobs.Suspect(d, pieceAt(f, off+u.sent)) // what cannot be read is dropped; it is logged there
	}
	if h.cfg.Uploaded != nil {
		h.cfg.Uploaded(r.RemoteAddr, d, u.sent)
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // the connection's next request starts afresh
}

// pieceAt returns the piece of the blob in f that the byte at off is in.
func pieceAt(f *os.File, off int64) piece.Index {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return piece.NewLayout(info.Size()).At(off)
}

// take takes an upload slot: one of its own kind for what a reader waits for. While there is any of these, the rest makes way and has one.
func (h *handler) take(demanded bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if demanded {
		return h.awaited.Take()
	}
	h.bulkAt = time.Now()
	return (h.awaited.Taken() == 0 || h.slots.Taken() == 0) && h.slots.Take()
}

func (h *handler) untake(demanded bool, l *lane) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.sent()
	if demanded {
		h.awaited.Release()
	} else {
		h.slots.Release()
	}
}

// begin reports whether a range may be sent, and notes that it is. What readers wait for is sent once more, while it is refused otherwise, only while nobody
// asks for anything else: many who wait for the same would keep what the others need from leaving this host.
func (h *handler) begin(r upRange, demanded bool, l *lane) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if !h.slots.Begin(now, r, func() bool { return l.carries(time.Now(), r) }) {
		return demanded && now.Sub(h.bulkAt) > h.cfg.Spacing
	}
	l.carry(r)
	return true
}

// came takes note that what a connection carried has come: the receiver asks for more.
func (h *handler) came(l *lane) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l != nil && l.busy {
		h.slots.Came(time.Now(), l.last)
		l.busy = false
	}
}

func (h *handler) refuse(w http.ResponseWriter, kind, text string) {
	h.metrics.busy.WithLabelValues(kind).Inc()
	w.Header().Set(busyHeader, kind)
	http.Error(w, text, http.StatusServiceUnavailable)
}

func (h *handler) serveGroups(w http.ResponseWriter, r *http.Request) {
	d, i, ok := parsePiece(w, r)
	if !ok {
		return
	}
	groups, err := h.blobs.Groups(d, i)
	if err != nil {
		h.fail(w, d, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(groups)*len(piece.Digest{})))
	for g := range groups {
		if _, err := w.Write(groups[g][:]); err != nil {
			return // the receiver has gone
		}
	}
}

func (h *handler) serveSuspect(w http.ResponseWriter, r *http.Request) {
	d, i, ok := parsePiece(w, r)
	if !ok {
		return
	}
	select {
	case h.suspects <- struct{}{}:
		defer func() { <-h.suspects }()
	default:
		h.refuse(w, busyHost, "other pieces are being verified")
		return
	}
	h.metrics.suspected.Inc()
	if err := h.blobs.Suspect(d, i); err != nil {
		h.fail(w, d, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// serveHaves streams frames until the watcher or the server goes.
func (h *handler) serveHaves(w http.ResponseWriter, r *http.Request) {
	d, ok := parseDigest(w, r)
	if !ok {
		return
	}
	spec, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxSpec))
	if err != nil || !json.Valid(spec) {
		http.Error(w, "the body must be the task in JSON, at most 64 KiB", http.StatusBadRequest)
		return
	}
	haves, err := h.blobs.Watch(r.Context(), d, spec)
	if err != nil {
		h.fail(w, d, err)
		return
	}
	defer haves.Close()
	h.metrics.watchers.Inc()
	defer h.metrics.watchers.Dec()
	w.Header().Set("Content-Type", "application/x-shoal-haves")
	_ = h.stream(r.Context(), w, haves) // ends only with the receiver or the server; neither is worth a line
}

func (h *handler) stream(ctx context.Context, w http.ResponseWriter, haves Haves) error {
	controller := http.NewResponseController(w)
	send := func(frames []byte) error {
		if err := controller.SetWriteDeadline(time.Now().Add(h.cfg.UploadStall)); err != nil {
			return err
		}
		h.metrics.frames.Inc()
		if _, err := w.Write(frames); err != nil {
			return err
		}
		return controller.Flush()
	}
	changed := haves.Changed()
	sent := haves.Have()
	if sent.Len() > maxPieces {
		return fmt.Errorf("%w: %d pieces", errFrame, sent.Len())
	}
	aside := asides(haves)
	if err := send(aside(appendAll(nil, sent))); err != nil {
		return err
	}
	frames := rate.NewLimiter(rate.Every(h.cfg.HavesInterval), havesBurst)
	pause := time.NewTimer(frames.Reserve().Delay())
	defer pause.Stop()
	alive := time.NewTimer(aliveInterval)
	defer alive.Stop()
	last := time.Now()
	var next <-chan struct{} // the next change; nil during the pause, so that not each piece wakes every stream
	for {
		var told []byte
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-alive.C:
			told = aside(appendFrame(nil, frameAlive, nil))
		case <-pause.C:
			next = changed
		case <-next:
			changed = haves.Changed()
			now := haves.Have()
			told = aside(appendChanges(nil, sent, now))
			frames.SetLimit(rate.Every(pauseAfter(time.Since(last), now.Count()-sent.Count(), h.cfg.HavesInterval)))
			sent, next, last = now, nil, time.Now()
			pause.Reset(frames.Reserve().Delay())
		}
		if len(told) == 0 {
			continue
		}
		if err := send(told); err != nil {
			return err
		}
		alive.Reset(aliveInterval)
	}
}

// asides returns what appends the frames of what is told besides pieces, when that has changed since the last time.
func asides(haves Haves) func([]byte) []byte {
	in, introduces := haves.(Introducer)
	failer, fails := haves.(Failer)
	var last []string
	var failed string
	return func(b []byte) []byte {
		if introduces {
			if now := in.Watchers(); !slices.Equal(now, last) {
				last = now
				b = appendWatchers(b, now)
			}
		}
		if fails {
			if err := failer.Failure(); err != nil && err.Error() != failed {
				failed = err.Error()
				b = appendFailed(b, err)
			}
		}
		return b
	}
}

// pauseAfter returns how long the next changes wait when so many more pieces are held than were told the given time ago: until two more can
// be expected, between the interval and three times as long. On a slow link a frame for each piece is most of what a host has to do.
func pauseAfter(since time.Duration, gained int, interval time.Duration) time.Duration {
	return min(max(2*since/time.Duration(max(gained, 1)), interval), 3*interval)
}

// fail answers with the status of err's class.
func (h *handler) fail(w http.ResponseWriter, d digest.Digest, err error) {
	switch {
	case errors.Is(err, piece.ErrAbsent), errors.Is(err, piece.ErrMismatch):
		http.Error(w, "not held", http.StatusNotFound)
	case errors.Is(err, piece.ErrTransient):
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	default:
		h.log.Error("request of a peer failed", "digest", d, "error", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func parseDigest(w http.ResponseWriter, r *http.Request) (digest.Digest, bool) {
	d := digest.Digest(r.PathValue("digest"))
	err := piece.CheckID(d)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	return d, err == nil
}

func parsePiece(w http.ResponseWriter, r *http.Request) (digest.Digest, piece.Index, bool) {
	d, ok := parseDigest(w, r)
	if !ok {
		return d, 0, false
	}
	n, err := strconv.ParseUint(r.URL.Query().Get("piece"), 10, 31)
	if err != nil {
		http.Error(w, "piece must be a number from 0", http.StatusBadRequest)
	}
	return d, piece.Index(n), err == nil
}

// parseRange takes the one form peers use, "bytes=a-b", and no header at all, which is the whole blob.
func parseRange(header string) (off, length int64, err error) {
	if header == "" {
		return 0, -1, nil
	}
	first, last, ok := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	a, errA := strconv.ParseUint(first, 10, 62)
	b, errB := strconv.ParseUint(last, 10, 62)
	if !ok || !strings.HasPrefix(header, "bytes=") || errA != nil || errB != nil || b < a {
		return 0, 0, fmt.Errorf("range %q: want bytes=FIRST-LAST", header)
	}
	return int64(a), int64(b-a) + 1, nil
}
