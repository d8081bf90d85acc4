package store

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/peer/piece"
)

// DefaultMaxPercent is used when Config.MaxPercent is zero.
const DefaultMaxPercent = 80

// DefaultReverify is used when Config.Reverify is zero.
const DefaultReverify = time.Hour

// Config says how much a store may keep and where it reports to. The zero Config is usable.
type Config struct {
	// MaxBytes bounds the sum of the sizes of all blobs, and of what Reserve counts, in bytes. Zero is no bound.
	MaxBytes int64
	// MaxPercent bounds the same sum to a share of what other files leave of the file system: of the bytes that are free
	// plus those the store holds. So the store shrinks when others grow. Zero is DefaultMaxPercent.
	MaxPercent int
	// Reverify is how long a piece that was written or read back counts as verified; then it is hashed again on its next use, so that
	// what a disk spoils later is found too. Zero is DefaultReverify.
	Reverify time.Duration
	// Now replaces the clock, for tests. Nil is time.Now.
	Now func() time.Time
	// Log receives what was discarded and evicted. Nil discards it.
	Log *slog.Logger
	// Registerer receives the metrics. Nil keeps them out of sight.
	Registerer prometheus.Registerer
}

// Validate reports all faults of the configuration at once.
func (c Config) Validate() error {
	var errs []error
	if c.MaxBytes < 0 {
		errs = append(errs, fmt.Errorf("store: max_bytes is %d, want 0 (no bound) or more", c.MaxBytes))
	}
	if c.Reverify < 0 {
		errs = append(errs, fmt.Errorf("store: reverify is %v, want 0 (%v) or more", c.Reverify, DefaultReverify))
	}
	if c.MaxPercent < 0 || c.MaxPercent > 100 {
		errs = append(errs, fmt.Errorf("store: max_percent is %d, want 1 to 100, or 0 for %d", c.MaxPercent, DefaultMaxPercent))
	}
	return errors.Join(errs...)
}

// now is the present time for the age of verifications; the order of use goes by the system's clock, as the files' times do.
func (c Config) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

// Store is the blobs below one folder. It is safe for concurrent use by one process; Open locks out others.
type Store struct {
	root    *os.Root
	lock    *os.File
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	buffers sync.Pool // of *[piece.GroupSize]byte

	openFile func(dir *os.Root, name string) (diskFile, error) // replaced in tests by a disk that fails

	pinMu sync.Mutex // held while pins are written; taken before mu

	mu     sync.Mutex // guards the fields below and, of each entry, phase, settled, refs, lastUse and session
	closed bool
	blobs  map[digest.Digest]*entry
	pins   map[digest.Digest][]string // owners in order; of blobs that are not here too
	sizes  int64                      // of all blobs
	beside int64                      // bytes of files that are no blobs, and count all the same
	serial int                        // numbers temporary folders
}

// Open returns the store below dir, which is created when missing. It removes what interrupted operations left and
// finds every piece an earlier process held. Two processes cannot open one folder: ErrLocked.
func Open(dir string, cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.MaxPercent = cmp.Or(cfg.MaxPercent, DefaultMaxPercent)
	cfg.Reverify = cmp.Or(cfg.Reverify, DefaultReverify)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	lock, err := lockFolder(root)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store %s: %w", filepath.Clean(dir), err), root.Close())
	}
	s := &Store{root: root, lock: lock, cfg: cfg, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
		blobs: map[digest.Digest]*entry{}, pins: map[digest.Digest][]string{}, buffers: sync.Pool{New: newGroupBuffer},
		openFile: openFile}
	s.metrics = newMetrics(cfg.Registerer, s)
	err = s.load()
	if err == nil {
		err = s.trim()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store %s: %w", filepath.Clean(dir), err), s.Close())
	}
	return s, nil
}

