package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/piece"
)

// The chunk index is the files called chunks in the blobs' folders; there is no table of all of them. It is read through when a blob
// is begun whose chunk map names chunks: 100,000 of them take some milliseconds, which is less than a table would cost in memory at
// all other times, and nothing can disagree with the disk. The file, little endian:
//
//	 0   8  magic "SHOALCNK"
//	 8   4  version, 2
//	12   4  number of chunks
//	16   …  for each chunk its length in bytes (4) and its ID (16), in order from the blob's start
//
// It is not checked further: what it claims is only where to look, and what is copied from there is verified.
const (
	chunksName       = "chunks"
	chunksMagic      = "SHOALCNK"
	chunksVersion    = 2
	chunksHeaderSize = 16
	chunkEntrySize   = 4 + len(chunkmap.ID{})
)

// SetChunks keeps the chunks of the blob, from its start on, so that their bytes are found for other blobs. Later ones replace them.
func (b *Blob) SetChunks(chunks []chunkmap.Chunk) error {
	temp := chunksName + ".tmp"
	err := b.session.dir.WriteFile(temp, encodeChunks(chunks), 0o600)
	if err == nil {
		err = b.session.dir.Rename(temp, chunksName)
	}
	if err != nil {
		return fmt.Errorf("chunks of %s: %w", b.entry.digest, noSpace(err))
	}
	return nil
}

func encodeChunks(chunks []chunkmap.Chunk) []byte {
	out := make([]byte, 0, chunksHeaderSize+chunkEntrySize*len(chunks))
	out = append(out, chunksMagic...)
	out = binary.LittleEndian.AppendUint32(out, chunksVersion)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(chunks)))
	for i := range chunks {
		out = binary.LittleEndian.AppendUint32(out, chunks[i].Length)
		out = append(out, chunks[i].ID[:]...)
	}
	return out
}

// decodeChunks calls visit for each chunk of a file until visit returns false. Garbage is errFormat; visit has seen what came before.
func decodeChunks(r io.Reader, visit func(c chunkmap.Chunk) bool) error {
	var header [chunksHeaderSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return fmt.Errorf("%w: chunks: %w", errFormat, err)
	}
	if string(header[:8]) != chunksMagic || binary.LittleEndian.Uint32(header[8:]) != chunksVersion {
		return fmt.Errorf("%w: chunks: header %x", errFormat, header)
	}
	var entry [chunkEntrySize]byte
	for range binary.LittleEndian.Uint32(header[12:]) {
		if _, err := io.ReadFull(r, entry[:]); err != nil {
			return fmt.Errorf("%w: chunks: %w", errFormat, err)
		}
		if !visit(chunkmap.Chunk{Length: binary.LittleEndian.Uint32(entry[:]), ID: chunkmap.ID(entry[4:])}) {
			return nil
		}
	}
	return nil
}

// FindChunks returns where the wanted chunks are held, of each the first place found in another blob than not. All bytes of a place are
// held; they are not verified anew, and the blob may be gone when the caller looks.
func (s *Store) FindChunks(want []chunkmap.Chunk, not digest.Digest) map[chunkmap.ID]chunkmap.Place {
	open := make(map[chunkmap.ID]uint32, len(want))
	for i := range want {
		open[want[i].ID] = want[i].Length
	}
	found := map[chunkmap.ID]chunkmap.Place{}
	for _, info := range s.List() {
		if info.Digest == not || info.Held == 0 || len(open) == 0 {
			continue
		}
		if err := s.findIn(info, open, found); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("chunks of a blob cannot be read, it is passed over", "digest", info.Digest, "error", err)
		}
	}
	return found
}

// findIn moves what one blob holds from open to found.
func (s *Store) findIn(info Info, open map[chunkmap.ID]uint32, found map[chunkmap.ID]chunkmap.Place) error {
	f, err := s.root.Open(path.Join(folderName(info.Digest), chunksName))
	if err != nil {
		return err
	}
	defer f.Close()
	s.mu.Lock()
	e := s.blobs[info.Digest]
	s.mu.Unlock()
	if e == nil {
		return nil // evicted meanwhile
	}
	have, off := e.have(), int64(0)
	return decodeChunks(bufio.NewReaderSize(f, 64<<10), func(c chunkmap.Chunk) bool {
		if length, wanted := open[c.ID]; wanted && length == c.Length && off+int64(length) <= info.Layout.Size &&
			holdsAll(have, info.Layout, off, int64(length)) {
			found[c.ID] = chunkmap.Place{Blob: info.Digest, Off: off}
			delete(open, c.ID)
		}
		off += int64(c.Length)
		return len(open) > 0
	})
}

func holdsAll(have *piece.Set, l piece.Layout, off, length int64) bool {
	first, end := l.Span(off, length)
	for i := first; i < end; i++ {
		if !have.Has(i) {
			return false
		}
	}
	return true
}
