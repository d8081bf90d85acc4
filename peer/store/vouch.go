package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// wholeName is an empty file in a blob's folder that says that the whole blob had its own digest. Pieces alone do not say that: they
// are right by the word of whoever told their digests.
const wholeName = "whole"

// Vouch notes that the bytes of the whole blob, which is complete, were checked against its own digest. Any later Write revokes it.
func (b *Blob) Vouch() error {
	b.session.unvouched.Store(false) // before there is anything to revoke
	f, err := b.session.dir.OpenFile(wholeName, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("%s: %w", b.entry.digest, noSpace(err))
	}
	return f.Close()
}

// Vouched reports whether the blob is complete and Vouch was called since the last Write.
func (b *Blob) Vouched() bool {
	_, err := b.session.dir.Stat(wholeName)
	return err == nil && b.Complete()
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
