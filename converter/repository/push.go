package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// pushChunk is how many bytes one request of an upload carries whose bytes can be had again.
	pushChunk = 64 << 20
	// smallestChunk is where an upload ends that the registry, or a proxy before it, finds too large.
	smallestChunk = 1 << 20
	cancelTimeout = 5 * time.Second
)

// Blob is a blob to be brought somewhere.
type Blob struct {
	ocispec.Descriptor
	// From names a repository that may have the blob. If it is one of the same registry, nothing is uploaded.
	From *name.Repository
	// Open returns the bytes from offset on. It is called again after a failure, never twice at once.
	Open func(ctx context.Context, offset int64) (io.ReadCloser, error)
	// Progress, if not nil, is told of bytes that are on their way; n is negative for those that have to be sent again.
	Progress func(n int64)
}

// Outcome is what became of a blob.
type Outcome string

// The outcomes.
const (
	Present Outcome = "present" // it was there
	Mounted Outcome = "mounted" // it was in another repository of the registry
	Sent    Outcome = "sent"
)

// Push brings a blob into the repository, unless it is there.
func (r *Registry) Push(ctx context.Context, b Blob) (Outcome, error) {
	if b.Progress == nil {
		b.Progress = func(int64) {}
	}
	var from []name.Repository
	if b.From != nil && (b.From.RegistryStr() != r.repo.RegistryStr() || b.From.Name() == r.repo.Name()) {
		b.From = nil
	}
	if b.From != nil {
		from = append(from, *b.From)
	}
	client, err := r.session(ctx, writing, from...)
	if err != nil {
		return "", err
	}
	found, err := r.has(ctx, client, b.Digest, b.Size)
	if err != nil || found {
		if found {
			b.Progress(b.Size)
		}
		return Present, err
	}
	p := &pusher{r: r, client: client, blob: b, chunk: pushChunk, tries: tries{retry: r.cfg.Retry}}
	outcome, err := p.run(ctx)
	if err != nil {
		b.Progress(-p.told)
		return "", err
	}
	b.Progress(b.Size - p.told)
	return outcome, nil
}

// pusher is one Push under way.
type pusher struct {
	r      *Registry
	client *http.Client
	blob   Blob
	tries  tries
	chunk  int64

	up       *upload
	acked    int64 // bytes the registry has
	told     int64 // bytes that were reported
	dirty    bool  // a request of the session failed
	reason   error // the last failure
	restarts int
}

func (p *pusher) run(ctx context.Context) (Outcome, error) {
	for {
		outcome, err := p.attempt(ctx)
		if err == nil {
			return outcome, nil
		}
		p.dirty = true
		again := p.up != nil && (p.smaller(err) || lost(err))
		if errors.Is(err, ErrLost) && p.reason != nil {
			err = p.reason // it says more than that the session has ended by it
		}
		p.reason = err
		if again {
			if p.restarts++; p.restarts < p.r.cfg.Retry.Attempts {
				p.r.cfg.Logger.WarnContext(ctx, "upload begins anew", "digest", p.blob.Digest.String(), "error", err)
				err = &retryable{err}
			}
			p.forget(ctx)
		}
		p.tell(p.acked)
		if err := p.tries.again(ctx, err); err != nil {
			p.forget(ctx)
			return "", err
		}
	}
}

// attempt goes as far as it can.
func (p *pusher) attempt(ctx context.Context) (Outcome, error) {
	if p.up == nil {
		up, mounted, err := p.r.startUpload(ctx, p.client, p.blob.Digest, p.blob.From)
		if status(err) != 0 && p.blob.From != nil { // some registries refuse what they cannot mount
			p.blob.From = nil
			up, mounted, err = p.r.startUpload(ctx, p.client, p.blob.Digest, nil)
		}
		if err != nil || mounted {
			return Mounted, err
		}
		p.up, p.acked, p.dirty = up, 0, false
	}
	if p.dirty {
		at, err := p.up.status(ctx)
		if err != nil {
			return "", err
		}
		if at > p.blob.Size {
			return "", fmt.Errorf("%w: the registry says it has %d bytes of %d", ErrLost, at, p.blob.Size)
		}
		p.acked, p.dirty = at, false
		p.tell(at)
	}
	if err := p.send(ctx); err != nil {
		return "", err
	}
	err := p.up.commit(ctx, p.blob.Digest)
	if err != nil && status(err) == 0 || status(err) >= http.StatusInternalServerError {
		// It may have been done all the same.
		if found, herr := p.r.has(ctx, p.client, p.blob.Digest, p.blob.Size); herr == nil && found {
			return Sent, nil
		}
	}
	return Sent, err
}

// send brings what the registry has not yet, in as many requests as needed.
func (p *pusher) send(ctx context.Context) error {
	if p.acked == p.blob.Size {
		return nil
	}
	body, err := p.blob.Open(ctx, p.acked)
	if err != nil {
		return &ownError{err}
	}
	source := &sourceReader{r: body, p: p}
	defer source.close()
	for p.acked < p.blob.Size {
		n := min(max(p.chunk, p.up.minChunk), p.blob.Size-p.acked)
		if err := p.up.patch(ctx, io.LimitReader(source, n), p.acked, n); err != nil {
			return source.blame(err)
		}
		p.acked += n
		p.tries.moved()
	}
	return nil
}

// smaller reports whether err asks for smaller requests, and makes them smaller.
func (p *pusher) smaller(err error) bool {
	if status(err) != http.StatusRequestEntityTooLarge || p.chunk <= smallestChunk {
		return false
	}
	p.chunk = max(min(p.chunk, p.blob.Size)/4, smallestChunk)
	return true
}

// forget gives the session up; the next attempt opens another one.
func (p *pusher) forget(ctx context.Context) {
	if p.up != nil {
		p.up.cancel(ctx)
	}
	p.up, p.acked = nil, 0
}

// tell corrects what was reported.
func (p *pusher) tell(total int64) {
	p.blob.Progress(total - p.told)
	p.told = total
}

// sourceReader reads the bytes to be sent and remembers what went wrong with them. The HTTP client may still read for a request that has
// failed, so what it does is guarded.
type sourceReader struct {
	p *pusher

	mu  sync.Mutex
	r   io.ReadCloser // guarded by mu; nil once closed
	err error         // guarded by mu
}

func (s *sourceReader) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.r == nil {
		return 0, io.ErrClosedPipe
	}
	n, err := s.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	s.p.told += int64(n)
	s.p.blob.Progress(int64(n))
	return n, err
}

func (s *sourceReader) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.r != nil {
		s.r.Close()
		s.r = nil
	}
}

// blame returns what went wrong with the bytes, if it was that, and else err.
func (s *sourceReader) blame(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return &ownError{s.err}
	}
	return err
}
