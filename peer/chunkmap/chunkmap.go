// Package chunkmap describes the content of a blob in two lists: the digests of its groups, by which every range is
// verified on arrival, and its chunks, by which bytes are found again in other blobs.
//
// A chunk map is built while a blob is written or read (Cutter, Builder), travels inside the bootstrap layer of a converted
// image as image/<blob>.chunks (FromLayer), and is what a peer checks each piece against. Groups are a fixed cut and may
// be looked up by offset; chunks follow the content and are found by walking. A map without chunks is valid: nothing is
// known about the content beyond its groups.
//
//	blob    |----------------------------------------------------|
//	groups  |    0    |    1    |    2    |    3    |    4   | 5 |   256 KiB each but the last
//	chunks  |   0  |       1        |      2      |  3  |    4   |   tensors or content-defined, at most 4 MiB
//
// The encoding is canonical: a map has one encoding, and Decode accepts nothing else. All values are little-endian.
//
//	offset  bytes  value
//	0       8      "shoalmap"
//	8       4      version, 2
//	12      4      length D of the blob's digest as text
//	16      8      size of the blob in bytes
//	24      4      number of groups G, which is size / 256 KiB rounded up
//	28      4      number of chunks C
//	32      D      digest of the blob, "sha256:…"
//	32+D    32·G   BLAKE3-256 digests of the groups in order
//	…       20·C   chunks in order: length in bytes (4, never 0), XXH3-128 of the bytes (16, high half first); their lengths
//	               sum up to size
//
// # Where chunks are cut
//
// A Builder replays cuts; a Cutter decides, and these are its rules. They are part of the format: other cuts are valid
// too, but find nothing in blobs that were cut by these.
//
// By content. Bytes that no rule below claims are cut by a gear hash, as in Xia et al., "The Design of Fast
// Content-Defined Chunking for Data Deduplication Based Storage Systems" (IEEE TPDS 31(9), 2020). The hash of a byte b
// is h = 2·h + gear[b] modulo 2^64, where gear[b] is the first 8 bytes, little-endian, of the BLAKE3-256 of "shoal chunkmap
// gear" and the byte b. So h depends on the last 64 bytes alone, which are always the chunk's own. With M, a length that
// is near the mean, a chunk ends behind a byte
//
//	at a length below M/4            never
//	at a length from M/4, below M    if h < 2^64 / 4M
//	at a length from M               if h < 2^64 · 4/M
//	at a length of min(4M, 4 MiB)    always
//
// M depends on where in the blob the chunk begins: 64 KiB below 4 GiB, 128 KiB below 8 GiB, 256 KiB below 16 GiB, 512 KiB
// below 32 GiB, 1 MiB below 64 GiB, 2 MiB behind. So the first 64 GiB have some 200,000 chunks and each further GiB 500.
//
// By file. A file of 16 KiB or more is cut off from what is before and behind it. Smaller ones are bytes like all
// others: two chunks for each of a million small files would cost more than they save.
//
// By tensor. A file whose name ends in ".safetensors", and any that begins with "GGUF" and has version 1, 2 or 3 in either
// byte order, has a header, which is cut by content; a cut follows it. The tensors behind it, in the order of their
// offsets, are cut off from each other, and those longer than 4 MiB are cut every 4 MiB from their start. But neighbours
// that are each shorter than 16 KiB (biases, norms) form a run that is cut by content as if it were one. Tensors of no
// bytes do not count. A safetensors header has 8 bytes and as many bytes of JSON as these say; its tensors lie without a
// hole up to the file's end. That of a GGUF file has the padding up to the alignment too; there a tensor reaches to the
// start of the next one, the last to the file's end, and what lies before the first is treated as one more.
//
// A file shorter than 16 KiB, one whose header is longer than 64 MiB, incomplete or contradicts the file's size, and a GGUF
// of more than 2^20 tensors or none get no cuts by tensor, only those by content; so does what is written behind the size
// a file was given. Where the rules meet, each cut begins a new chunk, and the length counts anew.
//
// A map that would have more than 64 MiB, which no reader takes, loses its chunks. A blob of 500 GB has 119,000 chunks of
// 4 MiB and may have 180,000 more; opaque ones lose them above some 480 GB.
//
// The package does no I/O of its own. No goroutine outlives the call that started it.
package chunkmap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/peer/piece"
)

