package lazy

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// origins is where the bytes of a device come from: the sources of all mounts that have it, since one of them may be refused, or away, while another one
// is not. It is a Source, and safe for concurrent use.
type origins struct {
	mu sync.Mutex // guards both, which are of one length, and have one at the least
	of []Source
	by []*mount
}

func newOrigins(first Source) *origins { return &origins{of: []Source{first}, by: []*mount{nil}} }

// join adds the source of a mount. The first mount's is there already.
func (s *origins) join(m *mount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case slices.Contains(s.by, m):
	case s.by[0] == nil:
		s.by[0] = m
	default:
		s.of, s.by = append(s.of, m.image.Blobs), append(s.by, m)
	}
}

// leave takes the source of a mount away.
func (s *origins) leave(m *mount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.by, m); i >= 0 && len(s.by) > 1 {
		s.of, s.by = slices.Delete(s.of, i, i+1), slices.Delete(s.by, i, i+1)
	}
}

// failed has the next one asked first.
func (s *origins) failed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of, s.by = append(s.of[1:], s.of[0]), append(s.by[1:], s.by[0])
}

func (s *origins) list() []Source {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.of)
}

// Open implements Source: by the first one that can.
func (s *origins) Open(ctx context.Context, b Blob) (Reader, error) {
	var errs []error
	for _, source := range s.list() {
		r, err := source.Open(ctx, b)
		if err == nil {
			return r, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
