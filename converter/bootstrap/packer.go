package bootstrap

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Packer writes the data blob of one framework layer: the RAFS chunks of its regular files, each compressed by itself, then
// the chunk table. A chunk that comes twice is stored once, and one that a dictionary has may be left out. The bytes depend
// on nothing but the files, their order and the dictionary. Chunks are hashed and compressed by several goroutines, which Close or
// Finish ends. It is not safe for concurrent use.
type Packer struct {
	w    io.Writer
	sum  hash.Hash
	kind Compressor
	pool *packPool

	offset int64 // in the blob
	device int64 // on the device
	size   uint32
	chunks []Chunk
	known  map[chunkKey]uint32 // number in the blob
	files  []packedFile

	dict  *Dict
	named map[chunkRef]bool
	saved int64         // bytes the layer would have to store of those
	held  map[int]*held // by blob of the dictionary, not all of which will be worth their while
}

// chunkKey is what makes two chunks the same.
type chunkKey struct {
	digest [32]byte
	size   uint32
}

// chunkRef names a chunk: number index in a blob of the dictionary, or in the Packer's own.
type chunkRef struct {
	blob  int // place in the dictionary, or own
	index uint32
}

const own = -1

// skipGap bounds from below what may lie in a blob between two chunks that follow each other in a file, if anything does.
// nydusd (2.2.0, measured) joins chunks over gaps of up to a 128th of its batch, which is 1 KiB to some MiB, and then reads
// the gap for the second chunk when both are in its cache. Reuse makes such gaps: another file's small last chunk.
const skipGap = 64 << 10

type packedFile struct {
	inode *Inode
	refs  []chunkRef
}

// held are chunks that one blob of the dictionary has, until it is known to be worth naming.
type held struct {
	chunks map[uint32]Chunk // by their number there; Offset and Length are those in stored
	stored []byte
}

// Packed is a framework layer that was packed.
type Packed struct {
	// Blob is the layer's data blob. A layer without data, or all of whose data the dictionary has, has none: Chunks is
	// empty then, and nothing was written.
	Blob   Blob
	Chunks []Chunk

	dict  *Dict
	files []packedFile
}

// NewPacker returns a Packer that writes to w, cuts files at chunkSize and compresses with None, LZ4 or Zstd. Chunks of
// dict, which may be nil, are referred to in place of being stored; see Dict.
func NewPacker(w io.Writer, chunkSize uint32, kind Compressor, dict *Dict) (*Packer, error) {
	if dict != nil && dict.chunkSize != chunkSize {
		return nil, fmt.Errorf("chunks of %d bytes with a dictionary of such of %d: %w", chunkSize, dict.chunkSize, ErrUnsupported)
	}
	pool, err := newPackPool(kind, int(chunkSize))
	if err != nil {
		return nil, err
	}
	return &Packer{
		w: w, sum: sha256.New(), kind: kind, pool: pool, size: chunkSize,
		known: map[chunkKey]uint32{}, dict: dict, held: map[int]*held{}, named: map[chunkRef]bool{},
	}, nil
}

// Close ends a Packer whose layer is not wanted. After Finish it does nothing.
func (p *Packer) Close() { p.pool.close() }

