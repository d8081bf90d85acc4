package bootstrap

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// placed is an inode with its place in the bootstrap. There is one for each file of the image, so it is kept small.
type placed struct {
	n      *Inode
	dir    *dirPlan // of a directory
	offset int64    // of the inode
	block  int64    // offset of the data blocks, if it has some
	nlink  uint32   // names, or 2 + subfolders
	ino    uint32   // numbered from 1 in order of placement
	xattrs uint32   // bytes they take
	layout uint16   // of the data
}

// dirPlan is what a directory holds.
type dirPlan struct {
	names  []string  // in byte order, with . and ..
	kids   []*placed // in the order of names
	blocks []dirBlock
}

// dirBlock is one block of a directory: the entries from first to before end.
type dirBlock struct{ first, end, used int }

// size returns the size of an inode in bytes as stat(2) shows it.
func (p *placed) size() int64 {
	switch p.n.Type() {
	case TypeRegular:
		return p.n.Size
	case TypeSymlink:
		return int64(len(p.n.Link))
	case TypeDir:
		last := len(p.dir.blocks) - 1
		return int64(last)*blockSize + int64(p.dir.blocks[last].used)
	}
	return 0
}

// Encoder writes the bootstrap of an image, whose size it knows before. It numbers the image's inodes: an image has one Encoder at a time, and
// must not be changed meanwhile. It is not safe for concurrent use.
type Encoder struct {
	img    *Image
	inodes []*placed // in order of placement, root first
	size   int64
	meta   int64 // offset of nid 0
	blobs  int64 // offset of the blob table
	first  int64 // offset of the prefetch table
	chunks int64 // offset of the chunk table
}

// Encode returns the bootstrap of an image; see NewEncoder.
func Encode(img *Image) ([]byte, error) {
	e, err := NewEncoder(img)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.Grow(int(e.Size()))
	_, err = e.WriteTo(&out)
	return out.Bytes(), err
}

// NewEncoder returns an Encoder of an image. Equal images have equal bootstraps. The error is ErrUnsupported if the format
// has no way to express the image, and ErrInvalid if the image contradicts itself.
func NewEncoder(img *Image) (*Encoder, error) {
	e := &Encoder{img: img}
	if err := e.check(); err != nil {
		return nil, err
	}
	if _, err := e.collect(img.Root, nil, 0); err != nil {
		return nil, err
	}
	if err := e.checkPrefetch(); err != nil {
		return nil, err
	}
	e.place()
	return e, nil
}

// Size returns the length of the bootstrap in bytes.
func (e *Encoder) Size() int64 { return e.size }

// WriteTo writes the bootstrap, from its start to its end. The error is that of w.
func (e *Encoder) WriteTo(w io.Writer) (int64, error) {
	out := &sequence{w: w}
	out.put(0, e.head())
	for _, p := range e.inodes {
		out.put(p.offset, e.inode(p))
	}
	for _, p := range e.inodes {
		if p.block > 0 {
			out.put(p.block, e.data(p))
		}
	}
	var entry [chunkEntrySize]byte
	for i := range e.img.Chunks {
		putChunk(entry[:], &e.img.Chunks[i])
		out.put(e.chunks+int64(chunkEntrySize*i), entry[:])
	}
	out.pad(e.size)
	return out.flush()
}

