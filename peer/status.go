package peer

import (
	"cmp"
	"context"
	"slices"

	"github.com/opencontainers/go-digest"
)

// TaskStatus is the state of a live task.
type TaskStatus struct {
	ID        digest.Digest  `json:"id"`
	Size      int64          `json:"size"` // bytes
	Held      int64          `json:"held"` // bytes
	Readers   int            `json:"readers"`
	Waiting   int            `json:"waiting"`             // readers that wait for bytes not held yet
	Scheduler string         `json:"scheduler,omitempty"` // that governs it; empty without one
	Origin    int64          `json:"origin"`              // bytes read there since the task began
	Parents   []ParentStatus `json:"parents"`
	Failed    string         `json:"failed,omitempty"` // what its readers were told
}

// ParentStatus is what a task has from another host.
type ParentStatus struct {
	Addr  string `json:"addr"`  // of its piece server
	Live  bool   `json:"live"`  // it is being watched
	Bytes int64  `json:"bytes"` // from it since the task began
}

// LinkStatus is a scheduler and whether there is a session with it.
type LinkStatus struct {
	URL   string `json:"url"`
	Live  bool   `json:"live"`
	Error string `json:"error,omitempty"` // why there is none
}

// Tasks returns the state of the live tasks, ordered by identity. A task that ends meanwhile is left out.
func (p *Peer) Tasks(ctx context.Context) []TaskStatus {
	var out []TaskStatus
	for _, t := range p.all() {
		answer := make(chan TaskStatus, 1)
		if !t.post(func() { answer <- t.status() }) {
			continue
		}
		select {
		case s := <-answer:
			out = append(out, s)
		case <-t.ending:
		case <-ctx.Done():
			return out
		}
	}
	slices.SortFunc(out, func(a, b TaskStatus) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Links returns the schedulers in the order they were given.
func (p *Peer) Links() []LinkStatus {
	var out []LinkStatus
	for _, l := range p.linked() {
		out = append(out, l.status())
	}
	return out
}

// status describes the task; in its loop.
func (t *task) status() TaskStatus {
	t.peer.mu.Lock()
	refs := t.refs
	t.peer.mu.Unlock()
	s := TaskStatus{ID: t.blob.Digest, Size: t.blob.Size, Held: t.st.Held(), Readers: refs, Waiting: len(t.readers), Origin: t.fromSource,
		Parents: []ParentStatus{}}
	for _, l := range t.peer.linked() {
		if live := l.live(); live != nil && live == t.session {
			s.Scheduler = l.client.URL()
		}
	}
	if _, err := t.failure(); err != nil {
		s.Failed = err.Error()
	}
	for id := range t.watches {
		s.Parents = append(s.Parents, ParentStatus{Addr: string(id), Live: true, Bytes: t.given[id]})
	}
	for id, n := range t.given {
		if t.watches[id] == nil {
			s.Parents = append(s.Parents, ParentStatus{Addr: string(id), Bytes: n})
		}
	}
	slices.SortFunc(s.Parents, func(a, b ParentStatus) int {
		return cmp.Or(-cmp.Compare(a.Bytes, b.Bytes), cmp.Compare(a.Addr, b.Addr))
	})
	return s
}
