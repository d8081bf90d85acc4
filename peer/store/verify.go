package store

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/shoal-project/shoal/peer/piece"
)

// EnsureVerified returns nil when every byte of [off, off+length) is held and was verified by this process within Config.Reverify.
// Pieces that an earlier process wrote are read and hashed on their first use, others when that time has passed. One that no longer has its digests is dropped and
// counted, and the error answers piece.ErrMismatch; the next ones are checked all the same, so that one call finds up to
// eight that have to be fetched again. A missing piece is piece.ErrAbsent. A range that is not within the blob
// is an error of neither class.
func (b *Blob) EnsureVerified(off, length int64) error {
	e := b.entry
	if off < 0 || length < 0 || off > e.layout.Size-length {
		return fmt.Errorf("%s: bytes [%d, %d) are not within its %d bytes", e.digest, off, off+length, e.layout.Size)
	}
	var errs []error
	first, end := e.layout.Span(off, length)
	for i := first; i < end && len(errs) < maxErrors; i++ {
		if _, verified := b.status(i); verified {
			continue
		}
		if err := b.verify(i, false); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (b *Blob) status(i piece.Index) (held, verified bool) {
	return b.entry.status(i, b.store.cfg.now(), b.store.cfg.Reverify)
}

// maxErrors bounds the error of a range with many pieces missing.
const maxErrors = 8

// Recheck verifies piece i against its group digests even if that was done before, and reports whether it is held
// afterwards. A piece that cannot be read is dropped as a bad one is.
func (b *Blob) Recheck(i piece.Index) (held bool) { return b.verify(i, true) == nil }

// verify reads piece i back and drops it when it is bad. Unless forced it trusts what another caller has just verified.
func (b *Blob) verify(i piece.Index, force bool) error {
	e := b.entry
	defer e.lockPiece(i)()
	held, verified := b.status(i)
	if !held {
		return b.absent(i)
	}
	if verified && !force {
		return nil
	}
	buf := b.store.buffers.Get().(*[piece.GroupSize]byte)
	err := b.session.check(e.layout, i, buf)
	b.store.buffers.Put(buf)
	_, length := e.layout.Range(i)
	b.store.metrics.verified.Add(float64(length))
	if err == nil {
		e.setVerified(i, b.store.cfg.now())
		return nil
	}
	// Bytes that cannot be read (a bad sector) are as lost as flipped ones; both are fetched again.
	b.store.metrics.verifyFails.Inc()
	b.store.log.Warn("piece on disk is bad and was dropped", "digest", e.digest, "piece", int(i), "error", err)
	e.remove(i)
	return errors.Join(fmt.Errorf("%s: %w", e.digest, err), b.session.mark(i, piece.Digest{}))
}

func newGroupBuffer() any { return new([piece.GroupSize]byte) }

// check hashes piece i as it is on disk, group by group, with buf to read into.
func (s *session) check(l piece.Layout, i piece.Index, buf *[piece.GroupSize]byte) error {
	groups, err := s.readGroups(l, i)
	if err != nil {
		return unreadable(i, err)
	}
	first, count := l.GroupRange(i)
	for g := range count {
		off := int64(first+g) * piece.GroupSize
		data := buf[:min(piece.GroupSize, l.Size-off)]
		if _, err := s.data.ReadAt(data, off); err != nil {
			return unreadable(i, err)
		}
		if got := piece.HashGroup(data); got != groups[g] {
			return &piece.MismatchError{Unit: "group", Index: piece.Index(first + g), Want: groups[g].String(), Got: got.String()}
		}
	}
	return nil
}

// unreadable makes a read error answer piece.ErrMismatch.
func unreadable(i piece.Index, err error) error {
	return errors.Join(&piece.MismatchError{Unit: "piece", Index: i, Want: "readable bytes", Got: "a read error"}, err)
}

func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	return err
}
