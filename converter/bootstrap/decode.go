package bootstrap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
)

type decoder struct {
	r    io.ReaderAt
	size int64
	img  *Image
	self digest.Digest // of the blob the bootstrap lies in, or empty

	meta   int64
	flags  uint64
	wanted [2]uint64         // offset and length of the prefetch table
	inodes map[uint64]*Inode // by nid
	dirs   map[uint64]bool   // directories that were entered: a second time is a loop
	chunks map[[2]uint32]uint32
	// budget is how many bytes may still be read. Parts of a hostile image may overlap, so that a small one describes
	// an endless tree; an honest one is read about once.
	budget int64
	// memory is how many bytes the image may still take once it is decoded.
	memory int64
}

// MountMemory is what DecodeWithin may use in bytes where images are mounted: enough for about a million files.
const MountMemory = 512 << 20

// Decode reads a bootstrap of size bytes. It need not be trusted: every length, count and offset is checked before use,
// and the memory taken is proportional to size. Errors are ErrInvalid, ErrUnsupported and those of r.
//
// A decoded image has passed the checks Encode makes; whether its chunks lie within their blobs is checked too, whether the
// blobs exist is not.
func Decode(r io.ReaderAt, size int64) (*Image, error) { return decode(r, size, "") }

// DecodeWithin decodes as Decode does what takes no more than memory bytes when it is decoded, its own tables included; else the error is
// ErrTooLarge. A small file may list many times what its own size is.
func DecodeWithin(r io.ReaderAt, size, memory int64) (*Image, error) {
	return newDecoder(r, size, memory).decode()
}

// DecodeFile decodes the bootstrap in a file, as DecodeWithin does.
func DecodeFile(path string, memory int64) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return DecodeWithin(f, info.Size(), memory)
}

// decode decodes a bootstrap that lies in the blob self, or in none.
func decode(r io.ReaderAt, size int64, self digest.Digest) (*Image, error) {
	d := newDecoder(r, size, math.MaxInt64)
	d.self = self
	return d.decode()
}

func newDecoder(r io.ReaderAt, size, memory int64) *decoder {
	return &decoder{
		r: r, size: size, img: &Image{}, budget: 4 * size, memory: memory,
		inodes: map[uint64]*Inode{}, dirs: map[uint64]bool{}, chunks: map[[2]uint32]uint32{},
	}
}

func (d *decoder) decode() (*Image, error) {
	if d.size < blockSize || d.size > maxBootstrap || d.size%blockSize != 0 {
		return nil, fmt.Errorf("bootstrap of %d bytes: %w", d.size, ErrInvalid)
	}
	rootNid, err := d.readSuper()
	if err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	root, err := d.inode(rootNid, 0)
	if err != nil {
		return nil, fmt.Errorf("tree: %w", err)
	}
	if !root.IsDir() {
		return nil, fmt.Errorf("the root is no directory: %w", ErrInvalid)
	}
	d.img.Root = root
	if err := d.readPrefetch(); err != nil {
		return nil, fmt.Errorf("prefetch table: %w", err)
	}
	return d.img, nil
}

// What things take in memory, in bytes and rounded up: with their places in the maps, which are half empty when they have just grown.
const (
	costInode     = 240
	costDirectory = 240
	costName      = 64 // and what it is long
	costXattrs    = 320
	costXattr     = 96 // likewise
	costChunk     = 130
	costChunkRef  = 4
)

// take notes that what is read takes so many bytes of memory, before it does.
func (d *decoder) take(bytes int64) error {
	if d.memory -= bytes; d.memory < 0 {
		return fmt.Errorf("it lists more files than there may be: %w", ErrTooLarge)
	}
	return nil
}

