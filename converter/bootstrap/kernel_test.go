package bootstrap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
)

// find returns where the inode of a file with so many bytes is in a bootstrap of this package.
func find(t *testing.T, raw []byte, kind uint16, size int64) int {
	t.Helper()
	le := binary.LittleEndian
	for at := int(le.Uint32(raw[sbMetaBlock:])) * blockSize; at+inodeExtended <= len(raw); at += slotSize {
		if le.Uint16(raw[at:])&1 == 1 && le.Uint16(raw[at+inodeMode:])&TypeMask == kind && int64(le.Uint64(raw[at+inodeSize:])) == size {
			return at
		}
	}
	t.Fatalf("no inode of type %o with %d bytes", kind, size)
	return 0
}

// kernelSample is an image with a file of three chunks, that lie one behind the other, one of a single chunk, and a folder.
func kernelSample(t testing.TB) []byte {
	t.Helper()
	tree := NewTree()
	check(t, tree.Add("large", &Inode{Mode: TypeRegular, Size: 2*testChunk + 5, Chunks: []uint32{0, 1, 2}}))
	check(t, tree.Add("small", &Inode{Mode: TypeRegular, Size: testChunk, Chunks: []uint32{0}}))
	for _, name := range []string{"a", "b"} {
		check(t, tree.Add("dir/"+name, &Inode{Mode: TypeRegular}))
	}
	img := &Image{ChunkSize: testChunk, Root: tree.Root, Blobs: []Blob{{Digest: digest.FromString("blob"), Size: 4 * testChunk, TableOffset: 3 * testChunk, ChunkCount: 4, DeviceSize: 4 * testChunk}}}
	for i, size := range []uint32{testChunk, testChunk, 5, testChunk} {
		off := int64(i) * testChunk
		img.Chunks = append(img.Chunks, Chunk{Index: uint32(i), Size: size, Length: size, Offset: off, DeviceOffset: off})
	}
	raw, err := Encode(img)
	check(t, err)
	return raw
}

// The kernel reads these otherwise than who goes by the tables of RAFS alone.
func TestDecodeRefusesWhatTheKernelReadsOtherwise(t *testing.T) {
	le := binary.LittleEndian
	const large = 2*testChunk + 5
	union := func(size int64, change func(format uint32) uint32) func(t *testing.T, raw []byte) {
		return func(t *testing.T, raw []byte) {
			at := find(t, raw, TypeRegular, size) + inodeUnion
			le.PutUint32(raw[at:], change(le.Uint32(raw[at:])))
		}
	}
	span := func(bits uint32) func(uint32) uint32 { return func(uint32) uint32 { return chunkFormatIndex | bits } }
	chunkSpan := uint32(0)
	for testChunk > blockSize<<chunkSpan {
		chunkSpan++
	}
	names := func(change func(entries, names []byte)) func(t *testing.T, raw []byte) {
		return func(t *testing.T, raw []byte) {
			const size = 4*direntSize + len("...ab")
			dir := raw[find(t, raw, TypeDir, int64(size))+inodeExtended:][:size]
			change(dir[:4*direntSize], dir[4*direntSize:])
		}
	}
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, raw []byte)
		want   error
	}{
		{"nothing", func(*testing.T, []byte) {}, nil},
		{"by single chunks", union(large, span(chunkSpan)), nil},
		{"all at once", union(large, span(chunkSpan+2)), nil},
		{"one chunk by more than there is", union(testChunk, span(chunkSpan+3)), nil},
		{"by less than a chunk", union(testChunk, span(chunkSpan-1)), ErrInvalid},
		{"by two chunks, of which the third lies where the second one is looked for", union(large, span(chunkSpan+1)), ErrInvalid},
		{"block numbers of 48 bits", union(large, func(f uint32) uint32 { return f | 0x40 }), ErrUnsupported},
		{"a chunk format of later kernels", union(large, func(f uint32) uint32 { return f | 0x8000 }), ErrUnsupported},
		{"an inode format of later kernels", func(t *testing.T, raw []byte) { raw[find(t, raw, TypeRegular, 0)] |= 0x40 }, ErrUnsupported},
		{"compressed", func(t *testing.T, raw []byte) { raw[find(t, raw, TypeRegular, 0)] = 1 | 3<<1 }, ErrUnsupported},
		{"a directory's block far behind", func(t *testing.T, raw []byte) { raw[find(t, raw, TypeDir, 4*direntSize+5)+inodeBlockHigh] = 1 }, ErrUnsupported},
		{"names in any order", names(func(_, names []byte) { copy(names, "...ba") }), ErrInvalid},
		{"dots in any order", names(func(_, names []byte) { copy(names, "...a.") }), ErrInvalid},
		{"a name twice", names(func(_, names []byte) { copy(names, "...aa") }), ErrInvalid},
		{"no type", names(func(entries, _ []byte) { entries[3*direntSize+direntType] = 0 }), nil},
		{"another type", names(func(entries, _ []byte) { entries[3*direntSize+direntType] = 2 }), ErrInvalid},
		{"attributes by a filter", func(_ *testing.T, raw []byte) { raw[sbFeatureCompat] = 4 }, ErrUnsupported},
		{"large directory blocks", func(_ *testing.T, raw []byte) { raw[sbDirBits] = 1 }, ErrUnsupported},
	} {
		t.Run(tc.name, func(t *testing.T) {
			raw := kernelSample(t)
			tc.change(t, raw)
			if _, err := Decode(bytes.NewReader(raw), int64(len(raw))); !errors.Is(err, tc.want) {
				t.Errorf("want %v, got %v", tc.want, err)
			}
		})
	}
}

// Chunks that lie apart are found one by one, and only so.
func TestDecodeRefusesSpansOfChunksThatLieApart(t *testing.T) {
	le := binary.LittleEndian
	raw := kernelSample(t)
	at := find(t, raw, TypeRegular, 2*testChunk+5)
	second := int(roundUp(int64(at)+inodeExtended, chunkAddrSize)) + chunkAddrSize
	le.PutUint16(raw[second:], 3) // the fourth chunk of the blob in place of the second
	le.PutUint32(raw[second+4:], 3*testChunk/blockSize)
	for format, want := range map[uint32]error{le.Uint32(raw[at+inodeUnion:]): ErrInvalid, le.Uint32(raw[at+inodeUnion:]) - 2: nil} {
		le.PutUint32(raw[at+inodeUnion:], format)
		if _, err := Decode(bytes.NewReader(raw), int64(len(raw))); !errors.Is(err, want) {
			t.Errorf("format %#x: want %v, got %v", format, want, err)
		}
	}
}
