package lazy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// bookStep is how many bytes an expanded file has room made for at once.
const bookStep = 16 << 20

// Room accounts for the bytes of expanded files. *store.Store does so, by which it evicts blobs for them. It is safe for concurrent use.
type Room interface {
	// Reserve makes room for n more bytes and counts them. The error says that there is none.
	Reserve(n int64) error
	// Count adds n bytes that are on the disk already, or, where n is negative, takes off what has gone.
	Count(n int64)
}

// A shelf is the folder of expanded files. It knows who has which open, so that none is removed under somebody.
type shelf struct {
	dir  string
	room Room // nil: they are not accounted for

	mu    sync.Mutex // guards files
	files map[string]*volume
}

func newShelf(dir string, room Room) *shelf {
	return &shelf{dir: dir, room: room, files: map[string]*volume{}}
}

// A volume is what those who have a file open share.
type volume struct {
	users int // guarded by shelf.mu

	mu           sync.Mutex // guards the fields below
	booked, used int64      // bytes
}

// shelved is an expanded file that somebody has open.
type shelved struct {
	*os.File

	shelf  *shelf
	volume *volume
	// left says that something of it was there before.
	left bool
}

// open opens the file of a name, as long as the device, or makes it.
func (s *shelf) open(name string, size int64) (*shelved, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != size {
		err = f.Truncate(size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	v := s.files[name]
	if v == nil {
		v = &volume{}
		if st, ok := info.Sys().(*syscall.Stat_t); ok { // of an earlier mount
			v.booked = st.Blocks * 512
		}
		v.used = v.booked
		s.count(v.booked)
		s.files[name] = v
	}
	v.users++
	return &shelved{File: f, shelf: s, volume: v, left: info.Size() > 0}, nil
}

func (s *shelf) count(n int64) {
	if s.room != nil && n != 0 {
		s.room.Count(n)
	}
}

// book has room for n bytes that will be written.
func (f *shelved) book(n int64) error {
	v := f.volume
	v.mu.Lock()
	defer v.mu.Unlock()
	if f.shelf.room == nil || v.used+n <= v.booked {
		v.used += n
		return nil
	}
	want := v.used + n - v.booked
	step := max(want, bookStep)
	if f.shelf.room.Reserve(step) != nil { // it need not be that much
		step = want
		if err := f.shelf.room.Reserve(step); err != nil {
			return fmt.Errorf("no room to expand %d bytes: %w", n, err)
		}
	}
	v.booked += step
	v.used += n
	return nil
}

// unbook takes back the room for n bytes that were not written.
func (f *shelved) unbook(n int64) {
	f.volume.mu.Lock()
	defer f.volume.mu.Unlock()
	f.volume.used -= n
}

// close gives the file up, and removes it if discard is set and nobody else has it open.
func (f *shelved) close(discard bool) error {
	s := f.shelf
	s.mu.Lock()
	defer s.mu.Unlock()
	err := f.File.Close()
	if f.volume.users--; f.volume.users > 0 {
		return err
	}
	delete(s.files, filepath.Base(f.Name()))
	if discard {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	s.count(-f.volume.booked)
	return err
}

// sweep removes the files that nobody has open.
func (s *shelf) sweep() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := os.ReadDir(s.dir)
	errs := []error{err}
	for _, e := range entries {
		if s.files[e.Name()] == nil {
			errs = append(errs, os.Remove(filepath.Join(s.dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