func (e *Encoder) check() error {
	img := e.img
	if bits.OnesCount32(img.ChunkSize) != 1 || img.ChunkSize < minChunkSize || img.ChunkSize > maxChunkSize {
		return fmt.Errorf("chunk size %d: %w", img.ChunkSize, ErrInvalid)
	}
	if len(img.Blobs) > maxDevices {
		return fmt.Errorf("%d blobs, at most %d: %w", len(img.Blobs), maxDevices, ErrUnsupported)
	}
	for i := range img.Blobs {
		b := &img.Blobs[i]
		if b.Digest.Algorithm() != digest.SHA256 || b.Digest.Validate() != nil {
			return fmt.Errorf("blob %d: digest %q: %w", i, b.Digest, ErrUnsupported)
		}
		if b.TableOffset > MaxBlobSize || b.DeviceSize > maxDeviceSize || b.ChunkCount > maxChunksPerBlob {
			return fmt.Errorf("blob %s: %d bytes, %d chunks: %w", b.Digest, b.Size, b.ChunkCount, ErrUnsupported)
		}
		if b.Foreign != nil && len(b.Foreign) != blobEntrySize-blobForeign {
			return fmt.Errorf("blob %s: %d foreign bytes: %w", b.Digest, len(b.Foreign), ErrInvalid)
		}
		if b.Compressor > Zstd || b.Digester > SHA256 {
			return fmt.Errorf("blob %s: compressor %d, digester %d: %w", b.Digest, b.Compressor, b.Digester, ErrUnsupported)
		}
	}
	for i := range img.Chunks {
		c := &img.Chunks[i]
		if int(c.Blob) >= len(img.Blobs) || c.DeviceOffset%blockSize != 0 || c.Size == 0 || c.Size > img.ChunkSize ||
			c.Length == 0 || c.Length > maxChunkSize || c.Offset < 0 || c.DeviceOffset < 0 || c.Index >= img.Blobs[c.Blob].ChunkCount {
			return fmt.Errorf("chunk %d: %+v: %w", i, *c, ErrInvalid)
		}
	}
	if img.Root == nil || !img.Root.IsDir() {
		return fmt.Errorf("no root directory: %w", ErrInvalid)
	}
	return nil
}

// seen returns the place of an inode that was visited; nil for others, whatever number they have of another Encoder.
func (e *Encoder) seen(n *Inode) *placed {
	if i := int(n.number) - 1; i >= 0 && i < len(e.inodes) && e.inodes[i].n == n {
		return e.inodes[i]
	}
	return nil
}

// collect visits the tree, parents first, and lists each inode once.
func (e *Encoder) collect(n *Inode, parent *placed, depth int) (*placed, error) {
	if p := e.seen(n); p != nil {
		if n.IsDir() {
			return nil, fmt.Errorf("a directory has two names: %w", ErrInvalid)
		}
		p.nlink++
		return p, nil
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("more than %d levels of directories: %w", maxDepth, ErrUnsupported)
	}
	n.number = uint32(len(e.inodes) + 1)
	p := &placed{n: n, nlink: 1, ino: n.number}
	e.inodes = append(e.inodes, p)
	xattrs, err := encodeXattrs(n.Xattrs)
	if err != nil {
		return nil, err
	}
	p.xattrs = uint32(len(xattrs))
	switch n.Type() {
	case TypeRegular:
		return p, e.checkFile(n)
	case TypeSymlink:
		if len(n.Link) == 0 || len(n.Link) > maxLink || strings.ContainsRune(n.Link, 0) {
			return nil, fmt.Errorf("symbolic link to %q: %w", n.Link, ErrUnsupported)
		}
	case TypeDir:
		return p, e.collectDir(p, cmp.Or(parent, p), depth)
	case TypeChar, TypeBlock, TypeFIFO, TypeSocket:
	default:
		return nil, fmt.Errorf("mode %o: %w", n.Mode, ErrInvalid)
	}
	return p, nil
}

func (e *Encoder) collectDir(p, parent *placed, depth int) error {
	p.nlink = 2
	names := append(p.n.Names(), ".", "..")
	for _, name := range names[:len(names)-2] {
		if name == "" || name == "." || name == ".." || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
			return fmt.Errorf("file name %q: %w", name, ErrUnsupported)
		}
	}
	slices.Sort(names)
	p.dir = &dirPlan{names: names, kids: make([]*placed, len(names))}
	// A block is never filled to its last byte: nydusd would read the last name beyond it.
	block := dirBlock{}
	for i, name := range names {
		if err := e.collectEntry(p, parent, i, depth); err != nil {
			return err
		}
		if block.used+direntSize+len(name) >= blockSize {
			p.dir.blocks = append(p.dir.blocks, block)
			block = dirBlock{first: i}
		}
		block.used += direntSize + len(name)
		block.end = i + 1
	}
	p.dir.blocks = append(p.dir.blocks, block)
	return nil
}

// collectEntry finds what entry i of a directory names.
func (e *Encoder) collectEntry(p, parent *placed, i, depth int) error {
	name := p.dir.names[i]
	switch name {
	case ".":
		p.dir.kids[i] = p
		return nil
	case "..":
		p.dir.kids[i] = parent
		return nil
	}
	kid, err := e.collect(p.n.Children[name], p, depth+1)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if kid.n.IsDir() {
		p.nlink++
	}
	p.dir.kids[i] = kid
	return nil
}

