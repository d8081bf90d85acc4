package store

import (
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/peer/piece"
)

var (
	errRaced     = errors.New("another caller was first")
	errNoVictim  = errors.New("every other blob is in use or pinned")
	errOverQuota = errors.New("more than the store may keep")
)

// reserve makes room for a new blob and lays it out. It returns errRaced when another caller came first.
func (s *Store) reserve(d digest.Digest, size int64) (*Blob, error) {
	e := newEntry(d, piece.NewLayout(size), nil)
	if err := s.claim(e); err != nil {
		if !errors.Is(err, errRaced) {
			s.metrics.noSpace.Inc()
		}
		return nil, fmt.Errorf("%s: %w", d, err)
	}
	err := s.makeFolder(d, e.layout)
	for s.retryAfterEviction(err) {
		err = s.makeFolder(d, e.layout)
	}
	s.mu.Lock()
	close(e.settled)
	if err != nil {
		s.forgetLocked(e)
		s.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", d, noSpace(err))
	}
	e.phase = ready
	return s.referLocked(e)
}

// claim enters e in phase reserving, after evicting until it fits.
func (s *Store) claim(e *entry) error {
	return s.fit(e.layout.Size, func(fits bool) error {
		if s.closed || s.blobs[e.digest] != nil {
			return errRaced
		}
		if fits {
			e.phase, e.settled = reserving, make(chan struct{})
			s.blobs[e.digest] = e
			s.sizes += e.layout.Size
		}
		return nil
	})
}

// Reserve makes room for size bytes of files beside the blobs, which count against the same limits until Count takes them off. It evicts blobs
// for them. The error is ErrNoSpace when that is not enough, and ErrClosed.
func (s *Store) Reserve(size int64) error {
	err := s.fit(size, func(fits bool) error {
		if s.closed {
			return ErrClosed
		}
		if fits {
			s.beside += size
		}
		return nil
	})
	if errors.Is(err, ErrNoSpace) {
		s.metrics.noSpace.Inc()
	}
	return err
}

// Count adds size bytes of files beside the blobs that are on the disk whether there is room or not; a negative size takes off what has gone.
func (s *Store) Count(size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beside += size
}

// fit calls enter, under s.mu, until it fails or there is room for size bytes, which it takes then. It evicts in between.
func (s *Store) fit(size int64, enter func(fits bool) error) error {
	for {
		free, err := s.freeBytes()
		if err != nil {
			return err
		}
		s.mu.Lock()
		limit, evictable, used := s.limitLocked(free), s.evictableLocked(), s.sizes+s.beside
		fits := used+size <= limit
		err = enter(fits)
		s.mu.Unlock()
		switch {
		case err != nil || fits:
			return err
		case used-evictable+size > limit:
			return fmt.Errorf("%w: %w: its %d bytes and what is in use exceed %d bytes", ErrNoSpace, errOverQuota, size, limit)
		}
		if err := s.evictOne(); err != nil {
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
	}
}

// limitLocked returns how many bytes all blobs and what is beside them may have, when the file system has free bytes left.
func (s *Store) limitLocked(free int64) int64 {
	free += s.beside
	for _, e := range s.blobs {
		held, _ := e.progress()
		free += held
	}
	limit := free / 100 * int64(s.cfg.MaxPercent)
	if s.cfg.MaxBytes > 0 {
		limit = min(limit, s.cfg.MaxBytes)
	}
	return limit
}

func (s *Store) evictableLocked() int64 {
	var sum int64
	for _, e := range s.blobs {
		if e.phase == evicting || s.victimLocked(e) {
			sum += e.layout.Size
		}
	}
	return sum
}

// victimLocked reports whether e may be evicted.
func (s *Store) victimLocked(e *entry) bool {
	return e.phase == ready && e.refs == 0 && len(s.pins[e.digest]) == 0
}

// trim evicts until the blobs keep to the limits, which may be lower than those of the process that stored them. What is pinned stays.
func (s *Store) trim() error {
	for {
		free, err := s.freeBytes()
		if err != nil {
			return err
		}
		s.mu.Lock()
		over := s.sizes+s.beside > s.limitLocked(free) && s.evictableLocked() > 0
		s.mu.Unlock()
		if !over {
			return nil
		}
		if err := s.evictOne(); err != nil {
			return err
		}
	}
}

// freeBytes returns what the file system still has for us.
func (s *Store) freeBytes() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.lock.Fd()), &st); err != nil {
		return 0, fmt.Errorf("free space of the store: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// evictOne removes the least recently used blob that nobody has open, or waits for a removal that is under way.
func (s *Store) evictOne() error {
	s.mu.Lock()
	var victim *entry
	for _, e := range s.blobs {
		if e.phase == evicting {
			s.mu.Unlock()
			<-e.settled
			return nil
		}
		if s.victimLocked(e) && (victim == nil || e.lastUse.Before(victim.lastUse)) {
			victim = e
		}
	}
	if victim == nil {
		s.mu.Unlock()
		return errNoVictim
	}
	if err := s.removeLocked(victim); err != nil {
		return err
	}
	s.metrics.evictions.Inc()
	s.log.Info("blob evicted", "digest", victim.digest, "size", victim.layout.Size)
	return nil
}

// removeLocked takes e, which is ready, out of the store and off the disk. It unlocks s.mu.
func (s *Store) removeLocked(e *entry) error {
	e.phase, e.settled = evicting, make(chan struct{})
	s.mu.Unlock()
	err := s.removeFolder(e.digest)
	if err == nil {
		e.setGone()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	close(e.settled)
	if err != nil {
		e.phase = ready
		return fmt.Errorf("remove %s: %w", e.digest, err)
	}
	s.forgetLocked(e)
	return nil
}

func (s *Store) forgetLocked(e *entry) {
	delete(s.blobs, e.digest)
	s.sizes -= e.layout.Size
}

// retryAfterEviction reports whether err was a full disk and a blob could be evicted for another try.
func (s *Store) retryAfterEviction(err error) bool {
	return isFull(err) && s.evictOne() == nil
}

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// noSpace adds the class ErrNoSpace to the errors of a full disk.
func noSpace(err error) error {
	if isFull(err) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