// bytes returns the bytes [off, off+length) of the bootstrap.
func (d *decoder) bytes(off, length int64) ([]byte, error) {
	if off < 0 || length < 0 || off > d.size-length {
		return nil, fmt.Errorf("bytes [%d,+%d) of %d: %w", off, length, d.size, ErrInvalid)
	}
	if d.budget -= length; d.budget < 0 {
		return nil, fmt.Errorf("parts overlap: %w", ErrInvalid)
	}
	out := make([]byte, length)
	if _, err := d.r.ReadAt(out, off); err != nil && (!errors.Is(err, io.EOF) || off+length != d.size) {
		return nil, fmt.Errorf("read [%d,+%d): %w", off, length, err)
	}
	return out, nil
}

func (d *decoder) readSuper() (rootNid uint64, err error) {
	b, err := d.bytes(0, blockSize)
	if err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	if le.Uint32(b[sbMagic:]) != superMagic {
		return 0, fmt.Errorf("no EROFS magic: %w", ErrInvalid)
	}
	if got := le.Uint32(b[sbFeatureCompat:]); got&compatRAFS == 0 {
		return 0, fmt.Errorf("EROFS, but not RAFS: %w", ErrUnsupported)
	} else if got&^compatKnown != 0 {
		return 0, fmt.Errorf("compatible features %#x: %w", got, ErrUnsupported)
	}
	if got := le.Uint32(b[sbFeatureIncompat:]); got != incompatWanted {
		return 0, fmt.Errorf("incompatible features %#x: %w", got, ErrUnsupported)
	}
	if b[sbBlockBits] != blockBits {
		return 0, fmt.Errorf("block size 2^%d: %w", b[sbBlockBits], ErrUnsupported)
	}
	if b[sbExtSlots] != 0 || le.Uint32(b[sbXattrBlock:]) != 0 || le.Uint16(b[sbUnion:]) != 0 || b[sbDirBits] != 0 || b[sbPrefixes] != 0 {
		return 0, fmt.Errorf("superblock slots, large directory blocks or shared attributes: %w", ErrUnsupported)
	}
	d.meta = int64(le.Uint32(b[sbMetaBlock:])) * blockSize
	d.flags = le.Uint64(b[extFlags:])
	d.img.ChunkSize = le.Uint32(b[extChunkSize:])
	if bits.OnesCount32(d.img.ChunkSize) != 1 || d.img.ChunkSize < minChunkSize || d.img.ChunkSize > maxChunkSize {
		return 0, fmt.Errorf("chunk size %d: %w", d.img.ChunkSize, ErrInvalid)
	}
	if d.flags&flagTarfs != 0 || bits.OnesCount64(d.flags&compressFlags) != 1 {
		return 0, fmt.Errorf("flags %#x: %w", d.flags, ErrUnsupported)
	}
	d.wanted = [2]uint64{le.Uint64(b[extPrefetch:]), uint64(le.Uint32(b[extPrefetchSize:]))}
	devices := int(le.Uint16(b[sbDevices:]))
	if devices > 0 && le.Uint16(b[sbDeviceSlot:]) != deviceTableOffset/deviceSlotSize {
		return 0, fmt.Errorf("device table in slot %d: %w", le.Uint16(b[sbDeviceSlot:]), ErrUnsupported)
	}
	if err := d.readBlobs(le.Uint64(b[extBlobTable:]), le.Uint32(b[extBlobTableSize:]), devices); err != nil {
		return 0, fmt.Errorf("blob table: %w", err)
	}
	if err := d.readChunks(le.Uint64(b[extChunkTable:]), le.Uint64(b[extChunkTableSize:])); err != nil {
		return 0, fmt.Errorf("chunk table: %w", err)
	}
	return uint64(le.Uint16(b[sbRootNid:])), nil
}

func (d *decoder) readBlobs(off uint64, size uint32, devices int) error {
	count := int(size / blobEntrySize)
	if size%blobEntrySize != 0 || count > maxDevices || count != devices || off > uint64(d.size) {
		return fmt.Errorf("%d bytes for %d devices: %w", size, devices, ErrInvalid)
	}
	table, err := d.bytes(int64(off), int64(size))
	if err != nil {
		return err
	}
	slots, err := d.bytes(deviceTableOffset, int64(count*deviceSlotSize))
	if err != nil {
		return err
	}
	for i := range count {
		blob, err := d.blob(uint32(i), table[blobEntrySize*i:][:blobEntrySize], slots[deviceSlotSize*i:][:deviceSlotSize])
		if err != nil {
			return fmt.Errorf("blob %d: %w", i, err)
		}
		d.img.Blobs = append(d.img.Blobs, blob)
	}
	return nil
}

