package layer

import (
	"iter"
	"sort"
)

// tarUnit is the length in bytes of which everything in a tar is a multiple.
const tarUnit = 512

// Chunk is one cut of one file.
type Chunk struct {
	Entry      int   // number of the file in the layer
	Offset     int64 // in the layer, in bytes
	Size       uint32
	Digest     [32]byte // BLAKE3 of its bytes
	FileOffset int64    // in the file
}

// ChunkCount is the number of chunks of the layer.
func (l *Layer) ChunkCount() int { return len(l.digests) }

// Chunks returns the chunks in the order of the layer: of each file that has content, from its start to its end.
func (l *Layer) Chunks() iter.Seq[Chunk] {
	return func(yield func(Chunk) bool) {
		rest := l.digests
		for i := range l.Entries {
			for done := int64(0); done < l.content(i); done += int64(l.chunkSize) {
				size := min(int64(l.chunkSize), l.content(i)-done)
				if !yield(Chunk{i, l.offsets[i] + done, uint32(size), rest[0], done}) {
					return
				}
				rest = rest[1:]
			}
		}
	}
}

// content returns how many bytes an entry has behind its header.
func (l *Layer) content(i int) int64 {
	if e := l.Entries[i]; e.Kind == File {
		return e.Size
	}
	return 0
}

// end returns where an entry ends, with the zeros behind its content, and the next one begins.
func (l *Layer) end(i int) int64 {
	if i < 0 {
		return 0
	}
	return (l.offsets[i] + l.content(i) + tarUnit - 1) / tarUnit * tarUnit
}

// segment is a run of bytes of the layer: raw, or content of a file. There are several for each file, with headers of up to 4 KiB, so they are
// found and made anew each time they are needed.
type segment struct {
	length int64
	raw    []byte
	entry  *Entry // whose content it is
	offset int64  // of the content
}

// segment returns what is at an offset of the layer, before its end.
func (l *Layer) segment(at int64) (segment, error) {
	if at >= l.TarSize {
		raw := l.table(l.TarSize, l.Chunks())[at-l.TarSize:]
		return segment{raw: raw, length: int64(len(raw))}, nil
	}
	i := sort.Search(len(l.Entries), func(i int) bool { return at < l.end(i) })
	if i == len(l.Entries) {
		return zeros(l.TarSize - at), nil
	}
	e, start, begin := l.Entries[i], l.end(i-1), l.offsets[i]
	switch behind := begin + l.content(i); {
	case at < begin:
		raw, err := headerAt(e, start)
		if err != nil {
			return segment{}, err
		}
		return segment{raw: raw[at-start:], length: begin - at}, nil
	case at < behind:
		return segment{entry: e, offset: at - begin, length: behind - at}, nil
	}
	return zeros(l.end(i) - at), nil
}

func zeros(n int64) segment { return segment{raw: make([]byte, n), length: n} }
