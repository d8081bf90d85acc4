package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/peer/piece"
)

// Blob is a reference to one blob of the store, and keeps it from being evicted until Close. Its methods may be called
// concurrently, except that none may be called after Close.
type Blob struct {
	store   *Store
	entry   *entry
	session *session

	mu     sync.Mutex // guards the fields below
	file   *os.File
	closed bool
}

// Digest returns the digest the blob is stored under.
func (b *Blob) Digest() digest.Digest { return b.entry.digest }

// Layout returns how the blob is cut.
func (b *Blob) Layout() piece.Layout { return b.entry.layout }

// Have returns a copy of the set of the pieces held.
func (b *Blob) Have() *piece.Set { return b.entry.have() }

// Has reports whether piece i is held.
func (b *Blob) Has(i piece.Index) bool { return b.entry.has(i) }

// Held returns the bytes of the pieces held.
func (b *Blob) Held() int64 { n, _ := b.entry.progress(); return n }

// Complete reports whether every piece is held.
func (b *Blob) Complete() bool { _, complete := b.entry.progress(); return complete }

// Verified reports whether every piece is held and was verified by this process within Config.Reverify.
func (b *Blob) Verified() bool { return b.entry.sound(b.store.cfg.now(), b.store.cfg.Reverify) }

// Changed returns a channel that is closed when a piece comes or goes next, or the blob is dropped. To wait for a piece,
// take the channel first, then look, then wait.
func (b *Blob) Changed() <-chan struct{} { return b.entry.watch() }

// Write stores piece i, whose bytes the caller has verified and whose group digests are groups. Writing the same piece
// again does nothing; other bytes replace what is held, so that the last word of who verifies counts. On ErrNoSpace,
// after everything evictable is gone, the piece is not held. The slices are not kept.
func (b *Blob) Write(i piece.Index, data []byte, groups []piece.Digest) error {
	e := b.entry
	if i < 0 || int(i) >= e.layout.Count() {
		return fmt.Errorf("piece %d of %s: it has %d pieces", i, e.digest, e.layout.Count())
	}
	if _, length := e.layout.Range(i); int64(len(data)) != length {
		return fmt.Errorf("piece %d of %s: %d bytes, want %d", i, e.digest, len(data), length)
	}
	if _, count := e.layout.GroupRange(i); len(groups) != count {
		return fmt.Errorf("piece %d of %s: %d group digests, want %d", i, e.digest, len(groups), count)
	}
	root := piece.Root(groups)
	if b.holds(i, root) {
		return nil
	}
	defer e.lockPiece(i)()
	if b.holds(i, root) {
		return nil
	}
	e.remove(i)
	if err := b.session.unvouch(); err != nil {
		return fmt.Errorf("piece %d of %s: %w", i, e.digest, err)
	}
	err := b.session.writePiece(e.layout, i, data, groups)
	for b.store.retryAfterEviction(err) {
		err = b.session.writePiece(e.layout, i, data, groups)
	}
	if err != nil {
		if isFull(err) {
			b.store.metrics.noSpace.Inc()
		}
		return fmt.Errorf("piece %d of %s: %w", i, e.digest, noSpace(err))
	}
	if !e.add(i, b.store.cfg.now()) {
		return fmt.Errorf("piece %d of %s: %w", i, e.digest, ErrNotFound)
	}
	b.store.metrics.written.Add(float64(len(data)))
	return nil
}

// holds reports whether piece i is held with this digest.
func (b *Blob) holds(i piece.Index, root piece.Digest) bool {
	if !b.entry.has(i) {
		return false
	}
	marked, err := b.session.marked(i)
	return err == nil && marked == root
}

// File returns an open file on the blob's bytes, made on the first call; it is valid until Close. Each Blob has its own,
// with its own offset, as http.ServeContent needs. Only bytes that EnsureVerified accepted may leave the process.
func (b *Blob) File() (*os.File, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	if b.file == nil {
		f, err := b.session.dir.Open(dataName) // an open of a local file, serialised for this reference only
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.entry.digest, notFound(err))
		}
		if !b.Complete() {
			noReadahead(f)
		}
		b.file = f
	}
	return b.file, nil
}

// noReadahead keeps the kernel from reading ahead in a file with holes: it would fill the page cache with zeros that the
// next pieces overwrite. Measured under load: zeroing pages fell from 10 to 1.5 % of the samples.
func noReadahead(f *os.File) {
	conn, err := f.SyscallConn()
	if err != nil {
		return // it is only advice
	}
	_ = conn.Control(func(fd uintptr) { _ = unix.Fadvise(int(fd), 0, 0, unix.FADV_RANDOM) }) // likewise
}

// ReadAt reads bytes of the blob, verifying the pieces they are in on their first use; io.ReaderAt for what is held.
// The errors are those of EnsureVerified.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) {
	if err := b.EnsureVerified(off, int64(len(p))); err != nil {
		return 0, err
	}
	return b.session.data.ReadAt(p, off)
}

