package daemon

import (
	"cmp"
	"net"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/cmd/internal/local"
)

// maxUploads bounds how many pairs of host and blob are remembered.
const maxUploads = 4096

// uploads counts what was given to whom since the node began. It is safe for concurrent use.
type uploads struct {
	mu    sync.Mutex // guards bytes
	bytes map[upload]int64
}

type upload struct {
	id   digest.Digest
	host string
}

func newUploads() *uploads { return &uploads{bytes: map[upload]int64{}} }

// add notes that remote, HOST:PORT, got n bytes.
func (u *uploads) add(remote string, id digest.Digest, n int64) {
	host, _, err := net.SplitHostPort(remote)
	if err != nil || n == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	key := upload{id, host}
	if _, ok := u.bytes[key]; !ok && len(u.bytes) >= maxUploads {
		clear(u.bytes) // counts anew rather than grows
	}
	u.bytes[key] += n
}

// list returns what was given, most bytes first.
func (u *uploads) list() []local.Upload {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make([]local.Upload, 0, len(u.bytes))
	for k, n := range u.bytes {
		out = append(out, local.Upload{ID: k.id, Host: k.host, Bytes: n})
	}
	slices.SortFunc(out, func(a, b local.Upload) int {
		return cmp.Or(-cmp.Compare(a.Bytes, b.Bytes), cmp.Compare(a.Host, b.Host), cmp.Compare(a.ID, b.ID))
	})
	return out
}
