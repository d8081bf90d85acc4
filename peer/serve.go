package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/transfer"
	"github.com/shoal-project/shoal/scheduler/api"
)

// Served is what a Peer offers to other peers; it implements transfer.Blobs.
type Served struct{ peer *Peer }

// Served returns the side of the peer that other peers ask.
func (p *Peer) Served() Served { return Served{p} }

var _ transfer.Blobs = Served{}

// Open implements transfer.Blobs.
func (s Served) Open(d digest.Digest, off, length int64) (*os.File, func(), error) {
	b, err := s.peer.store.Get(d)
	if err != nil {
		return nil, nil, err
	}
	if length < 0 {
		length = b.Layout().Size - off
	}
	f, err := s.open(b, off, length)
	if err != nil {
		_ = b.Close() // a reference for reading: there is nothing to lose
		return nil, nil, err
	}
	return f, func() { _ = b.Close() }, nil
}

func (s Served) open(b *store.Blob, off, length int64) (*os.File, error) {
	if err := b.EnsureVerified(off, length); err != nil {
		if errors.Is(err, piece.ErrMismatch) {
			s.peer.lost(b.Digest())
		}
		return nil, fmt.Errorf("%w: %w", piece.ErrAbsent, err)
	}
	return b.File()
}

// Groups implements transfer.Blobs.
func (s Served) Groups(d digest.Digest, i piece.Index) ([]piece.Digest, error) {
	b, err := s.peer.store.Get(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if t := s.peer.lookup(d); !b.Vouched() && (t == nil || t.mapped.Load()) {
		return nil, fmt.Errorf("group digests of %s, which nobody vouched for: %w", d, piece.ErrAbsent)
	}
	return b.Groups(i)
}

// Suspect implements transfer.Blobs.
func (s Served) Suspect(d digest.Digest, i piece.Index) error {
	b, err := s.peer.store.Get(d)
	if err != nil {
		return err
	}
	defer b.Close()
	if !b.Recheck(i) {
		s.peer.lost(d)
	}
	return nil
}

// lost has a piece of the blob that was bad on the disk fetched again, or at least no longer announced.
func (p *Peer) lost(d digest.Digest) {
	p.log.Warn("piece on disk was bad", "digest", d)
	if t := p.lookup(d); t == nil || !t.post(t.resync) {
		p.announce(d)
	}
}

// Watch implements transfer.Blobs. A seed that is asked for a blob it has not begins to fetch it, and so does any host that is told to. Who
// comes to watch is a neighbour from then on.
func (s Served) Watch(ctx context.Context, d digest.Digest, raw json.RawMessage) (transfer.Haves, error) {
	haves, err := s.watch(ctx, d, raw)
	addr, ok := decodeVisitor(raw)
	if err != nil || !ok {
		return haves, err
	}
	s.peer.tell(d.String(), func(t *task) { t.visited(addr) })
	s.peer.watchers.add(d, addr)
	return &watched{Haves: haves, all: s.peer.watchers, digest: d, addr: addr, introduce: fetches(raw)}, nil
}

// watch begins a task of a blob that a seed is asked for and has not. What it fetches is decided by the scheduler's leases, and by who asks
// when there is none.
func (s Served) watch(ctx context.Context, d digest.Digest, raw json.RawMessage) (transfer.Haves, error) {
	p := s.peer
	fetch := p.cfg.Host.Seed || fetches(raw)
	b, err := p.store.Get(d)
	if err == nil && (b.Complete() || !fetch || p.lookup(d) != nil && !fetches(raw)) {
		return b, nil
	}
	if err == nil {
		_ = b.Close() // a reference for reading: there is nothing to lose
	}
	if !fetch {
		return nil, err
	}
	blob, err := decodeBlob(d.String(), raw)
	if err != nil {
		return nil, err
	}
	if blob.Origin.none() {
		return nil, fmt.Errorf("%s, which only hosts with a reader of their own read: %w", d, piece.ErrAbsent)
	}
	r, err := p.Open(ctx, blob, "")
	if err != nil {
		return nil, err
	}
	if fetches(raw) {
		r.Prefetch()
		return ordered{followed{r}}, nil
	}
	return followed{r}, nil
}

// followed keeps a seed's task alive for as long as somebody watches it.
type followed struct{ *Reader }

func (f followed) Have() *piece.Set         { return f.blob.Have() }
func (f followed) Changed() <-chan struct{} { return f.blob.Changed() }

// ordered is what somebody asked this host to fetch, who hears why that fails.
type ordered struct{ followed }

// Failure implements transfer.Failer.
func (o ordered) Failure() error {
	_, err := o.task.failure()
	return err
}

// unreachableFor is how long a host that did not answer is passed over as a substitute for the scheduler.
const unreachableFor = 5 * time.Second

func (p *Peer) markUnreachable(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.silent, func(_ string, at time.Time) bool { return time.Since(at) > unreachableFor })
	p.silent[addr] = time.Now()
}

func (p *Peer) unreachable(addr string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.silent[addr]
	return ok && time.Since(at) <= unreachableFor
}

// isSeed reports whether the scheduler named the host at addr as a seed.
func (p *Peer) isSeed(addr string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.seeds, func(h api.Host) bool { return h.Addr == addr })
}

// maxNeighbours is how many hosts of a list a task exchanges pieces with.
const maxNeighbours = 16

// neighbours draws hosts of the list.
func (p *Peer) neighbours() []api.Host {
	p.mu.Lock()
	hosts := slices.Clone(p.seeds)
	p.mu.Unlock()
	hosts = slices.DeleteFunc(hosts, func(h api.Host) bool { return h.ID == p.cfg.Host.ID })
	rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	return hosts[:min(len(hosts), maxNeighbours)]
}

// Seeds returns the addresses of the other seeds the scheduler named last.
func (p *Peer) Seeds() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, h := range p.seeds {
		if h.ID != p.cfg.Host.ID {
			out = append(out, h.Addr)
		}
	}
	return out
}
