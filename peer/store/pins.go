package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// A blob that somebody has pinned is never evicted. Each owner has its own pin: the last one to go lets the blob go. A pin is by digest
// and independent of the blob, so that it can be set before the blob comes, and stays when the blob has to be fetched anew. On
// disk it is the file pins/ALGORITHM-HEX with one owner a line, written as a whole and synced.
const (
	pinsName   = "pins"
	maxOwner   = 256     // bytes of an owner's name
	maxPinFile = 1 << 20 // bytes of owners of one blob
)

// ErrOwner means that a name cannot own a pin.
var ErrOwner = errors.New("owner of a pin: want 1 to 256 printable bytes")

// Pin keeps the blob from being evicted until Unpin with the same owner, also after restarts. The blob need not be in the store. Pinning
// twice is the same as once.
func (s *Store) Pin(d digest.Digest, owner string) error {
	return s.setPins(d, owner, func(owners []string) []string {
		i, found := slices.BinarySearch(owners, owner)
		if found {
			return owners
		}
		return slices.Insert(slices.Clone(owners), i, owner)
	})
}

// Unpin takes the owner's pin away. Without one it does nothing.
func (s *Store) Unpin(d digest.Digest, owner string) error {
	return s.setPins(d, owner, func(owners []string) []string {
		return slices.DeleteFunc(slices.Clone(owners), func(o string) bool { return o == owner })
	})
}

// Pins returns all pins: the owners, in order, by blob.
func (s *Store) Pins() map[digest.Digest][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := maps.Clone(s.pins)
	for d := range out {
		out[d] = slices.Clone(out[d])
	}
	return out
}

// setPins changes the owners of a blob's pins, on disk first when there are more, so that what Pin has promised holds.
func (s *Store) setPins(d digest.Digest, owner string, change func([]string) []string) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, err)
	}
	if owner == "" || len(owner) > maxOwner || strings.ContainsFunc(owner, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("%q: %w", owner, ErrOwner)
	}
	s.pinMu.Lock()
	defer s.pinMu.Unlock()
	s.mu.Lock()
	before, closed := s.pins[d], s.closed
	s.mu.Unlock()
	if closed {
		return ErrClosed
	}
	after := change(before)
	if slices.Equal(before, after) {
		return nil
	}
	if err := s.writePins(d, after); err != nil {
		return fmt.Errorf("pin %s: %w", d, noSpace(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(after) == 0 {
		delete(s.pins, d)
	} else {
		s.pins[d] = after
	}
	return nil
}

func (s *Store) writePins(d digest.Digest, owners []string) error {
	name := path.Join(pinsName, folderName(d))
	if len(owners) == 0 {
		if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return s.syncPins()
	}
	if err := s.root.MkdirAll(pinsName, 0o700); err != nil {
		return err
	}
	temp := path.Join(pinsName, tempPrefix+folderName(d))
	f, err := s.root.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(owners, "\n") + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := s.root.Rename(temp, name); err != nil {
		return err
	}
	return s.syncPins()
}

func (s *Store) syncPins() error {
	dir, err := s.root.Open(pinsName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// loadPins finds the pins on disk. A file that is damaged keeps the blob all the same, under the names that can be read.
func (s *Store) loadPins() error {
	entries, err := fs.ReadDir(s.root.FS(), pinsName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, de := range entries {
		name := path.Join(pinsName, de.Name())
		if strings.HasPrefix(de.Name(), tempPrefix) {
			if err := s.root.Remove(name); err != nil {
				return err
			}
			continue
		}
		d, ok := folderDigest(de.Name())
		if !ok {
			continue // not ours: leave it alone
		}
		data, _, err := readAll(s.root, name, maxPinFile)
		if err != nil {
			return err
		}
		s.pins[d] = decodePins(data)
	}
	return nil
}

// unknownOwner owns the pin of a file without a name in it.
const unknownOwner = "unknown"

// decodePins returns the owners a file names, at least one, in order and each once.
func decodePins(data []byte) []string {
	var owners []string
	for line := range bytes.Lines(data) {
		owner := strings.ToValidUTF8(strings.TrimSuffix(string(line), "\n"), "?")
		if owner != "" && len(owner) <= maxOwner && !strings.ContainsFunc(owner, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			owners = append(owners, owner)
		}
	}
	if len(owners) == 0 {
		return []string{unknownOwner}
	}
	slices.Sort(owners)
	return slices.Compact(owners)
}
