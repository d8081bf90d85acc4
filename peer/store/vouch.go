package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/zeebo/blake3"

	"github.com/shoal-project/shoal/peer/piece"
)

// wholeName is a file in a blob's folder that says that the whole blob had its own digest. Pieces alone do not say that: they
// are right by the word of whoever told their digests. It holds the digest of theirs, so that it vouches for no others, which a power failure
// may leave beside it.
const wholeName = "whole"

// Vouch notes that the bytes of the whole blob, which is complete, were checked against its own digest. Any later Write revokes it.
func (b *Blob) Vouch() error {
	b.session.unvouched.Store(false) // before there is anything to revoke
	sum, err := b.session.sum(b.entry.layout)
	if err == nil {
		err = b.session.dir.WriteFile(wholeName, sum[:], 0o600)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", b.entry.digest, noSpace(err))
	}
	return nil
}

// Vouched reports whether the blob is complete and Vouch was called since the last Write.
func (b *Blob) Vouched() bool { return b.session.vouched(b.entry.layout) && b.Complete() }

func (s *session) vouched(l piece.Layout) bool {
	said, err := s.dir.ReadFile(wholeName)
	if err != nil {
		return false
	}
	if s.own.Load() {
		return true
	}
	sum, err := s.sum(l)
	if err != nil || string(said) != string(sum[:]) {
		return false
	}
	s.own.Store(true) // until it is revoked, and what comes after that is this process's word
	return true
}

// sum returns the digest of the pieces' digests in the index.
func (s *session) sum(l piece.Layout) (sum piece.Digest, err error) {
	h := blake3.New()
	_, err = io.Copy(h, io.NewSectionReader(s.index, headerSize, int64(l.Count())*digestSize))
	copy(sum[:], h.Sum(nil))
	return sum, err
}

// unvouch revokes Vouch.
func (s *session) unvouch() error {
	if s.unvouched.Load() {
		return nil
	}
	if err := s.dir.Remove(wholeName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.unvouched.Store(true)
	return nil
}