// checkFile makes sure that the chunks of a regular file are what its size demands.
func (e *Encoder) checkFile(n *Inode) error {
	size := int64(e.img.ChunkSize)
	if n.Size < 0 || int64(len(n.Chunks)) != (n.Size+size-1)/size {
		return fmt.Errorf("file of %d bytes with %d chunks: %w", n.Size, len(n.Chunks), ErrInvalid)
	}
	for i, at := range n.Chunks {
		if int(at) >= len(e.img.Chunks) || int64(e.img.Chunks[at].Size) != min(size, n.Size-int64(i)*size) {
			return fmt.Errorf("file of %d bytes: chunk %d: %w", n.Size, i, ErrInvalid)
		}
	}
	return nil
}

func (e *Encoder) checkPrefetch() error {
	listed := map[*Inode]bool{}
	for i, n := range e.img.Prefetch {
		if n == nil || e.seen(n) == nil || listed[n] {
			return fmt.Errorf("prefetch entry %d is not in the tree or stands twice: %w", i, ErrInvalid)
		}
		listed[n] = true
	}
	return nil
}

// place decides the offset of everything.
func (e *Encoder) place() {
	e.blobs = roundUp(deviceTableOffset+int64(deviceSlotSize*len(e.img.Blobs)), blockSize)
	e.first = e.blobs + int64(blobEntrySize*len(e.img.Blobs))
	e.meta = roundUp(e.first+int64(prefetchEntrySize*len(e.img.Prefetch)), blockSize)
	pos := e.meta + slotSize // nid 0 is no valid inode
	for _, p := range e.inodes {
		head, size := inodeExtended+int64(p.xattrs), p.size()
		tail := int64(0)
		switch {
		case p.n.Type() == TypeRegular:
			p.layout = layoutChunks
			head = roundUp(head, chunkAddrSize) + int64(chunkAddrSize*len(p.n.Chunks))
		case size > 0 && head+size <= blockSize:
			p.layout, tail = layoutInline, size
			// The kernel wants inline data within one block.
			if pos%blockSize+head+tail > blockSize {
				pos = roundUp(pos, blockSize)
			}
		}
		p.offset = pos
		pos = roundUp(pos+head+tail, slotSize)
	}
	pos = roundUp(pos, blockSize)
	for _, p := range e.inodes {
		if size := p.size(); p.layout == layoutPlain && size > 0 {
			p.block = pos
			pos += roundUp(size, blockSize)
		}
	}
	e.chunks = pos
	e.size = roundUp(e.chunks+int64(chunkEntrySize*len(e.img.Chunks)), blockSize)
}

func (e *Encoder) nid(p *placed) uint64 { return uint64(p.offset-e.meta) >> slotBits }

// head returns what is before the inodes: superblock, devices, blobs and the prefetch table.
func (e *Encoder) head() []byte {
	out := make([]byte, e.first+int64(prefetchEntrySize*len(e.img.Prefetch)))
	e.putSuper(out)
	e.putBlobs(out)
	for i, n := range e.img.Prefetch {
		binary.LittleEndian.PutUint32(out[e.first+int64(prefetchEntrySize*i):], uint32(e.nid(e.seen(n))))
	}
	return out
}

func (e *Encoder) putSuper(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[sbMagic:], superMagic)
	le.PutUint32(b[sbFeatureCompat:], compatRAFS)
	b[sbBlockBits] = blockBits
	le.PutUint16(b[sbRootNid:], uint16(e.nid(e.inodes[0])))
	le.PutUint64(b[sbInos:], uint64(len(e.inodes)))
	if len(e.img.Blobs) > 0 {
		le.PutUint32(b[sbBlocks:], uint32(e.size/blockSize))
	}
	le.PutUint32(b[sbMetaBlock:], uint32(e.meta/blockSize))
	le.PutUint32(b[sbFeatureIncompat:], incompatWanted)
	le.PutUint16(b[sbDevices:], uint16(len(e.img.Blobs)))
	le.PutUint16(b[sbDeviceSlot:], deviceTableOffset/deviceSlotSize)

	flags := flagUIDGID | e.blobFlags()
	for _, p := range e.inodes {
		if p.xattrs > 0 {
			flags |= flagXattr
		}
	}
	le.PutUint64(b[extFlags:], flags)
	le.PutUint64(b[extBlobTable:], uint64(e.blobs))
	le.PutUint32(b[extBlobTableSize:], uint32(blobEntrySize*len(e.img.Blobs)))
	le.PutUint32(b[extChunkSize:], e.img.ChunkSize)
	le.PutUint64(b[extChunkTable:], uint64(e.chunks))
	le.PutUint64(b[extChunkTableSize:], uint64(chunkEntrySize*len(e.img.Chunks)))
	if n := len(e.img.Prefetch); n > 0 {
		le.PutUint64(b[extPrefetch:], uint64(e.first))
		le.PutUint32(b[extPrefetchSize:], uint32(prefetchEntrySize*n))
	}
}