// Add packs the n.Size bytes of the regular file n, read from r. Its chunks are known, and set in n, when the layer is added
// to an image: see Builder.Add.
func (p *Packer) Add(n *Inode, r io.Reader) error {
	p.files = append(p.files, packedFile{inode: n})
	for done := int64(0); done < n.Size; {
		if p.pool.full() {
			if err := p.place(p.pool.next()); err != nil {
				return err
			}
		}
		length := min(int64(p.size), n.Size-done)
		j := p.pool.job(int(length))
		j.file, j.offset = len(p.files)-1, done
		if _, err := io.ReadFull(r, j.data); err != nil {
			p.pool.free(j)
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		p.pool.start(j)
		done += length
	}
	return nil
}

// place gives the next chunk, which is packed now, its place behind what came before it.
func (p *Packer) place(j *packJob) error {
	defer p.pool.free(j)
	if j.err != nil {
		return j.err
	}
	f := &p.files[j.file]
	var last *chunkRef
	if n := len(f.refs); n > 0 {
		last = &f.refs[n-1]
	}
	ref, err := p.add(j, last)
	f.refs = append(f.refs, ref)
	return err
}

// add finds or makes the place of a chunk that follows last, if it is not its file's first.
func (p *Packer) add(j *packJob, last *chunkRef) (chunkRef, error) {
	c := Chunk{Digest: j.digest, Size: uint32(len(j.data)), FileOffset: j.offset}
	key := chunkKey{c.Digest, c.Size}
	if index, ok := p.known[key]; ok && !p.skips(last, chunkRef{own, index}) {
		return chunkRef{own, index}, nil
	}
	if p.dict == nil {
		return p.append(c, j.stored, last)
	}
	ref, ok := p.dict.chunks[key]
	switch {
	case !ok || p.skips(last, ref):
		return p.append(c, j.stored, last)
	case p.dict.blobs[ref.blob].used:
		p.name(ref, p.dict.blobs[ref.blob].chunks[ref.index].Length)
		return ref, nil
	case p.dict.left <= 0:
		return p.append(c, j.stored, last)
	}
	p.hold(ref, c, j.stored)
	return ref, nil
}

func (p *Packer) at(ref chunkRef) Chunk {
	if ref.blob == own {
		return p.chunks[ref.index]
	}
	return p.dict.blobs[ref.blob].chunks[ref.index]
}

// skips reports whether a small gap lies between the two chunks.
func (p *Packer) skips(last *chunkRef, next chunkRef) bool {
	if last == nil || last.blob != next.blob {
		return false
	}
	a, b := p.at(*last), p.at(next)
	gap := b.Offset - a.Offset - int64(a.Length)
	return gap > 0 && gap <= skipGap
}

// name counts a chunk that is referred to.
func (p *Packer) name(ref chunkRef, length uint32) {
	if !p.named[ref] {
		p.named[ref] = true
		p.saved += int64(length)
	}
}

// append stores a chunk at the end of the blob.
func (p *Packer) append(c Chunk, stored []byte, last *chunkRef) (chunkRef, error) {
	if last != nil && last.blob == own {
		before := p.at(*last)
		end := before.Offset + int64(before.Length)
		if gap := p.offset - end; gap > 0 && gap <= skipGap {
			if err := p.pad(end + skipGap + 1); err != nil {
				return chunkRef{}, err
			}
		}
	}
	p.device = roundUp(p.device, blockSize)
	c.Index, c.Offset, c.Length, c.DeviceOffset = uint32(len(p.chunks)), p.offset, uint32(len(stored)), p.device
	if p.offset+int64(len(stored)) > MaxBlobSize || len(p.chunks) >= maxChunksPerBlob {
		return chunkRef{}, fmt.Errorf("layer of more than %d bytes or %d chunks: %w", int64(MaxBlobSize), maxChunksPerBlob, ErrUnsupported)
	}
	p.known[chunkKey{c.Digest, c.Size}] = c.Index
	p.chunks = append(p.chunks, c)
	p.offset += int64(len(stored))
	// The next chunk of the same file follows at once, so that the kernel maps the file as one run: only the last chunk of
	// a file is no whole number of blocks.
	p.device += int64(c.Size)
	return chunkRef{own, c.Index}, p.write(stored)
}

// pad fills the blob with zeros up to an offset.
func (p *Packer) pad(to int64) error {
	n := to - p.offset
	p.offset = to
	return p.write(make([]byte, n))
}

// hold keeps a chunk of a blob of the dictionary until enough of them are found to name that blob.
func (p *Packer) hold(ref chunkRef, c Chunk, stored []byte) {
	h := p.held[ref.blob]
	if h == nil {
		h = &held{chunks: map[uint32]Chunk{}}
		p.held[ref.blob] = h
	}
	if _, ok := h.chunks[ref.index]; ok {
		return
	}
	c.Offset, c.Length = int64(len(h.stored)), uint32(len(stored))
	h.chunks[ref.index] = c
	h.stored = append(h.stored, stored...)
	if len(h.stored) >= dictWorth && p.dict.use(ref.blob) {
		for index, c := range h.chunks {
			p.name(chunkRef{ref.blob, index}, c.Length)
		}
		delete(p.held, ref.blob)
	}
}

// settle decides about the blobs of the dictionary that have little of this layer: those worth naming are named, the chunks
// of the others are stored, in the order of the files.
func (p *Packer) settle() error {
	total := p.offset + p.saved
	for _, h := range p.held {
		total += int64(len(h.stored))
	}
	for blob := 0; p.dict != nil && blob < len(p.dict.blobs); blob++ {
		if h := p.held[blob]; h != nil && int64(len(h.stored)) >= (total+dictShare-1)/dictShare && p.dict.use(blob) {
			delete(p.held, blob)
		}
	}
	moved := map[chunkRef]chunkRef{}
	for _, f := range p.files {
		var last *chunkRef
		for i, ref := range f.refs {
			if h := p.held[ref.blob]; h != nil {
				to, ok := moved[ref]
				if !ok || p.skips(last, to) {
					var err error
					c := h.chunks[ref.index]
					if to, err = p.append(c, h.stored[c.Offset:c.Offset+int64(c.Length)], last); err != nil {
						return err
					}
					moved[ref] = to
				}
				f.refs[i] = to
			}
			last = &f.refs[i]
		}
	}
	return nil
}

func (p *Packer) write(b []byte) error {
	p.sum.Write(b)
	_, err := p.w.Write(b)
	return err
}

// Finish writes the chunk table. The Packer must not be used afterwards.
func (p *Packer) Finish() (*Packed, error) {
	defer p.Close()
	for !p.pool.empty() {
		if err := p.place(p.pool.next()); err != nil {
			return nil, err
		}
	}
	if err := p.settle(); err != nil {
		return nil, err
	}
	out := &Packed{Chunks: p.chunks, dict: p.dict, files: p.files}
	if len(p.chunks) == 0 {
		return out, nil
	}
	at := roundUp(p.offset, blockSize)
	if err := p.pad(at); err != nil {
		return nil, err
	}
	table := Table(at, slices.Values(p.chunks))
	if err := p.write(table); err != nil {
		return nil, err
	}
	out.Blob = Blob{
		Digest: digest.NewDigest(digest.SHA256, p.sum), Size: at + int64(len(table)), Compressor: p.kind,
		TableOffset: at, ChunkCount: uint32(len(p.chunks)), DeviceSize: roundUp(p.device, blockSize),
	}
	return out, nil
}

// Expand writes the chunks of blob number index of img, read from the whole blob r, at their place on the device, so that
// the kernel can mount it. The bytes of every chunk are checked against the image's digest before they are written. What lies
// between chunks is not written: a sparse file is enough. The caller truncates it to the blob's DeviceSize.
func Expand(w io.WriterAt, r io.ReaderAt, img *Image, index int) error {
	blob := &img.Blobs[index]
	x, err := NewExpander()
	if err != nil {
		return err
	}
	defer x.Close()
	var plain []byte
	for i := range img.Chunks {
		c := &img.Chunks[i]
		if int(c.Blob) != index {
			continue
		}
		if plain, err = x.Chunk(plain, r, blob, c); err != nil {
			return err
		}
		if _, err := w.WriteAt(plain, c.DeviceOffset); err != nil {
			return fmt.Errorf("blob %s: chunk %d: %w", blob.Digest, c.Index, err)
		}
	}
	return nil
}
