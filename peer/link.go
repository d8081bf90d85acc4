package peer

import (
	"context"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/limits"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/scheduler/api"
)

var errNoScheduler = errors.New("it is no scheduler of the cluster any more")

// link keeps a session with one scheduler, for as long as it is one.
type link struct {
	peer   *Peer
	client *api.Client
	cancel context.CancelCauseFunc // ends run
	probes chan probing

	mu      sync.Mutex // guards session and failed
	session *api.Session
	failed  error // why there is no session
}

// keepLinks has one link for each scheduler there is.
func (p *Peer) keepLinks(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	return p.schedulers.Watch(ctx, func(clients []*api.Client) {
		var links []*link
		for _, c := range clients {
			l := p.linkTo(c)
			if l == nil {
				linkCtx, cancel := context.WithCancelCause(ctx)
				l = &link{peer: p, client: c, cancel: cancel, probes: make(chan probing, 4)}
				running.Go(func() { l.run(linkCtx) })
				running.Go(func() { l.prober(linkCtx) })
			}
			links = append(links, l)
		}
		p.mu.Lock()
		before := p.links
		p.links = links
		p.mu.Unlock()
		for _, l := range before {
			if !slices.Contains(links, l) {
				l.cancel(errNoScheduler)
			}
		}
	})
}

// linkTo returns the link with the scheduler of a client, or nil.
func (p *Peer) linkTo(c *api.Client) *link {
	for _, l := range p.linked() {
		if l.client == c {
			return l
		}
	}
	return nil
}

// linked returns the links there are.
func (p *Peer) linked() []*link {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.links
}

// run returns when ctx ends: the peer's, or because the scheduler is none any more. The tasks find another one then.
func (l *link) run(ctx context.Context) {
	defer l.cancel(nil)
	wait := 100 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		err := l.client.Run(ctx, l.peer.cfg.Host, l)
		l.set(nil, err)
		gone := errors.Is(context.Cause(ctx), errNoScheduler)
		if ctx.Err() != nil && !gone {
			return
		}
		for _, t := range l.peer.all() {
			t.post(t.rehome)
		}
		if gone {
			l.peer.cfg.Limits.ShareSource(l.client.URL(), 0)
			return
		}
		l.peer.metrics.sessionsLost.Inc()
		l.peer.log.Warn("no session with scheduler", "scheduler", l.client.URL(), "error", err)
		if time.Since(began) > 10*time.Second {
			wait = 100 * time.Millisecond
		}
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
		}
		wait = min(2*wait, 2*time.Second)
	}
}

func (l *link) set(s *api.Session, failed error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.session, l.failed = s, failed
}

func (l *link) status() LinkStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := LinkStatus{URL: l.client.URL(), Live: l.session != nil}
	if l.failed != nil {
		s.Error = l.failed.Error()
	}
	return s
}

func (l *link) live() *api.Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.session
}

// Opened implements api.Handler: everything the host holds or wants is announced anew.
func (l *link) Opened(s *api.Session) {
	l.set(s, nil)
	l.peer.cfg.Limits.ShareSource(l.client.URL(), 0) // a restarted scheduler need not have a rate any more; else it tells with the first lease
	l.peer.log.Info("session with scheduler", "scheduler", l.client.URL())
	for _, info := range l.peer.store.List() {
		if l.peer.lookup(info.Digest) == nil {
			l.peer.announce(info.Digest)
		}
	}
	for _, t := range l.peer.all() {
		t.post(t.rehome)
	}
}

// announce tells the blob's scheduler what the store holds of it, so that others may ask here.
func (p *Peer) announce(d digest.Digest) {
	s := p.home(d.String())
	if s == nil {
		return
	}
	b, err := p.store.Get(d)
	if err != nil {
		return // evicted meanwhile
	}
	defer b.Close()
	s.Send(p.join(Blob{Digest: d, Size: b.Layout().Size}, b, true, false))
}