// lockFolder takes the lock that the kernel drops with the process, however that ends.
func lockFolder(root *os.Root) (*os.File, error) {
	f, err := root.OpenFile(lockName, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close ends the use of the folder. Blobs still open stay readable until they are closed; nothing else works.
func (s *Store) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	return errors.Join(s.root.Close(), s.lock.Close())
}

// Get returns the blob with a reference that keeps it from eviction; the caller must Close it. The error is ErrNotFound
// when the store has none.
func (s *Store) Get(d digest.Digest) (*Blob, error) {
	for {
		s.mu.Lock()
		e := s.blobs[d]
		switch {
		case s.closed:
			s.mu.Unlock()
			return nil, ErrClosed
		case e == nil || e.phase == evicting:
			s.mu.Unlock()
			return nil, fmt.Errorf("%s: %w", d, ErrNotFound)
		case e.phase == ready:
			return s.referLocked(e)
		}
		settled := e.settled
		s.mu.Unlock()
		<-settled // another caller creates it; this takes a few system calls
	}
}

// Create returns the blob, reserving it when the store has none, with a reference as Get does. The error is ErrSize when
// the blob is stored with another size, and ErrNoSpace when it cannot get room.
func (s *Store) Create(d digest.Digest, size int64) (*Blob, error) {
	if err := piece.CheckID(d); err != nil {
		return nil, fmt.Errorf("digest %q: %w", d, err)
	}
	if size < 0 || size > maxBlobSize {
		return nil, fmt.Errorf("%s: size %d is out of range", d, size)
	}
	for {
		s.mu.Lock()
		e := s.blobs[d]
		switch {
		case s.closed:
			s.mu.Unlock()
			return nil, ErrClosed
		case e == nil:
			s.mu.Unlock()
			b, err := s.reserve(d, size)
			if err == nil || !errors.Is(err, errRaced) {
				return b, err
			}
			continue
		case e.phase == ready:
			if e.layout.Size != size {
				s.mu.Unlock()
				return nil, fmt.Errorf("%s: %w: %d, not %d bytes", d, ErrSize, e.layout.Size, size)
			}
			return s.referLocked(e)
		}
		settled := e.settled
		s.mu.Unlock()
		<-settled // it is being created or removed
	}
}

// referLocked takes a reference to e, which is ready, and unlocks s.mu.
func (s *Store) referLocked(e *entry) (*Blob, error) {
	e.refs++
	e.lastUse = time.Now()
	if e.session == nil {
		e.session = &session{}
	}
	b := &Blob{store: s, entry: e, session: e.session}
	s.mu.Unlock()
	if err := b.session.open(s, e); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", e.digest, err), b.Close())
	}
	return b, nil
}

// Info describes one blob of the store.
type Info struct {
	Digest   digest.Digest
	Layout   piece.Layout
	Held     int64     // bytes of the pieces held
	Complete bool      // every piece is held
	Open     bool      // somebody has it open
	Pins     []string  // owners of its pins, in order
	LastUse  time.Time // last Get, Create or Close
}

// List returns all blobs, ordered by digest. It is a snapshot: what it lists may be gone when the caller looks.
func (s *Store) List() []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Info, 0, len(s.blobs))
	for _, e := range s.blobs {
		if e.phase != ready {
			continue
		}
		held, complete := e.progress()
		out = append(out, Info{Digest: e.digest, Layout: e.layout, Held: held, Complete: complete,
			Open: e.refs > 0, Pins: slices.Clone(s.pins[e.digest]), LastUse: e.lastUse})
	}
	slices.SortFunc(out, func(a, b Info) int { return cmp.Compare(a.Digest, b.Digest) })
	return out
}

// Usage sums up the store.
type Usage struct {
	Blobs    int
	Held     int64 // bytes of the pieces held
	Reserved int64 // sizes of all blobs, in bytes
	Beside   int64 // bytes of other files that count against the limits
}

// Usage returns the present sums.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{Blobs: len(s.blobs), Reserved: s.sizes, Beside: s.beside}
	for _, e := range s.blobs {
		held, _ := e.progress()
		u.Held += held
	}
	return u
}