// blobFlags are the two flags for what each blob says for itself, too: readers want exactly one compressor and one digester.
func (e *Encoder) blobFlags() uint64 {
	compressors := [...]uint64{None: flagCompressNone, LZ4: flagCompressLZ4, Gzip: flagCompressGzip, Zstd: flagCompressZstd}
	most, digester := None, uint64(flagBlake3)
	for i := range e.img.Blobs {
		b := &e.img.Blobs[i]
		most = max(most, b.Compressor)
		if i == 0 && b.Digester == SHA256 {
			digester = flagSHA256
		}
	}
	return compressors[most] | digester
}

func (e *Encoder) putBlobs(out []byte) {
	le := binary.LittleEndian
	mapped := e.size / blockSize
	for i := range e.img.Blobs {
		blob := &e.img.Blobs[i]
		mapped = roundUp(mapped, deviceMappedAlignment)
		slot := out[deviceTableOffset+deviceSlotSize*i:]
		copy(slot, blob.Digest.Encoded())
		le.PutUint32(slot[deviceBlocks:], uint32(blob.DeviceSize/blockSize))
		if mapped <= math.MaxUint32 { // of use to single-device mounts only
			le.PutUint32(slot[deviceMapped:], uint32(mapped))
		}
		mapped += blob.DeviceSize / blockSize

		b := out[e.blobs+int64(blobEntrySize*i):]
		copy(b, blob.Digest.Encoded())
		le.PutUint32(b[blobIndex:], uint32(i))
		le.PutUint32(b[blobChunkSize:], e.img.ChunkSize)
		le.PutUint32(b[blobChunkCount:], blob.ChunkCount)
		le.PutUint32(b[blobCompressor:], uint32(blob.Compressor))
		le.PutUint32(b[blobDigester:], uint32(blob.Digester))
		le.PutUint32(b[blobFeatures:], cmp.Or(blob.Features, featuresOurs))
		le.PutUint64(b[blobSize:], uint64(blob.Size))
		le.PutUint64(b[blobDeviceSize:], uint64(blob.DeviceSize))
		copy(b[blobForeign:], foreignPart(blob))
		if blob.Foreign != nil {
			copy(b[blobForeign:], blob.Foreign)
			le.PutUint64(b[blobTableOffset:], uint64(blob.TableOffset))
		}
	}
}

// foreignPart returns the end of the blob's entry as it is for a blob that this package writes.
func foreignPart(blob *Blob) []byte {
	le, b := binary.LittleEndian, make([]byte, blobEntrySize)
	le.PutUint64(b[blobTableOffset:], uint64(blob.TableOffset))
	le.PutUint64(b[blobTableCompressedLen:], tableEntrySize*uint64(blob.ChunkCount))
	le.PutUint64(b[blobTableLen:], tableEntrySize*uint64(blob.ChunkCount))
	return b[blobForeign:]
}