func (d *decoder) blob(i uint32, b, slot []byte) (Blob, error) {
	le := binary.LittleEndian
	blob := Blob{
		Digest:      digest.NewDigestFromEncoded(digest.SHA256, string(b[:tagSize])),
		Size:        int64(le.Uint64(b[blobSize:])),
		Compressor:  Compressor(le.Uint32(b[blobCompressor:])),
		Digester:    Digester(le.Uint32(b[blobDigester:])),
		TableOffset: int64(le.Uint64(b[blobTableOffset:])),
		ChunkCount:  le.Uint32(b[blobChunkCount:]),
		DeviceSize:  roundUp(int64(le.Uint64(b[blobDeviceSize:])&(1<<62-1)), blockSize),
		Features:    le.Uint32(b[blobFeatures:]),
	}
	if blob.Features == featuresOurs {
		blob.Features = 0
	} else if blob.Features&featureAligned == 0 {
		return blob, fmt.Errorf("features %#x: %w", blob.Features, ErrUnsupported)
	}
	if rest := foreignPart(&blob); !bytes.Equal(rest, b[blobForeign:blobEntrySize]) {
		blob.Foreign = bytes.Clone(b[blobForeign:blobEntrySize])
	}
	if d.self != "" && string(b[:tagSize]) == ownTag {
		blob.Digest = d.self
	}
	switch {
	case blob.Digest.Validate() != nil || string(slot[:tagSize]) != string(b[:tagSize]):
		return blob, fmt.Errorf("id %q, device tag %q: %w", b[:tagSize], slot[:tagSize], ErrInvalid)
	case le.Uint32(b[blobIndex:]) != i || le.Uint32(b[blobChunkSize:]) != d.img.ChunkSize:
		return blob, fmt.Errorf("number or chunk size: %w", ErrInvalid)
	case blob.Compressor > Zstd || blob.Digester > SHA256:
		return blob, fmt.Errorf("compressor %d, digester %d: %w", blob.Compressor, blob.Digester, ErrUnsupported)
	case blob.Size < 0 || blob.Size > 2*MaxBlobSize || blob.TableOffset < 0 || blob.TableOffset > MaxBlobSize ||
		le.Uint64(b[blobDeviceSize:]) > maxDeviceSize || blob.ChunkCount > maxChunksPerBlob:
		return blob, fmt.Errorf("%d bytes, %d chunks: %w", blob.Size, blob.ChunkCount, ErrInvalid)
	case int64(le.Uint32(slot[deviceBlocks:])) != blob.DeviceSize/blockSize:
		return blob, fmt.Errorf("device of %d blocks for %d bytes: %w", le.Uint32(slot[deviceBlocks:]), blob.DeviceSize, ErrInvalid)
	}
	return blob, nil
}

