package bootstrap

import (
	"iter"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Builder lists in an image the blobs its files are made of, each once, and their chunks. It is not safe for concurrent use.
type Builder struct {
	img    *Image
	blobs  map[digest.Digest]uint32
	whole  map[uint32]uint32    // blobs that are listed with all their chunks: the place of the first one
	chunks map[[2]uint32]uint32 // places of those of other blobs
	metas  map[string][]byte
}

// NewBuilder returns a Builder that fills img.Blobs and img.Chunks, which are empty.
func NewBuilder(img *Image) *Builder {
	return &Builder{
		img: img, blobs: map[digest.Digest]uint32{}, whole: map[uint32]uint32{}, chunks: map[[2]uint32]uint32{}, metas: map[string][]byte{},
	}
}

// AddBlob lists a blob with all its chunks, in the order of their index, and returns their places in Image.Chunks. A blob
// that is listed already is not listed again.
func (b *Builder) AddBlob(blob Blob, chunks iter.Seq[Chunk]) []uint32 {
	first := uint32(len(b.img.Chunks))
	places := make([]uint32, 0, blob.ChunkCount)
	if at, ok := b.blobs[blob.Digest]; ok {
		for c := range chunks {
			places = append(places, b.chunk(at, c))
		}
		return places
	}
	b.img.Chunks = slices.Grow(b.img.Chunks, int(blob.ChunkCount))
	at := uint32(len(b.img.Blobs))
	for c := range chunks {
		c.Blob = at
		places = append(places, uint32(len(b.img.Chunks)))
		b.img.Chunks = append(b.img.Chunks, c)
	}
	b.whole[at] = first
	b.blob(blob, func() []byte { return Meta(blob.TableOffset, b.img.Chunks[first:]) })
	return places
}

// Add lists a packed layer: its own blob, and those blobs of the dictionary that its files refer to with the chunks they
// refer to. It sets the chunks of the layer's inodes.
func (b *Builder) Add(p *Packed) {
	var places []uint32
	if len(p.Chunks) > 0 {
		places = b.AddBlob(p.Blob, slices.Values(p.Chunks))
	}
	for _, f := range p.files {
		f.inode.Chunks = make([]uint32, len(f.refs))
		for i, ref := range f.refs {
			if ref.blob == own {
				f.inode.Chunks[i] = places[ref.index]
				continue
			}
			d := &p.dict.blobs[ref.blob]
			at := b.blob(d.blob, func() []byte { return d.meta })
			f.inode.Chunks[i] = b.chunk(at, d.chunks[ref.index])
		}
	}
}

// Has reports whether the image has the blob already.
func (b *Builder) Has(blob digest.Digest) bool {
	_, ok := b.blobs[blob]
	return ok
}

// Metas returns the blob.meta files of all blobs by the name they have in the tar of the bootstrap layer.
func (b *Builder) Metas() map[string][]byte { return maps.Clone(b.metas) }

func (b *Builder) blob(blob Blob, meta func() []byte) uint32 {
	at, ok := b.blobs[blob.Digest]
	if !ok {
		at = uint32(len(b.img.Blobs))
		b.blobs[blob.Digest] = at
		b.img.Blobs = append(b.img.Blobs, blob)
		b.metas[MetaName(&blob)] = meta()
	}
	return at
}

func (b *Builder) chunk(blob uint32, c Chunk) uint32 {
	if first, ok := b.whole[blob]; ok {
		return first + c.Index
	}
	key := [2]uint32{blob, c.Index}
	at, ok := b.chunks[key]
	if !ok {
		at = uint32(len(b.img.Chunks))
		b.chunks[key] = at
		c.Blob = blob
		b.img.Chunks = append(b.img.Chunks, c)
	}
	return at
}
