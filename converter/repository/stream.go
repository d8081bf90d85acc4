package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/opencontainers/go-digest"
)

// streamChunk is how many bytes of a blob that is read only once are held until the registry has them.
const streamChunk = 8 << 20

// Upload takes a blob whose digest is known only at its end. Write and Commit must not be called concurrently. An Upload ends
// with Commit or with Cancel; Cancel after Commit does nothing.
type Upload interface {
	Write(p []byte) (int, error)
	// Commit makes the blob visible under its digest; size is the number of bytes written.
	Commit(ctx context.Context, d digest.Digest, size int64) error
	// Cancel removes what was written.
	Cancel(ctx context.Context)
}

// Create begins an upload of a blob that can be read only once. While a part of 8 MiB is on its way the next one is filled;
// a part that could not be sent whole is sent again. The context bounds the whole upload. If the registry has lost the upload, Write or Commit
// returns an error of class ErrLost, and only its beginning anew helps.
func (r *Registry) Create(ctx context.Context) (Upload, error) {
	client, err := r.session(ctx, writing)
	if err != nil {
		return nil, err
	}
	s := &stream{r: r, client: client, size: streamChunk}
	s.ctx, s.cancel = context.WithCancel(ctx)
	if err := r.cfg.Retry.do(s.ctx, s.open); err != nil {
		s.cancel()
		return nil, err
	}
	s.size = int(min(max(s.up.minChunk, streamChunk), 4*streamChunk))
	s.fill = make([]byte, 0, s.size)
	return s, nil
}

// stream is an Upload to a registry. It lives no longer than the call its context belongs to.
type stream struct {
	ctx    context.Context
	cancel context.CancelFunc // of ctx
	r      *Registry
	client *http.Client
	up     *upload
	size   int

	fill   []byte     // what the next request will carry
	spare  []byte     // what the last one carried, once it ended
	sent   int64      // bytes handed to requests
	flying chan error // of the request under way; nil if there is none
	err    error
	ended  bool
}

func (s *stream) open(ctx context.Context) (err error) {
	s.up, _, err = s.r.startUpload(ctx, s.client, "", nil)
	return err
}

func (s *stream) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 && s.err == nil {
		n := min(len(p), s.size-len(s.fill))
		s.fill = append(s.fill, p[:n]...)
		p, written = p[n:], written+n
		if len(s.fill) == s.size {
			s.launch()
		}
	}
	return written, s.err
}

// launch sends what was filled, once the request before it has ended.
func (s *stream) launch() {
	if s.land(); s.err != nil {
		return
	}
	part, offset, done := s.fill, s.sent, make(chan error, 1)
	s.sent += int64(len(part))
	s.fill, s.spare = s.spare[:0], part
	if s.fill == nil {
		s.fill = make([]byte, 0, s.size)
	}
	s.flying = done
	go func() { done <- s.deliver(part, offset) }() // land waits for it
}

// land waits for the request under way.
func (s *stream) land() {
	if s.flying == nil {
		return
	}
	err := <-s.flying
	s.flying = nil
	if s.err == nil && err != nil {
		s.err = err
	}
}

// deliver brings one part to the registry, which has all before it.
func (s *stream) deliver(part []byte, offset int64) error {
	t := tries{retry: s.r.cfg.Retry}
	at, end := offset, offset+int64(len(part))
	for at < end {
		err := s.up.patch(s.ctx, bytes.NewReader(part[at-offset:]), at, end-at)
		if err == nil {
			return nil
		}
		for err != nil {
			if lost(err) {
				return lostAt(offset, err)
			}
			if err := t.again(s.ctx, err); err != nil {
				return err
			}
			at, err = s.up.status(s.ctx)
		}
		if at < offset || at > end {
			return lostAt(offset, fmt.Errorf("the registry says it has %d bytes", at))
		}
	}
	return nil
}

func lostAt(offset int64, err error) error {
	if errors.Is(err, ErrLost) {
		return err
	}
	return fmt.Errorf("%w after %d bytes: %w", ErrLost, offset, err)
}

func (s *stream) Commit(ctx context.Context, d digest.Digest, size int64) error {
	if len(s.fill) > 0 && s.err == nil {
		s.launch()
	}
	if s.land(); s.err != nil {
		return s.err
	}
	if s.sent != size {
		return &ownError{fmt.Errorf("blob %s of %d bytes: %d were written", d, size, s.sent)}
	}
	err := s.r.cfg.Retry.do(ctx, func(ctx context.Context) error {
		err := s.up.commit(ctx, d)
		if err == nil || status(err) == http.StatusBadRequest {
			return err
		}
		if found, herr := s.r.has(ctx, s.client, d, size); herr == nil && found {
			return nil // it was done all the same
		}
		return err
	})
	s.ended = err == nil
	return err
}

func (s *stream) Cancel(ctx context.Context) {
	s.cancel() // what is under way is not wanted
	s.land()
	if !s.ended {
		s.ended = true
		s.up.cancel(ctx)
	}
}
