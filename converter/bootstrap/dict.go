package bootstrap

import (
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// Dict is a dictionary: the chunks of earlier images, to which layers of a new one refer in place of storing them again.
//
// To name a blob has a price: the new image's registry, manifest and nodes carry all of it, its chunk table and its
// device. So a blob is named only if a layer would store 1 MiB or more of it, or a twentieth or more of the layer. Once a
// layer has named it, all later layers of the image use it freely. Chunks that stay below are stored again, behind
// the others. While a layer is packed, up to dictWorth bytes a blob wait in memory.
//
// A Dict belongs to one image: it counts the blobs named. What an earlier image says of its blobs is believed: who makes a
// Dict of an image of unknown origin checks that image first. It is not safe for concurrent use.
type Dict struct {
	chunkSize uint32
	left      int // blobs that may still be named
	blobs     []dictBlob
	places    map[digest.Digest]int
	chunks    map[chunkKey]chunkRef
}

type dictBlob struct {
	blob   Blob
	meta   []byte
	chunks map[uint32]Chunk // by number in the blob
	used   bool
}

const (
	// dictWorth is how many bytes a layer must find in a blob of the dictionary to name it,
	dictWorth = 1 << 20
	// dictShare is which part of its bytes is enough.
	dictShare = 20
)

// NewDict returns an empty dictionary for an image with chunks of chunkSize bytes, of which at most limit blobs are named:
// the format allows MaxBlobs in all.
func NewDict(chunkSize uint32, limit int) *Dict {
	return &Dict{chunkSize: chunkSize, left: limit, places: map[digest.Digest]int{}, chunks: map[chunkKey]chunkRef{}}
}

// Add takes the blobs of a decoded image with the chunks that image lists. metas are the blob.meta files of its bootstrap
// layer by name (see MetaName), which the new image's bootstrap layer will need too. Where two images have the same chunk,
// the one added first is referred to.
//
// A blob is left out if it is not as this package writes blobs, or if its blob.meta is missing or says something else than
// the bootstrap. The error tells which and why; the dictionary is usable all the same.
func (d *Dict) Add(img *Image, metas map[string][]byte) error {
	if img.ChunkSize != d.chunkSize {
		return fmt.Errorf("image with chunks of %d bytes, not %d: %w", img.ChunkSize, d.chunkSize, ErrUnsupported)
	}
	byBlob := make([][]Chunk, len(img.Blobs))
	for _, c := range img.Chunks {
		byBlob[c.Blob] = append(byBlob[c.Blob], c)
	}
	var left []error
	for i := range img.Blobs {
		b := &img.Blobs[i]
		if err := usable(b, byBlob[i], metas[MetaName(b)]); err != nil {
			left = append(left, fmt.Errorf("blob %s: %w", b.Digest, err))
			continue
		}
		d.add(b, byBlob[i], metas[MetaName(b)])
	}
	return errors.Join(left...)
}

func (d *Dict) add(b *Blob, chunks []Chunk, meta []byte) {
	at, ok := d.places[b.Digest]
	if !ok {
		at = len(d.blobs)
		d.places[b.Digest] = at
		d.blobs = append(d.blobs, dictBlob{blob: *b, meta: meta, chunks: map[uint32]Chunk{}})
	}
	for _, c := range chunks {
		d.blobs[at].chunks[c.Index] = c
		key := chunkKey{c.Digest, c.Size}
		if _, ok := d.chunks[key]; !ok {
			d.chunks[key] = chunkRef{at, c.Index}
		}
	}
}

// usable says why a blob cannot be referred to.
func usable(b *Blob, chunks []Chunk, meta []byte) error {
	if b.Features != 0 || b.Digester != Blake3 || b.Compressor == Gzip {
		return fmt.Errorf("features %#x, digester %d, compressor %d: %w", b.Features, b.Digester, b.Compressor, ErrUnsupported)
	}
	if meta == nil {
		return fmt.Errorf("no %s beside it: %w", MetaName(b), ErrInvalid)
	}
	at, table, err := DecodeMeta(meta)
	if err != nil {
		return err
	}
	if at != b.TableOffset || len(table) != int(b.ChunkCount) {
		return fmt.Errorf("blob.meta of %d chunks at %d, the bootstrap says %d at %d: %w", len(table), at, b.ChunkCount, b.TableOffset, ErrInvalid)
	}
	for _, c := range chunks {
		t := table[c.Index]
		if c.Offset != t.Offset || c.Length != t.Length || c.DeviceOffset != t.DeviceOffset || c.Size != t.Size {
			return fmt.Errorf("chunk %d is another in its blob.meta: %w", c.Index, ErrInvalid)
		}
	}
	return nil
}

// use names a blob and reports whether that is still possible.
func (d *Dict) use(blob int) bool {
	if d.left <= 0 {
		return false
	}
	d.left--
	d.blobs[blob].used = true
	return true
}