// inode returns an inode with what follows it at once: attributes, and addresses of chunks or short data.
func (e *Encoder) inode(p *placed) []byte {
	le, n := binary.LittleEndian, p.n
	xattrs, _ := encodeXattrs(n.Xattrs) // they were encoded before
	in := append(make([]byte, inodeExtended, inodeExtended+len(xattrs)+chunkAddrSize*(len(n.Chunks)+1)), xattrs...)
	le.PutUint16(in[inodeFormat:], 1|p.layout<<1)
	if len(xattrs) > 0 {
		le.PutUint16(in[inodeXattrCount:], uint16((len(xattrs)-xattrHeaderSize)/xattrEntrySize+1))
	}
	le.PutUint16(in[inodeMode:], uint16(n.Mode))
	le.PutUint64(in[inodeSize:], uint64(p.size()))
	le.PutUint32(in[inodeIno:], p.ino)
	le.PutUint32(in[inodeUID:], n.UID)
	le.PutUint32(in[inodeGID:], n.GID)
	le.PutUint64(in[inodeMtime:], uint64(n.Mtime))
	le.PutUint32(in[inodeMtimeNsec:], n.MtimeNsec)
	le.PutUint32(in[inodeNlink:], p.nlink)
	switch n.Type() {
	case TypeRegular:
		le.PutUint32(in[inodeUnion:], chunkFormatIndex|e.chunkBits(n))
		in = append(in, make([]byte, -len(in)&(chunkAddrSize-1))...)
		for _, at := range n.Chunks {
			c := &e.img.Chunks[at]
			in = le.AppendUint16(in, uint16(c.Index))
			in = le.AppendUint16(in, uint16(c.Index>>16)<<8|uint16(c.Blob+1))
			in = le.AppendUint32(in, uint32(c.DeviceOffset/blockSize))
		}
	case TypeChar, TypeBlock:
		le.PutUint32(in[inodeUnion:], encodeDevice(n.Major, n.Minor))
	case TypeSymlink, TypeDir:
		if p.block > 0 {
			le.PutUint32(in[inodeUnion:], uint32(p.block/blockSize))
			break
		}
		in = append(in, e.data(p)...)
	}
	return in
}

// data returns a symbolic link's target or the blocks of a directory.
func (e *Encoder) data(p *placed) []byte {
	if p.n.Type() == TypeSymlink {
		return []byte(p.n.Link)
	}
	out := make([]byte, p.size())
	for i := range p.dir.blocks {
		e.putDirBlock(p.dir, &p.dir.blocks[i], out[blockSize*i:])
	}
	return out
}

// chunkBits returns how far above a block, as a power of two, the kernel may map the file at once: all of it if its chunks
// follow each other on one device.
func (e *Encoder) chunkBits(n *Inode) uint32 {
	size := uint64(e.img.ChunkSize)
	contiguous := len(n.Chunks) > 1
	for i := 1; i < len(n.Chunks) && contiguous; i++ {
		a, b := &e.img.Chunks[n.Chunks[i-1]], &e.img.Chunks[n.Chunks[i]]
		contiguous = a.Blob == b.Blob && a.DeviceOffset+int64(a.Size) == b.DeviceOffset
	}
	if contiguous {
		size = 1 << bits.Len64(uint64(n.Size)-1)
	}
	return min(uint32(bits.TrailingZeros64(size)-blockBits), chunkFormatBits)
}

func (e *Encoder) putDirBlock(d *dirPlan, block *dirBlock, out []byte) {
	le := binary.LittleEndian
	nameOff := direntSize * (block.end - block.first)
	for i := block.first; i < block.end; i++ {
		entry := out[direntSize*(i-block.first):]
		le.PutUint64(entry, e.nid(d.kids[i]))
		le.PutUint16(entry[direntNameOff:], uint16(nameOff))
		entry[direntType] = direntTypeOf(d.kids[i].n.Type())
		copy(out[nameOff:], d.names[i])
		nameOff += len(d.names[i])
	}
}

// putChunk writes an entry of the chunk table, and each of its bytes.
func putChunk(b []byte, c *Chunk) {
	clear(b)
	le := binary.LittleEndian
	copy(b, c.Digest[:])
	le.PutUint32(b[chunkBlob:], c.Blob)
	if c.Compressed() {
		le.PutUint32(b[chunkFlags:], chunkIsCompressed)
	}
	le.PutUint32(b[chunkLength:], c.Length)
	le.PutUint32(b[chunkSize:], c.Size)
	le.PutUint64(b[chunkOffset:], uint64(c.Offset))
	le.PutUint64(b[chunkDeviceOffset:], uint64(c.DeviceOffset))
	le.PutUint64(b[chunkFileOffset:], uint64(c.FileOffset))
	le.PutUint32(b[chunkIndex:], c.Index)
}

func direntTypeOf(mode uint32) byte {
	switch mode {
	case TypeRegular:
		return 1
	case TypeDir:
		return 2
	case TypeChar:
		return 3
	case TypeBlock:
		return 4
	case TypeFIFO:
		return 5
	case TypeSocket:
		return 6
	case TypeSymlink:
		return 7
	}
	return 0
}

// encodeDevice is the kernel's new_encode_dev.
func encodeDevice(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

func decodeDevice(dev uint32) (major, minor uint32) {
	return dev & 0xfff00 >> 8, dev&0xff | dev>>12&0xfff00
}
