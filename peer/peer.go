package peer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/limits"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/transfer"
	"github.com/shoal-project/shoal/scheduler/api"
)

// Wire asks other peers. *transfer.Client is one.
type Wire interface {
	// Fetch fills w.Buf from the peer at w.Addr. The bytes are not verified.
	Fetch(ctx context.Context, w transfer.Wanted) error
	// Watch reports what the peer at addr holds until the stream breaks, always with an error.
	Watch(ctx context.Context, addr string, d digest.Digest, spec json.RawMessage, fn func(transfer.Have) error) error
	// Groups returns the digests of the groups of piece i, as the peer at addr claims them.
	Groups(ctx context.Context, addr string, d digest.Digest, i piece.Index) ([]piece.Digest, error)
	// Suspect tells the peer at addr that its piece was bad.
	Suspect(ctx context.Context, addr string, d digest.Digest, i piece.Index) error
}

// Source reads the origin. *source.Client is one.
type Source interface {
	// Fetch returns the bytes [off, off+length) of the blob. authorization, if not empty, is the caller's own
	// Authorization header; else the host's credentials are used.
	Fetch(ctx context.Context, b source.Blob, off, length int64, authorization string) (io.ReadCloser, error)
}

// Schedulers is the list of the cluster's schedulers. *api.Members is one.
type Schedulers interface {
	// Watch calls set with all of them, and again whenever they are others, until ctx ends. A client stays the same while its scheduler stays.
	Watch(ctx context.Context, set func([]*api.Client)) error
}

// Config configures a Peer. The zero value of each duration means its default.
type Config struct {
	// Host is how this host announces itself to schedulers. ID and Addr are needed when there is any scheduler.
	Host api.Host
	// Peers are the addresses of the hosts of a cluster without a scheduler, HOST:PORT, the same list on each. Each is the seed of the
	// blobs it wins by rendezvous, and believed as one. The host's ID has to be its address then, and there must be no scheduler.
	Peers []string
	// Dispatch tunes the planner of each task.
	Dispatch dispatch.Config
	// Grace is how long a download goes on after its last reader has left. Default 30 s.
	Grace time.Duration
	// SelfAfter is how long a task with a live scheduler may stand still before it reads the origin by itself. Default 4 s.
	SelfAfter time.Duration
	// MapTimeout bounds the loading of a blob's chunk map; without it the blob is read as one without. Default 10 s.
	MapTimeout time.Duration
	// Limits hold back what is read from origins and copied. What passes between peers is the Wire's matter. Nil is none.
	Limits *limits.Limits
	// RoundTrip measures the way to another host's address, for a scheduler that wants to know. Nil connects and takes the time.
	RoundTrip func(ctx context.Context, addr string) (time.Duration, error)
	// Log is where tasks are reported; nil discards.
	Log *slog.Logger
	// Registerer takes the metrics; nil keeps them private.
	Registerer prometheus.Registerer
}

func (c Config) withDefaults() Config {
	c.Grace = cmp.Or(c.Grace, 30*time.Second)
	c.SelfAfter = cmp.Or(c.SelfAfter, 4*time.Second)
	c.MapTimeout = cmp.Or(c.MapTimeout, 10*time.Second)
	if c.RoundTrip == nil {
		c.RoundTrip = connectTime
	}
	if c.Limits == nil {
		c.Limits = limits.None()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Peer is one host's part in all tasks. It is safe for concurrent use. Run is called once; Open waits for it to run.
type Peer struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	store   *store.Store
	wire    Wire
	source  Source
	// schedulers is nil where there are none.
	schedulers Schedulers
	maps       *mapCache
	starts     chan *task
	stopped    chan struct{} // closed when no task is begun any more
	buffers    buffers
	gate       gate
	watchers   *watchers

	mu     sync.Mutex // guards all below
	tasks  map[digest.Digest]*task
	seeds  []api.Host           // as last told by a scheduler
	silent map[string]time.Time // addresses that did not answer, and when
	links  []*link              // in the order of the schedulers; not changed, but replaced
}

// New returns a peer over an open store. schedulers may be nil: then every task reads the origin itself.
func New(cfg Config, st *store.Store, wire Wire, src Source, schedulers Schedulers) (*Peer, error) {
	if len(cfg.Peers) > 0 && (schedulers != nil || cfg.Host.ID != cfg.Host.Addr) {
		return nil, errors.New("peer: with a list of peers there is no scheduler, and the host's id is its address")
	}
	if (schedulers != nil || len(cfg.Peers) > 0) && (cfg.Host.ID == "" || cfg.Host.Addr == "") {
		return nil, errors.New("peer: with a scheduler or a list of peers the host needs an id and an address other hosts can reach")
	}
	p := &Peer{cfg: cfg.withDefaults(), store: st, wire: wire, source: src, schedulers: schedulers, tasks: map[digest.Digest]*task{},
		starts: make(chan *task), stopped: make(chan struct{}), silent: map[string]time.Time{}, watchers: newWatchers()}
	p.log = p.cfg.Log
	p.metrics = newMetrics(cfg.Registerer)
	p.maps = newMapCache()
	p.seeds = listed(cfg)
	return p, nil
}

// Run serves tasks and keeps the sessions with the schedulers until ctx ends. When it returns, all it started has ended.
func (p *Peer) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if p.schedulers != nil {
		group.Go(func() error { return p.keepLinks(ctx) })
	}
	for {
		select {
		case t := <-p.starts:
			group.Go(func() error {
				t.run(ctx)
				return nil
			})
		case <-ctx.Done():
			close(p.stopped) // first: a link may be waiting to begin a task
			_ = group.Wait() // tasks and links end with ctx and report nothing else
			return nil
		}
	}
}