// ErrInvalid is the class of every encoding Decode refuses: bytes that are no chunk map, or one that contradicts itself.
var ErrInvalid = errors.New("invalid chunk map")

// ErrUnsupported is the class of chunk maps of a version this program does not know.
var ErrUnsupported = errors.New("unsupported chunk map")

// MaxChunk is the length in bytes that no chunk exceeds: Builder and Cutter cut there at the latest.
const MaxChunk = 4 << 20

const (
	magic      = "shoalmap"
	version    = 2
	headerSize = 32
	groupSize  = len(piece.Digest{})
	chunkSize  = 4 + len(ID{})
	// maxDigest bounds the digest's text; sha512 with its prefix has 135 bytes.
	maxDigest = 256
)

// Map is the chunk map of one blob. A Map is not changed after it was built and may then be read concurrently.
type Map struct {
	Blob   digest.Digest
	Size   int64          // of the blob in bytes
	Groups []piece.Digest // one for each group of the blob
	Chunks []Chunk        // cover the blob without gaps, or there are none
}

// Chunk is one unit of dedup: a run of bytes and its name.
type Chunk struct {
	Length uint32 // in bytes, never 0
	ID     ID
}

// ID names the bytes of a chunk: their XXH3-128, high half first. It tells where equal bytes may be found, and nothing more: whoever
// wants to can make others with the same ID, so what is found by it is verified by groups before it is used.
type ID [16]byte

// PieceDigest returns the digest of piece i. The layout must be one of this blob and i below its count.
func (m *Map) PieceDigest(l piece.Layout, i piece.Index) piece.Digest {
	first, count := l.GroupRange(i)
	return piece.Root(m.Groups[first : first+count])
}

// Verify checks data, bytes of the blob beginning at offset off, which must be the start of a group, against the groups
// it covers. The last group of data may be short only where the blob ends. The error is a *piece.MismatchError whose
// index is that of the first group that differs.
func (m *Map) Verify(off int64, data []byte) error {
	if off < 0 || off%piece.GroupSize != 0 || int64(len(data)) > m.Size-off {
		return fmt.Errorf("verify [%d,+%d) of a blob of %d bytes: not the start of a group, or behind the end",
			off, len(data), m.Size)
	}
	first := int(off / piece.GroupSize)
	for i, got := range piece.HashGroups(data) {
		if want := m.Groups[first+i]; got != want {
			return &piece.MismatchError{Unit: "group", Index: piece.Index(first + i), Want: want.String(), Got: got.String()}
		}
	}
	return nil
}

// Encode returns the encoding described at the top of this package. Equal maps have equal encodings.
func (m *Map) Encode() []byte {
	out := make([]byte, 0, m.EncodedSize())
	out, _ = m.AppendBinary(out) // it never fails
	return out
}

// EncodedSize is the length of Encode in bytes.
func (m *Map) EncodedSize() int {
	return headerSize + len(m.Blob) + groupSize*len(m.Groups) + chunkSize*len(m.Chunks)
}

// AppendBinary implements encoding.BinaryAppender: it appends the encoding to out. The error is always nil.
func (m *Map) AppendBinary(out []byte) ([]byte, error) {
	le := binary.LittleEndian
	out = append(out, magic...)
	out = le.AppendUint32(out, version)
	out = le.AppendUint32(out, uint32(len(m.Blob)))
	out = le.AppendUint64(out, uint64(m.Size))
	out = le.AppendUint32(out, uint32(len(m.Groups)))
	out = le.AppendUint32(out, uint32(len(m.Chunks)))
	out = append(out, m.Blob...)
	for i := range m.Groups {
		out = append(out, m.Groups[i][:]...)
	}
	for i := range m.Chunks {
		out = le.AppendUint32(out, m.Chunks[i].Length)
		out = append(out, m.Chunks[i].ID[:]...)
	}
	return out, nil
}