// Groups returns the group digests of piece i. The error is piece.ErrAbsent when the piece is not held.
func (b *Blob) Groups(i piece.Index) ([]piece.Digest, error) {
	if !b.entry.has(i) {
		return nil, b.absent(i)
	}
	groups, err := b.session.readGroups(b.entry.layout, i)
	if err != nil {
		return nil, fmt.Errorf("group digests of piece %d of %s: %w", i, b.entry.digest, err)
	}
	return groups, nil
}

// Drop removes the blob from the store and its bytes from the disk at once. References to it, this one included, have to
// be closed all the same; Write and EnsureVerified return ErrNotFound on them. Dropping twice does nothing.
func (b *Blob) Drop() error {
	s := b.store
	s.mu.Lock()
	if s.blobs[b.entry.digest] != b.entry || b.entry.phase != ready {
		s.mu.Unlock()
		return nil
	}
	return s.removeLocked(b.entry)
}

// Close gives up the reference and the file. It is idempotent.
func (b *Blob) Close() error {
	b.mu.Lock()
	closed, file := b.closed, b.file
	b.closed = true
	b.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	if file != nil {
		err = file.Close()
	}
	s, e := b.store, b.entry
	s.mu.Lock()
	e.lastUse = time.Now()
	e.refs--
	last := e.refs == 0
	if last {
		e.session = nil // the next reference opens the files anew
	}
	s.mu.Unlock()
	if last {
		err = errors.Join(err, b.session.close())
	}
	return err
}

func (b *Blob) absent(i piece.Index) error {
	if b.entry.isGone() {
		return fmt.Errorf("piece %d of %s: %w", i, b.entry.digest, ErrNotFound)
	}
	return fmt.Errorf("piece %d of %s: %w", i, b.entry.digest, piece.ErrAbsent)
}

// session is the open files of a blob, shared by all references from the first to the last.
type session struct {
	once                sync.Once
	err                 error
	dir                 *os.Root
	data, groups, index diskFile
	unvouched           atomic.Bool // the disk says that nobody vouches for the blob: not each Write has to
	own                 atomic.Bool // who vouches for it means these pieces: not each look has to compare
}

// diskFile is an open file of a blob: an *os.File, or one of a disk that fails, in tests.
type diskFile interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

func openFile(dir *os.Root, name string) (diskFile, error) { return dir.OpenFile(name, os.O_RDWR, 0) }

func (s *session) open(st *Store, e *entry) error {
	s.once.Do(func() {
		if s.dir, s.err = st.root.OpenRoot(folderName(e.digest)); s.err != nil {
			return
		}
		for file, target := range map[string]*diskFile{dataName: &s.data, groupsName: &s.groups, indexName: &s.index} {
			f, err := st.openFile(s.dir, file)
			if s.err = err; err != nil {
				return
			}
			*target = f
		}
	})
	return s.err
}

// close leaves the time of the last use on the disk and closes what open opened.
func (s *session) close() error {
	var errs []error
	if s.index != nil {
		now := time.Now()
		_ = s.dir.Chtimes(indexName, now, now) // only orders evictions after a restart; fails after Drop
	}
	for _, f := range []diskFile{s.data, s.groups, s.index} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if s.dir != nil {
		errs = append(errs, s.dir.Close())
	}
	return errors.Join(errs...)
}

// writePiece puts the bytes, then their group digests, then the piece digest on disk, which is what makes it held. What was
// there before is unmarked first, so that no mixture of the two can be held.
func (s *session) writePiece(l piece.Layout, i piece.Index, data []byte, groups []piece.Digest) error {
	if err := s.unmark(i); err != nil {
		return err
	}
	off, _ := l.Range(i)
	if _, err := s.data.WriteAt(data, off); err != nil {
		return err
	}
	return s.holdPiece(l, i, groups)
}

// holdPiece puts the digests of a piece on disk whose bytes are there.
func (s *session) holdPiece(l piece.Layout, i piece.Index, groups []piece.Digest) error {
	first, _ := l.GroupRange(i)
	if _, err := s.groups.WriteAt(encodeDigests(groups), int64(first)*digestSize); err != nil {
		return err
	}
	return s.mark(i, piece.Root(groups))
}

// unmark makes sure that piece i is not marked as held.
func (s *session) unmark(i piece.Index) error {
	before, err := s.marked(i)
	if err != nil || before == (piece.Digest{}) {
		return err
	}
	return s.mark(i, piece.Digest{})
}

// mark sets the digest of piece i in the index; zero marks it as not held.
func (s *session) mark(i piece.Index, d piece.Digest) error {
	_, err := s.index.WriteAt(d[:], headerSize+int64(i)*digestSize)
	return err
}

// marked returns the digest of piece i in the index; zero when it is not held.
func (s *session) marked(i piece.Index) (d piece.Digest, err error) {
	_, err = s.index.ReadAt(d[:], headerSize+int64(i)*digestSize)
	return d, err
}

func (s *session) readGroups(l piece.Layout, i piece.Index) ([]piece.Digest, error) {
	first, count := l.GroupRange(i)
	buf := make([]byte, count*digestSize)
	if _, err := s.groups.ReadAt(buf, int64(first)*digestSize); err != nil {
		return nil, err
	}
	return decodeDigests(buf), nil
}
