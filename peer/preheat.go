package peer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/transfer"
	"github.com/shoal-project/shoal/scheduler/api"
)

// errWarm ends the watch of a host that has everything.
var errWarm = errors.New("everything is held")

// errFailed ends the watch of a host that says it cannot have the blob.
var errFailed = errors.New("it cannot be had")

// Find returns the address of the piece server of a host of the cluster, which is named by that address or by its ID. A host is one whom a
// scheduler knows now, or the list of a cluster without one: anybody else who is asked for something would be shown the cluster's token.
func (p *Peer) Find(ctx context.Context, host string) (addr string, err error) {
	p.mu.Lock()
	hosts := append(slices.Clone(p.seeds), p.cfg.Host)
	p.mu.Unlock()
	is := func(h api.Host) bool { return h.ID == host || h.Addr == host }
	if i := slices.IndexFunc(hosts, is); i >= 0 {
		return hosts[i].Addr, nil
	}
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	var failed error
	for _, l := range p.linked() {
		more, err := l.client.Hosts(ctx)
		if i := slices.IndexFunc(more, is); i >= 0 {
			return more[i].Addr, nil
		}
		if err != nil {
			failed = err
		}
	}
	if failed != nil {
		return "", fmt.Errorf("node %q is not known, and not all schedulers answer: %w: %w", host, failed, piece.ErrTransient)
	}
	return "", fmt.Errorf("node %q is no running node of this cluster; give its name, or the HOST:PORT that it advertises for pieces: %w", host, piece.ErrAbsent)
}

// findTimeout bounds how long schedulers are asked for a host.
const findTimeout = 5 * time.Second

// Preheat has the host at addr fetch the blob and returns when it holds all of it. told hears how many bytes it holds, whenever that
// changes. A host that gains nothing for the patience is an error, and so is one that says it cannot have the blob; the errors have a class of
// package piece. So is a blob that only readers' own hosts can read.
func (p *Peer) Preheat(ctx context.Context, addr string, b Blob, patience time.Duration, told func(held int64)) error {
	if err := b.validate(); err != nil {
		return err
	}
	if b.Origin.none() {
		return fmt.Errorf("reading it takes a secret, which no other host is told: %w", piece.ErrDenied)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(patience, func() { cancel(fmt.Errorf("nothing came there for %v: %w", patience, piece.ErrTransient)) })
	defer watchdog.Stop()
	w := warming{layout: piece.NewLayout(b.Size), last: -1, told: func(held int64) { watchdog.Reset(patience); told(held) }}
	for {
		w.held = piece.NewSet(w.layout.Count())
		err := p.wire.Watch(ctx, addr, b.Digest, b.ask("", true), w.take)
		switch {
		case errors.Is(err, errWarm):
			return nil
		case errors.Is(err, errFailed):
			return fmt.Errorf("host %s: %w", addr, w.failed)
		case ctx.Err() != nil && w.failed != nil:
			return fmt.Errorf("host %s: %w, after: %w", addr, context.Cause(ctx), w.failed)
		case ctx.Err() != nil:
			return fmt.Errorf("host %s: %w", addr, context.Cause(ctx))
		case errors.Is(err, piece.ErrDenied):
			return err
		}
		select { // the host may restart
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("host %s: %w, after: %w", addr, context.Cause(ctx), err)
		}
	}
}

// warming is how far a host has come that was asked to fetch a blob.
type warming struct {
	layout piece.Layout
	held   *piece.Set
	last   int64 // bytes it held when that was told
	failed error // what it said last of why it has no more
	told   func(held int64)
}

// take takes what the host says, and ends the watch when that was the last word.
func (w *warming) take(h transfer.Have) error {
	if h.All != nil && h.All.Len() == w.held.Len() {
		w.held = h.All.Clone()
	}
	for _, i := range h.Added {
		if int(i) < w.held.Len() {
			w.held.Add(i)
		}
	}
	for _, i := range h.Removed {
		if int(i) < w.held.Len() {
			w.held.Remove(i)
		}
	}
	if n := heldBytes(w.layout, w.held); n != w.last {
		w.last = n
		w.told(n)
	}
	if h.Failed != nil {
		w.failed = h.Failed
	}
	switch {
	case w.held.Full():
		return errWarm
	case h.Failed != nil && !errors.Is(h.Failed, piece.ErrTransient):
		return errFailed
	}
	return nil
}

func heldBytes(l piece.Layout, held *piece.Set) (n int64) {
	for i := range held.All() {
		_, length := l.Range(i)
		n += length
	}
	return n
}