// header is the decoded fixed part and the offsets that follow from it.
type header struct {
	size           int64
	groups, chunks int
	groupsAt       int
	chunksAt       int
}

// parseHeader checks every count against the length of data, so that what is allocated later is bounded by it.
func parseHeader(data []byte) (header, error) {
	if len(data) < headerSize || string(data[:8]) != magic {
		return header{}, fmt.Errorf("%w: no header", ErrInvalid)
	}
	le := binary.LittleEndian
	if v := le.Uint32(data[8:]); v != version {
		return header{}, fmt.Errorf("%w: version %d, this program reads %d; convert the image again", ErrUnsupported, v, version)
	}
	digestLen, size := uint64(le.Uint32(data[12:])), le.Uint64(data[16:])
	groups, chunks := uint64(le.Uint32(data[24:])), uint64(le.Uint32(data[28:]))
	if digestLen > maxDigest || size > math.MaxInt64-piece.GroupSize {
		return header{}, fmt.Errorf("%w: digest of %d bytes, blob of %d bytes", ErrInvalid, digestLen, size)
	}
	if want := (size + piece.GroupSize - 1) / piece.GroupSize; groups != want {
		return header{}, fmt.Errorf("%w: %d groups, a blob of %d bytes has %d", ErrInvalid, groups, size, want)
	}
	// All three are below 2^32, so the sum cannot overflow.
	if want := headerSize + digestLen + uint64(groupSize)*groups + uint64(chunkSize)*chunks; uint64(len(data)) != want {
		return header{}, fmt.Errorf("%w: %d bytes, the header promises %d", ErrInvalid, len(data), want)
	}
	groupsAt := headerSize + int(digestLen)
	return header{
		size: int64(size), groups: int(groups), chunks: int(chunks),
		groupsAt: groupsAt, chunksAt: groupsAt + groupSize*int(groups),
	}, nil
}

// Decode is the inverse of Encode for untrusted bytes: every count is checked before memory is taken, and the lists
// must agree with the size. The errors are ErrInvalid and ErrUnsupported. The map does not share memory with data.
func Decode(data []byte) (*Map, error) {
	h, err := parseHeader(data)
	if err != nil {
		return nil, err
	}
	m := &Map{Blob: digest.Digest(data[headerSize:h.groupsAt]), Size: h.size}
	if err := m.Blob.Validate(); err != nil {
		return nil, fmt.Errorf("%w: digest of the blob: %w", ErrInvalid, err)
	}
	if h.groups > 0 {
		m.Groups = make([]piece.Digest, h.groups)
	}
	for i := range m.Groups {
		copy(m.Groups[i][:], data[h.groupsAt+groupSize*i:])
	}
	if h.chunks == 0 {
		return m, nil
	}
	m.Chunks = make([]Chunk, h.chunks)
	var sum int64
	for i := range m.Chunks {
		raw := data[h.chunksAt+chunkSize*i:]
		c := Chunk{Length: binary.LittleEndian.Uint32(raw)}
		copy(c.ID[:], raw[4:])
		if c.Length == 0 {
			return nil, fmt.Errorf("%w: chunk %d is empty", ErrInvalid, i)
		}
		sum += int64(c.Length) // cannot overflow: it is compared with size after every step
		if sum > m.Size {
			return nil, fmt.Errorf("%w: chunks reach behind the blob's %d bytes", ErrInvalid, m.Size)
		}
		m.Chunks[i] = c
	}
	if sum != m.Size {
		return nil, fmt.Errorf("%w: chunks cover %d of %d bytes", ErrInvalid, sum, m.Size)
	}
	return m, nil
}

// Equal reports whether both maps describe the same blob in the same way.
func (m *Map) Equal(other *Map) bool { return bytes.Equal(m.Encode(), other.Encode()) }