// Open returns a reader of the blob. Bytes begin to arrive when they are waited for, from wherever they are to be had: of short ranges only
// these, else all of the blob. authorization, if not empty, is used should this host have to read the origin. The caller must Close the reader. ctx bounds only Open itself.
func (p *Peer) Open(ctx context.Context, b Blob, authorization string) (*Reader, error) {
	if err := b.validate(); err != nil {
		return nil, err
	}
	for again := false; ; again = true {
		t, err := p.acquire(ctx, ctx.Done(), b, authorization)
		if err != nil {
			return nil, err
		}
		err = t.join(ctx, b, authorization)
		if err == nil {
			return newReader(t)
		}
		gone := errors.Is(err, errUnsuited) && !again && t.giveWay(ctx)
		if !gone {
			t.release()
			return nil, err
		}
	}
}

// Warm begins to fetch all of a blob that somebody will open soon, and does not wait. When it cannot, who opens the blob learns why.
func (p *Peer) Warm(b Blob, authorization string) {
	if b.validate() != nil {
		return
	}
	if t, err := p.acquire(context.Background(), nil, b, authorization); err == nil {
		t.post(t.fetchAll)
		t.release()
	}
}

// acquire returns the blob's task with a reference, starting it when there is none.
// Closing cancelled gives up, which only happens when Run does not run. Of asker only its span counts: a task that starts is a part of it.
func (p *Peer) acquire(asker context.Context, cancelled <-chan struct{}, b Blob, authorization string) (*task, error) {
	p.mu.Lock()
	t := p.tasks[b.Digest]
	fresh := t == nil
	if fresh {
		t = newTask(p, b, authorization)
		t.asker = trace.SpanFromContext(asker)
		p.tasks[b.Digest] = t
	}
	t.refs++
	p.mu.Unlock()
	if !fresh {
		failed := t.unfail() // here, so that the reader does not meet the failure of those before it
		t.post(func() { t.offer(b, authorization, failed) })
		return t, nil
	}
	select {
	case p.starts <- t:
		return t, nil
	case <-cancelled:
		t.abandon(context.Canceled)
	case <-p.stopped:
		t.abandon(ErrClosed)
	}
	return nil, t.openErr
}

// lookup returns the task of a blob without a reference, or nil.
func (p *Peer) lookup(d digest.Digest) *task {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tasks[d]
}

// all returns the tasks there are.
func (p *Peer) all() []*task {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]*task, 0, len(p.tasks))
	for _, t := range p.tasks {
		out = append(out, t)
	}
	return out
}

// listed returns the hosts of a cluster without a scheduler, this one included; none without a list.
func listed(cfg Config) []api.Host {
	var out []api.Host
	for _, addr := range append(slices.Clone(cfg.Peers), cfg.Host.Addr) {
		h := api.Host{ID: addr, Addr: addr, Seed: true}
		if len(cfg.Peers) > 0 && !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	return out
}
