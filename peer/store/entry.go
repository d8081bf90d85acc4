package store

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
)

// phase is where a blob is in the store's table; reserved, partial and complete are told apart by its pieces.
type phase int

const (
	ready     phase = iota
	reserving       // its folder is being made
	evicting        // its folder is being removed
)

// entry is one blob, shared by all references to it.
type entry struct {
	digest digest.Digest
	layout piece.Layout

	// Guarded by Store.mu.
	phase   phase
	settled chan struct{} // closed when reserving or evicting has ended
	refs    int
	lastUse time.Time
	session *session // open files while refs > 0

	mu       sync.Mutex // guards the fields below; may be taken while Store.mu is held, never the other way round
	held     *piece.Set
	bytes    int64                         // of the pieces held
	verified *piece.Set                    // pieces this process wrote or has read back since fresh
	fresh    time.Time                     // since when; zero before the first
	busy     map[piece.Index]chan struct{} // pieces being written or verified
	changed  chan struct{}                 // nil while nobody watches
	gone     bool                          // removed from the store
}

func newEntry(d digest.Digest, l piece.Layout, held *piece.Set) *entry {
	e := &entry{digest: d, layout: l, held: held, verified: piece.NewSet(l.Count()), busy: map[piece.Index]chan struct{}{}}
	if held == nil {
		e.held = piece.NewSet(l.Count())
	}
	for i := range e.held.All() {
		_, length := l.Range(i)
		e.bytes += length
	}
	return e
}

func (e *entry) have() *piece.Set {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.held.Clone()
}

func (e *entry) has(i piece.Index) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.held.Has(i)
}

// progress returns the bytes held and whether nothing is missing.
func (e *entry) progress() (held int64, complete bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.bytes, e.held.Full() && !e.gone
}

func (e *entry) watch() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.changed == nil {
		e.changed = make(chan struct{})
	}
	return e.changed
}

func (e *entry) broadcastLocked() {
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
}

// add marks piece i as held and, at this time, verified. It reports false when the blob has gone meanwhile.
func (e *entry) add(i piece.Index, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return false
	}
	e.verifiedLocked(i, now)
	if e.held.Add(i) {
		_, length := e.layout.Range(i)
		e.bytes += length
		e.broadcastLocked()
	}
	return true
}

func (e *entry) remove(i piece.Index) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.verified.Remove(i)
	if e.held.Remove(i) {
		_, length := e.layout.Range(i)
		e.bytes -= length
		e.broadcastLocked()
	}
}

// setGone makes the blob hold nothing for those who still have it open.
func (e *entry) setGone() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gone, e.bytes = true, 0
	e.held, e.verified = piece.NewSet(e.layout.Count()), piece.NewSet(e.layout.Count())
	e.broadcastLocked()
}

func (e *entry) isGone() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.gone
}

// status reports whether piece i is held, and whether it was verified since it was written or found, not longer than the given time ago.
func (e *entry) status(i piece.Index, now time.Time, within time.Duration) (held, verified bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now.Sub(e.fresh) > within && e.verified.Count() > 0 {
		e.verified = piece.NewSet(e.layout.Count())
	}
	return e.held.Has(i), e.verified.Has(i)
}

// sound reports whether all pieces are held and were verified not longer than the given time ago.
func (e *entry) sound(now time.Time, within time.Duration) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.held.Full() && e.verified.Full() && now.Sub(e.fresh) <= within && !e.gone
}

func (e *entry) setVerified(i piece.Index, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.held.Has(i) {
		e.verifiedLocked(i, now)
	}
}

// verifiedLocked notes that piece i is verified. The oldest of a blob's pieces decides when all are to be hashed again: one time is
// kept, not one for each.
func (e *entry) verifiedLocked(i piece.Index, now time.Time) {
	if e.verified.Count() == 0 {
		e.fresh = now
	}
	e.verified.Add(i)
}

// lockPiece waits until nobody writes or verifies piece i, and keeps others from it until the returned function is called.
func (e *entry) lockPiece(i piece.Index) (unlock func()) {
	mine := make(chan struct{})
	for {
		e.mu.Lock()
		other := e.busy[i]
		if other == nil {
			e.busy[i] = mine
			e.mu.Unlock()
			break
		}
		e.mu.Unlock()
		<-other
	}
	return func() {
		e.mu.Lock()
		delete(e.busy, i)
		e.mu.Unlock()
		close(mine)
	}
}
