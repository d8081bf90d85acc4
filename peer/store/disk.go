package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
)

const (
	lockName   = "lock"
	tempPrefix = "tmp-" // folders being made or removed; no digest algorithm is called so

	dataName   = "data"
	groupsName = "groups"
	indexName  = "index"
)

func folderName(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// folderDigest is the inverse of folderName; it reports false for names that are not ours.
func folderDigest(name string) (digest.Digest, bool) {
	algorithm, encoded, ok := strings.Cut(name, "-")
	d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), encoded)
	return d, ok && piece.CheckID(d) == nil
}

// load sweeps what interrupted operations left and finds the blobs. It runs before anybody else knows the store.
func (s *Store) load() error {
	if err := s.loadPins(); err != nil {
		return err
	}
	entries, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, de := range entries {
		if strings.HasPrefix(de.Name(), tempPrefix) {
			if err := s.root.RemoveAll(de.Name()); err != nil {
				return err
			}
			continue
		}
		d, ok := folderDigest(de.Name())
		if !ok || !de.IsDir() {
			continue // not ours: leave it alone
		}
		e, err := s.loadBlob(d)
		if err != nil {
			s.log.Warn("blob discarded", "digest", d, "error", err)
			s.metrics.discarded.Inc()
			if err := s.root.RemoveAll(de.Name()); err != nil {
				return err
			}
			continue
		}
		s.blobs[d] = e
		s.sizes += e.layout.Size
	}
	return nil
}

func (s *Store) loadBlob(d digest.Digest) (*entry, error) {
	name := folderName(d)
	index, modified, err := readAll(s.root, path.Join(name, indexName), headerSize+digestSize*(maxBlobSize/piece.MaxSize))
	if err != nil {
		return nil, err
	}
	layout, err := decodeHeader(index)
	if err != nil {
		return nil, err
	}
	groups, _, err := readAll(s.root, path.Join(name, groupsName), int64(layout.Groups())*digestSize)
	if err != nil {
		return nil, err
	}
	info, err := s.root.Stat(path.Join(name, dataName))
	if err != nil {
		return nil, err
	}
	held := decodeHeld(layout, index[headerSize:], groups)
	if info.Size() < layout.Size {
		dropBehind(layout, held, info.Size())
	}
	if err := fitFiles(s.root, name, layout); err != nil {
		return nil, err
	}
	e := newEntry(d, layout, held)
	e.lastUse = modified.ModTime()
	return e, nil
}

// dropBehind takes the pieces that end behind size out of held.
func dropBehind(l piece.Layout, held *piece.Set, size int64) {
	for i := range held.Clone().All() {
		if off, length := l.Range(i); off+length > size {
			held.Remove(i)
		}
	}
}

// readAll reads a whole file of at most limit bytes.
func readAll(root *os.Root, name string, limit int64) ([]byte, fs.FileInfo, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	b := make([]byte, min(info.Size(), limit))
	_, err = io.ReadFull(f, b)
	return b, info, err
}

// fitFiles gives the three files of a folder the sizes they should have.
func fitFiles(root *os.Root, folder string, l piece.Layout) error {
	for name, size := range map[string]int64{
		dataName:   l.Size,
		groupsName: int64(l.Groups()) * digestSize,
		indexName:  headerSize + int64(l.Count())*digestSize,
	} {
		f, err := root.OpenFile(path.Join(folder, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err == nil && info.Size() != size {
			err = f.Truncate(size)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// makeFolder lays out an empty blob under a temporary name and renames it into place.
func (s *Store) makeFolder(d digest.Digest, l piece.Layout) (err error) {
	temp := s.tempName()
	if err := s.root.Mkdir(temp, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = s.root.RemoveAll(temp) // the next Open sweeps what is left
		}
	}()
	if err := s.root.WriteFile(path.Join(temp, indexName), encodeHeader(l), 0o600); err != nil {
		return err
	}
	if err := fitFiles(s.root, temp, l); err != nil {
		return err
	}
	return s.root.Rename(temp, folderName(d))
}

// removeFolder makes a blob invisible in one step and then frees its bytes.
func (s *Store) removeFolder(d digest.Digest) error {
	temp := s.tempName()
	if err := s.root.Rename(folderName(d), temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.root.RemoveAll(temp); err != nil {
		s.log.Warn("removed blob left files behind until the next start", "digest", d, "error", err)
	}
	return nil
}

func (s *Store) tempName() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	return fmt.Sprintf("%s%d", tempPrefix, s.serial)
}
