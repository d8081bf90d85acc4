package store

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/piece"
)

// Copy puts piece i together out of parts of other blobs and holds it when its digest is want, as Write does. The bytes do not pass
// through the process but to be hashed: a file system that can lets both blobs share them (reflinks), any other copies them itself. On an
// error the piece is not held. When the digest is another one, piece.ErrMismatch, the sources are read back too, and what is bad there is
// dropped. What another blob does not hold any more is piece.ErrAbsent.
func (b *Blob) Copy(i piece.Index, parts []chunkmap.Part, want piece.Digest) error {
	if err := b.copy(i, parts, want); err != nil {
		return fmt.Errorf("copy piece %d of %s: %w", i, b.entry.digest, err)
	}
	return nil
}

func (b *Blob) copy(i piece.Index, parts []chunkmap.Part, want piece.Digest) error {
	l := b.entry.layout
	if i < 0 || int(i) >= l.Count() {
		return fmt.Errorf("it has %d pieces", l.Count())
	}
	sources, err := b.openParts(parts)
	defer func() {
		for _, s := range sources {
			_ = s.Close() // a reference for reading: there is nothing to lose
		}
	}()
	if err != nil {
		return err
	}
	var sum int64
	for _, p := range parts {
		sum += p.Length
	}
	if _, length := l.Range(i); sum != length {
		return fmt.Errorf("parts of %d bytes, want %d", sum, length)
	}
	err = b.copyLocked(i, parts, sources, want)
	if errors.Is(err, piece.ErrMismatch) {
		for _, p := range parts {
			s := sources[p.Blob]
			for j, end := s.entry.layout.Span(p.Off, p.Length); j < end; j++ {
				s.Recheck(j)
			}
		}
	}
	return err
}

// openParts takes a reference to each source and makes sure that it holds its parts.
func (b *Blob) openParts(parts []chunkmap.Part) (map[digest.Digest]*Blob, error) {
	sources := map[digest.Digest]*Blob{}
	for _, p := range parts {
		s := sources[p.Blob]
		if s == nil {
			if p.Blob == b.entry.digest {
				return sources, errors.New("a part is in the blob itself")
			}
			var err error
			if s, err = b.store.Get(p.Blob); err != nil {
				return sources, err
			}
			sources[p.Blob] = s
		}
		if l := s.entry.layout; p.Off < 0 || p.Length <= 0 || p.Off > l.Size-p.Length {
			return sources, fmt.Errorf("bytes [%d,+%d) are not within the %d of %s", p.Off, p.Length, l.Size, p.Blob)
		} else if !holdsAll(s.Have(), l, p.Off, p.Length) {
			return sources, fmt.Errorf("bytes [%d,+%d) of %s: %w", p.Off, p.Length, p.Blob, piece.ErrAbsent)
		}
	}
	return sources, nil
}

// copyLocked is the part of Copy during which nobody else writes or verifies the piece.
func (b *Blob) copyLocked(i piece.Index, parts []chunkmap.Part, sources map[digest.Digest]*Blob, want piece.Digest) error {
	e := b.entry
	defer e.lockPiece(i)()
	if b.holds(i, want) {
		return nil
	}
	e.remove(i)
	if err := b.session.unvouch(); err != nil {
		return err
	}
	err := b.session.copyPiece(e.layout, i, parts, sources)
	for b.store.retryAfterEviction(err) {
		err = b.session.copyPiece(e.layout, i, parts, sources)
	}
	if err != nil {
		if isFull(err) {
			b.store.metrics.noSpace.Inc()
		}
		return noSpace(err)
	}
	groups, err := b.hashPiece(i)
	if err != nil {
		return err
	}
	if got := piece.Root(groups); got != want {
		return &piece.MismatchError{Unit: "piece", Index: i, Want: want.String(), Got: got.String()}
	}
	if err := b.session.holdPiece(e.layout, i, groups); err != nil {
		return noSpace(err)
	}
	if !e.add(i, b.store.cfg.now()) {
		return ErrNotFound
	}
	b.store.metrics.copied.Add(float64(sum(parts)))
	return nil
}

func sum(parts []chunkmap.Part) (n int64) {
	for _, p := range parts {
		n += p.Length
	}
	return n
}

// hashPiece returns the group digests of piece i as it is on disk.
func (b *Blob) hashPiece(i piece.Index) ([]piece.Digest, error) {
	buf := b.store.buffers.Get().(*[piece.GroupSize]byte)
	defer b.store.buffers.Put(buf)
	first, count := b.entry.layout.GroupRange(i)
	groups := make([]piece.Digest, 0, count)
	for g := range count {
		off := int64(first+g) * piece.GroupSize
		data := buf[:min(piece.GroupSize, b.entry.layout.Size-off)]
		if _, err := b.session.data.ReadAt(data, off); err != nil {
			return nil, err
		}
		groups = append(groups, piece.HashGroup(data))
	}
	return groups, nil
}

// copyPiece unmarks piece i and fills its bytes.
func (s *session) copyPiece(l piece.Layout, i piece.Index, parts []chunkmap.Part, sources map[digest.Digest]*Blob) error {
	if err := s.unmark(i); err != nil {
		return err
	}
	at, _ := l.Range(i)
	for _, p := range parts {
		if err := copyRange(s.data, at, sources[p.Blob].session.data, p.Off, p.Length); err != nil {
			return err
		}
		at += p.Length
	}
	return nil
}

// cloneBlock is what offsets have to be a multiple of for file systems to share bytes.
const cloneBlock = 4 << 10

// copyRange copies n bytes between files. copy_file_range shares them where the file system can; that takes whole blocks, so the
// bytes before the first one, if the two files have it at all, are copied by themselves.
func copyRange(dst diskFile, to int64, src diskFile, from, n int64) error {
	d, okD := dst.(*os.File)
	s, okS := src.(*os.File)
	if !okD || !okS {
		return copyThrough(dst, to, src, from, n)
	}
	if head := (cloneBlock - from%cloneBlock) % cloneBlock; head > 0 && head < n && from%cloneBlock == to%cloneBlock {
		if err := copyThrough(dst, to, src, from, head); err != nil {
			return err
		}
		to, from, n = to+head, from+head, n-head
	}
	for n > 0 {
		off, at := from, to
		done, err := unix.CopyFileRange(int(s.Fd()), &off, int(d.Fd()), &at, int(n), 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
			return copyThrough(dst, to, src, from, n)
		case err != nil:
			return os.NewSyscallError("copy_file_range", err)
		case done == 0:
			return io.ErrUnexpectedEOF
		}
		to, from, n = to+int64(done), from+int64(done), n-int64(done)
	}
	return nil
}

// copyThrough copies through the process.
func copyThrough(dst diskFile, to int64, src diskFile, from, n int64) error {
	buf := make([]byte, min(n, piece.GroupSize))
	copied, err := io.CopyBuffer(struct{ io.Writer }{io.NewOffsetWriter(dst, to)}, struct{ io.Reader }{io.NewSectionReader(src, from, n)}, buf)
	if err == nil && copied < n {
		err = io.ErrUnexpectedEOF
	}
	return err
}