func (d *decoder) readChunks(off, size uint64) error {
	if size%chunkEntrySize != 0 || size > uint64(d.size) || off > uint64(d.size) {
		return fmt.Errorf("%d bytes at %d: %w", size, off, ErrInvalid)
	}
	if err := d.take(int64(size/chunkEntrySize) * costChunk); err != nil {
		return err
	}
	table, err := d.bytes(int64(off), int64(size))
	if err != nil {
		return err
	}
	d.img.Chunks = make([]Chunk, 0, size/chunkEntrySize)
	for i := range uint32(size / chunkEntrySize) {
		c, err := d.chunk(table[chunkEntrySize*int(i):])
		if err != nil {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
		key := [2]uint32{c.Blob, c.Index}
		if _, ok := d.chunks[key]; ok {
			return fmt.Errorf("chunk %d of blob %d stands twice: %w", c.Index, c.Blob, ErrInvalid)
		}
		d.chunks[key] = i
		d.img.Chunks = append(d.img.Chunks, c)
	}
	return nil
}

func (d *decoder) chunk(b []byte) (Chunk, error) {
	le := binary.LittleEndian
	c := Chunk{
		Blob: le.Uint32(b[chunkBlob:]), Index: le.Uint32(b[chunkIndex:]),
		Offset: int64(le.Uint64(b[chunkOffset:])), Length: le.Uint32(b[chunkLength:]),
		DeviceOffset: int64(le.Uint64(b[chunkDeviceOffset:])), Size: le.Uint32(b[chunkSize:]),
		FileOffset: int64(le.Uint64(b[chunkFileOffset:])),
	}
	copy(c.Digest[:], b)
	if int(c.Blob) >= len(d.img.Blobs) {
		return c, fmt.Errorf("of blob %d: %w", c.Blob, ErrInvalid)
	}
	blob := &d.img.Blobs[c.Blob]
	switch {
	case c.Index >= blob.ChunkCount:
		return c, fmt.Errorf("number %d of %d: %w", c.Index, blob.ChunkCount, ErrInvalid)
	case c.Size == 0 || c.Size > d.img.ChunkSize || c.Length == 0 || c.Length > maxChunkSize || c.FileOffset < 0:
		return c, fmt.Errorf("%d bytes, %d stored: %w", c.Size, c.Length, ErrInvalid)
	case c.DeviceOffset < 0 || c.DeviceOffset%blockSize != 0 || c.DeviceOffset > blob.DeviceSize-int64(c.Size):
		return c, fmt.Errorf("at %d of a device of %d bytes: %w", c.DeviceOffset, blob.DeviceSize, ErrInvalid)
	case c.Offset < 0 || blob.Features&featuresForeign == 0 && c.Offset > blob.Size-int64(c.Length): // else they lie elsewhere
		return c, fmt.Errorf("at %d of a blob of %d bytes: %w", c.Offset, blob.Size, ErrInvalid)
	}
	return c, nil
}

// readPrefetch comes last: the table names inodes.
func (d *decoder) readPrefetch() error {
	off, size := d.wanted[0], d.wanted[1]
	if off == 0 || size == 0 { // older tools write a size without a table
		return nil
	}
	if size%prefetchEntrySize != 0 || off > uint64(d.size) {
		return fmt.Errorf("%d bytes at %d: %w", size, off, ErrInvalid)
	}
	table, err := d.bytes(int64(off), int64(size))
	if err != nil {
		return err
	}
	listed := map[*Inode]bool{}
	for ; len(table) > 0; table = table[prefetchEntrySize:] {
		nid := binary.LittleEndian.Uint32(table)
		if nid == 0 { // what follows is padding
			break
		}
		n, ok := d.inodes[uint64(nid)]
		if !ok {
			return fmt.Errorf("inode %d is not in the tree: %w", nid, ErrInvalid)
		}
		if !listed[n] {
			listed[n] = true
			d.img.Prefetch = append(d.img.Prefetch, n)
		}
	}
	return nil
}

// diskInode is the part of an inode that does not depend on its type.
type diskInode struct {
	Inode
	layout uint16
	union  uint32
	size   int64
	body   int64 // offset behind inode and xattrs
}

func (d *decoder) readInode(nid uint64) (*diskInode, error) {
	if nid == 0 || nid > uint64(d.size)/slotSize {
		return nil, fmt.Errorf("inode %d: %w", nid, ErrInvalid)
	}
	off := d.meta + int64(nid)*slotSize
	b, err := d.bytes(off, inodeCompact)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	format := le.Uint16(b[inodeFormat:])
	if err := checkFormat(b, format); err != nil {
		return nil, fmt.Errorf("inode %d: %w", nid, err)
	}
	in := &diskInode{layout: format >> 1, union: le.Uint32(b[inodeUnion:]), body: off + inodeCompact}
	in.Mode = uint32(le.Uint16(b[inodeMode:]))
	if format&1 == 0 {
		in.size = int64(le.Uint32(b[inodeSize:]))
		in.UID, in.GID = uint32(le.Uint16(b[inodeUID:])), uint32(le.Uint16(b[compactGID:]))
	} else {
		rest, err := d.bytes(off+inodeCompact, inodeExtended-inodeCompact)
		if err != nil {
			return nil, err
		}
		b, in.body = append(b, rest...), off+inodeExtended
		in.size = int64(le.Uint64(b[inodeSize:]))
		in.UID, in.GID = le.Uint32(b[inodeUID:]), le.Uint32(b[inodeGID:])
		in.Mtime, in.MtimeNsec = int64(le.Uint64(b[inodeMtime:])), le.Uint32(b[inodeMtimeNsec:])
	}
	if in.size < 0 || in.size > maxDeviceSize {
		return nil, fmt.Errorf("inode %d of %d bytes: %w", nid, in.size, ErrInvalid)
	}
	if count := int64(le.Uint16(b[inodeXattrCount:])); count > 0 {
		length := xattrHeaderSize + (count-1)*xattrEntrySize
		raw, err := d.bytes(in.body, length)
		if err != nil {
			return nil, err
		}
		if in.Xattrs, err = decodeXattrs(raw); err != nil {
			return nil, err
		}
		if err := d.take(costXattrs + int64(len(in.Xattrs))*costXattr + length); err != nil {
			return nil, err
		}
		in.body += length
	}
	return in, nil
}

// inode returns the inode with its content; files with several names are read once.
func (d *decoder) inode(nid uint64, depth int) (*Inode, error) {
	if n, ok := d.inodes[nid]; ok && !n.IsDir() {
		return n, nil
	}
	if d.dirs[nid] || depth > maxDepth {
		return nil, fmt.Errorf("directory %d has two names or lies too deep: %w", nid, ErrInvalid)
	}
	if err := d.take(costInode); err != nil {
		return nil, err
	}
	in, err := d.readInode(nid)
	if err != nil {
		return nil, err
	}
	n := in.Inode
	switch n.Type() {
	case TypeRegular:
		err = d.file(in, &n)
	case TypeDir:
		d.dirs[nid] = true
		if err := d.take(costDirectory); err != nil {
			return nil, err
		}
		n.Children = map[string]*Inode{}
		err = d.dir(in, &n, depth)
	case TypeSymlink:
		var data []byte
		if in.size == 0 || in.size > maxLink {
			return nil, fmt.Errorf("symbolic link of %d bytes: %w", in.size, ErrInvalid)
		}
		if err := d.take(in.size); err != nil {
			return nil, err
		}
		data, err = d.data(in, 0, in.size)
		if n.Link = string(data); strings.ContainsRune(n.Link, 0) {
			return nil, fmt.Errorf("symbolic link to %q: %w", n.Link, ErrInvalid)
		}
	case TypeChar, TypeBlock:
		n.Major, n.Minor = decodeDevice(in.union)
	case TypeFIFO, TypeSocket:
	default:
		return nil, fmt.Errorf("inode %d: mode %o: %w", nid, n.Mode, ErrInvalid)
	}
	if err != nil {
		return nil, err
	}
	d.inodes[nid] = &n
	return &n, nil
}

// data returns bytes [off, off+length) of a directory or link, which must not cross into the last block from before it.
func (d *decoder) data(in *diskInode, off, length int64) ([]byte, error) {
	last := (in.size - 1) / blockSize * blockSize
	switch {
	case in.layout == layoutInline && off >= last:
		if in.body%blockSize+in.size-last > blockSize {
			return nil, fmt.Errorf("inline data across blocks: %w", ErrInvalid)
		}
		return d.bytes(in.body+off-last, length)
	case in.layout == layoutPlain || in.layout == layoutInline:
		return d.bytes(int64(in.union)*blockSize+off, length)
	}
	return nil, fmt.Errorf("data layout %d: %w", in.layout, ErrUnsupported)
}

func (d *decoder) dir(in *diskInode, n *Inode, depth int) error {
	last := ""
	for off := int64(0); off < in.size; off += blockSize {
		block, err := d.data(in, off, min(blockSize, in.size-off))
		if err != nil {
			return err
		}
		if err := eachDirent(block, func(name string, nid uint64, kind byte) error {
			if name <= last || len(name) > maxName || strings.ContainsAny(name, "/\x00") { // the kernel searches by halves
				return fmt.Errorf("file name %q behind %q: %w", name, last, ErrInvalid)
			}
			last = name
			if name == "." || name == ".." {
				return nil
			}
			if err := d.take(costName + int64(len(name))); err != nil {
				return err
			}
			kid, err := d.inode(nid, depth+1)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if kind != 0 && kind != direntTypeOf(kid.Type()) { // which who lists the directory is told
				return fmt.Errorf("%s: type %d, mode %o: %w", name, kind, kid.Mode, ErrInvalid)
			}
			n.Children[name] = kid
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func eachDirent(block []byte, visit func(name string, nid uint64, kind byte) error) error {
	le := binary.LittleEndian
	if len(block) < direntSize {
		return fmt.Errorf("directory block of %d bytes: %w", len(block), ErrInvalid)
	}
	names := int(le.Uint16(block[direntNameOff:]))
	if names == 0 || names%direntSize != 0 || names > len(block) {
		return fmt.Errorf("directory block with names at %d of %d: %w", names, len(block), ErrInvalid)
	}
	for at := 0; at < names; at += direntSize {
		start, end := int(le.Uint16(block[at+direntNameOff:])), len(block)
		if at+direntSize < names {
			end = int(le.Uint16(block[at+direntSize+direntNameOff:]))
		}
		if start < names || start >= end || end > len(block) {
			return fmt.Errorf("file name at [%d,%d): %w", start, end, ErrInvalid)
		}
		name := string(block[start:end])
		if at+direntSize >= names {
			name, _, _ = strings.Cut(name, "\x00") // the last name ends with the block or with a zero
		}
		if name == "" {
			return fmt.Errorf("empty file name: %w", ErrInvalid)
		}
		if err := visit(name, le.Uint64(block[at:]), block[at+direntType]); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) file(in *diskInode, n *Inode) error {
	n.Size = in.size
	if n.Size == 0 {
		return nil
	}
	if in.layout != layoutChunks || in.union&chunkFormatIndex == 0 {
		return fmt.Errorf("regular file with data layout %d, format %#x: %w", in.layout, in.union, ErrUnsupported)
	}
	size := int64(d.img.ChunkSize)
	count := (n.Size + size - 1) / size
	if err := d.take(count * costChunkRef); err != nil {
		return err
	}
	raw, err := d.bytes(roundUp(in.body, chunkAddrSize), count*chunkAddrSize)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	n.Chunks = make([]uint32, count)
	for i := range n.Chunks {
		addr := raw[chunkAddrSize*i:]
		high := le.Uint16(addr[2:])
		key := [2]uint32{uint32(high&0xff) - 1, uint32(le.Uint16(addr)) | uint32(high>>8)<<16}
		at, ok := d.chunks[key]
		if !ok {
			return fmt.Errorf("chunk %d of blob %d is not in the table: %w", key[1], int32(key[0]), ErrInvalid)
		}
		c := &d.img.Chunks[at]
		if int64(le.Uint32(addr[4:])) != c.DeviceOffset/blockSize || int64(c.Size) != min(size, n.Size-int64(i)*size) {
			return fmt.Errorf("chunk %d of a file of %d bytes contradicts the table: %w", i, n.Size, ErrInvalid)
		}
		n.Chunks[i] = at
	}
	return d.checkSpan(in, n)
}
