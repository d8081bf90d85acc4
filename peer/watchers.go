package peer

import (
	"cmp"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/transfer"
)

// watchers knows who watches what this host holds. Hosts that have no scheduler and ask this one to fetch in its place learn of each other
// by it. Its methods may be called concurrently.
type watchers struct {
	mu sync.Mutex
	of map[digest.Digest]map[string]int // streams by address
	// changes counts who came and went.
	changes uint64
}

func newWatchers() *watchers { return &watchers{of: map[digest.Digest]map[string]int{}} }

func (w *watchers) add(d digest.Digest, addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of[d] == nil {
		w.of[d] = map[string]int{}
	}
	w.of[d][addr]++
	w.changes++
}

func (w *watchers) remove(d digest.Digest, addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changes++
	if w.of[d][addr]--; w.of[d][addr] <= 0 {
		delete(w.of[d], addr)
	}
	if len(w.of[d]) == 0 {
		delete(w.of, d)
	}
}

// besides returns some of those who watch a blob besides the host at addr, maxNeighbours at the most: another choice for each host, and
// nearly the same when one comes or goes. It reports false, and nothing, if nobody has since the count of changes was as given; it returns the new one.
func (w *watchers) besides(d digest.Digest, addr string, since uint64) (addrs []string, changes uint64, changed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changes == since {
		return nil, since, false
	}
	others := make([]string, 0, len(w.of[d]))
	for other := range w.of[d] {
		if other != addr {
			others = append(others, other)
		}
	}
	slices.SortFunc(others, func(a, b string) int {
		return cmp.Or(cmp.Compare(rendezvous(b, addr), rendezvous(a, addr)), cmp.Compare(a, b))
	})
	return others[:min(len(others), maxNeighbours)], w.changes, true
}

// watched is what a host with a known address is told.
type watched struct {
	transfer.Haves
	all       *watchers
	digest    digest.Digest
	addr      string
	introduce bool // the host has no scheduler

	// What it was told last, as of which count of changes. Watchers is called by one stream.
	told    []string
	changes uint64
}

// Watchers implements transfer.Introducer.
func (w *watched) Watchers() []string {
	if !w.introduce {
		return nil
	}
	if told, changes, changed := w.all.besides(w.digest, w.addr, w.changes); changed {
		w.told, w.changes = told, changes
	}
	return w.told
}

func (w *watched) Close() error {
	w.all.remove(w.digest, w.addr)
	return w.Haves.Close()
}