// join describes this host's part in a task. A seed tells the piece digests it knows, for those without a chunk map: of a blob that it
// reads as one of them, or that had its own digest.
func (p *Peer) join(blob Blob, b *store.Blob, sequential, wants bool) api.Event {
	j := &api.Join{Task: blob.task(sequential), Have: runs(b.Have()), Wants: wants}
	if blob.Origin.none() && !wants {
		j.Task.Origin = nil // who only holds it leaves alone what others said
	}
	if p.cfg.Host.Seed && sequential && (wants || b.Vouched()) {
		for i := range b.Have().All() {
			if groups, err := b.Groups(i); err == nil {
				root := piece.Root(groups)
				j.Digests = append(j.Digests, api.PieceDigest{Piece: int(i), Digest: root[:]})
			}
		}
	}
	return api.Event{Join: j}
}

// home returns the session of the scheduler that governs a task: the live one that wins the rendezvous, or nil.
func (p *Peer) home(task string) *api.Session {
	var (
		best  *api.Session
		score uint64
	)
	for _, l := range p.linked() {
		s := l.live()
		if s == nil {
			continue
		}
		if h := rendezvous(l.client.URL(), task); best == nil || h > score {
			best, score = s, h
		}
	}
	return best
}

func rendezvous(node, key string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(node + "\x00" + key)) // a hash never fails to write
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd // spread: FNV's high bits hardly depend on the last bytes
	return x ^ x>>33
}

// Command implements api.Handler.
func (l *link) Command(s *api.Session, c api.Command) {
	p := l.peer
	switch {
	case c.Seeds != nil:
		p.mu.Lock()
		p.seeds = c.Seeds.Hosts
		p.mu.Unlock()
	case c.Neighbours != nil:
		p.tell(c.Neighbours.Task, func(t *task) { t.named(c.Neighbours.Hosts) })
	case c.Share != nil:
		p.cfg.Limits.ShareSource(l.client.URL(), limits.Rate(max(c.Share.Rate, 0)))
	case c.Probe != nil:
		select {
		case l.probes <- probing{s, c.Probe.Hosts}:
		default: // more than it can want
		}
	case c.Lease != nil:
		p.lease(s, c.Lease)
	case c.Revoked != nil:
		p.tell(c.Revoked.Task, func(t *task) { t.revoked(c.Revoked) })
	case c.Digests != nil:
		p.tell(c.Digests.Task, func(t *task) { t.learn(c.Digests.Digests) })
	case c.Coming != nil:
		p.tell(c.Coming.Task, (*task).coming)
	case c.Failed != nil:
		p.tell(c.Failed.Task, func(t *task) { t.sourceFailed(c.Failed.Failure, c.Failed.Text) })
	}
}

// tell runs f in the task's loop, if the task is live.
func (p *Peer) tell(id string, f func(*task)) {
	if t := p.lookup(digestOf(id)); t != nil {
		t.post(func() { f(t) })
	}
}

// lease begins to read the origin for the cluster, for a task this host may not have heard of, or to fetch across the border for the zone.
func (p *Peer) lease(s *api.Session, l *api.Lease) {
	if len(l.From) > 0 {
		if t := p.lookup(digestOf(l.Task.ID)); t == nil || !t.post(func() { t.cross(l) }) {
			s.Send(crossingFailed(l.Task.ID, l.Run, "the task has ended"))
		}
		return
	}
	run := toRun(l.Run)
	if t := p.lookup(digestOf(l.Task.ID)); t != nil && t.post(func() {
		if l.Task.Pieces == t.st.Layout().Count() { // else the scheduler hears in a moment that another length of the blob is read here
			t.leased(run, l.Demanded)
		}
	}) {
		return
	}
	b, err := decodeBlob(l.Task.ID, l.Task.Origin)
	if err != nil {
		s.Send(api.Event{Failed: &api.LeaseFailed{Task: l.Task.ID, Run: l.Run, Failure: failureAbsent, Text: err.Error()}})
		return
	}
	t, err := p.acquire(context.Background(), nil, b, "") // waits for Run's loop at the most, and ends with it
	if err != nil {
		return
	}
	t.post(func() { t.leased(run, l.Demanded) })
	t.release()
}

func digestOf(id string) digest.Digest { return digest.Digest(id) }

func toRun(r api.Run) dispatch.Run {
	return dispatch.Run{First: piece.Index(r[0]), End: piece.Index(r[1])}
}

// Connected reports whether the peer has a session with every scheduler there is.
func (p *Peer) Connected() bool {
	links := p.linked()
	for _, l := range links {
		if l.live() == nil {
			return false
		}
	}
	return p.schedulers == nil || len(links) > 0
}
