package bootstrap

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/zeebo/blake3"
)

// Packer writes the data blob of one framework layer: the RAFS chunks of its regular files, each compressed by itself, then
// the chunk table. The bytes depend on nothing but the files and their order. It is not safe for concurrent use.
type Packer struct {
	w      io.Writer
	sum    hash.Hash
	zw     *zstd.Encoder
	chunk  []byte
	packed []byte

	offset int64 // in the blob
	device int64 // on the device
	size   uint32
	chunks []Chunk
	kind   Compressor
}

// NewPacker returns a Packer that writes to w, cuts files at chunkSize and compresses with None or Zstd.
func NewPacker(w io.Writer, chunkSize uint32, kind Compressor) (*Packer, error) {
	p := &Packer{w: w, sum: sha256.New(), chunk: make([]byte, chunkSize), size: chunkSize, kind: kind}
	switch kind {
	case None:
	case Zstd:
		var err error
		if p.zw, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false)); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("compressor %d: %w", kind, ErrUnsupported)
	}
	return p, nil
}

// Add appends a file of size bytes read from r and returns the numbers of its chunks in the blob, first and how many.
func (p *Packer) Add(r io.Reader, size int64) (first uint32, count int, err error) {
	first = uint32(len(p.chunks))
	p.device = roundUp(p.device, blockSize)
	for done := int64(0); done < size; {
		n := min(int64(p.size), size-done)
		if _, err := io.ReadFull(r, p.chunk[:n]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, 0, err
		}
		if err := p.add(p.chunk[:n], done); err != nil {
			return 0, 0, err
		}
		done += n
	}
	return first, len(p.chunks) - int(first), nil
}

func (p *Packer) add(data []byte, fileOffset int64) error {
	stored := data
	if p.kind == Zstd {
		// A chunk that does not shrink is stored as it is; the format tells by the equal lengths.
		if p.packed = p.zw.EncodeAll(data, p.packed[:0]); len(p.packed) < len(data) {
			stored = p.packed
		}
	}
	c := Chunk{
		Index: uint32(len(p.chunks)), Digest: blake3.Sum256(data), FileOffset: fileOffset,
		Offset: p.offset, Length: uint32(len(stored)), DeviceOffset: p.device, Size: uint32(len(data)),
	}
	if p.offset+int64(len(stored)) > MaxBlobSize || len(p.chunks) >= maxChunksPerBlob {
		return fmt.Errorf("layer of more than %d bytes or %d chunks: %w", int64(MaxBlobSize), maxChunksPerBlob, ErrUnsupported)
	}
	p.chunks = append(p.chunks, c)
	p.offset += int64(len(stored))
	// The next chunk of the same file follows at once, so that the kernel maps the file as one run.
	p.device += int64(len(data))
	return p.write(stored)
}

func (p *Packer) write(b []byte) error {
	p.sum.Write(b)
	_, err := p.w.Write(b)
	return err
}

// Finish writes the chunk table and returns the blob and its chunks. A layer without data has no chunk and makes no blob:
// then nothing was written and ok is false. The Packer must not be used afterwards.
func (p *Packer) Finish() (b Blob, chunks []Chunk, ok bool, err error) {
	if p.zw != nil {
		_ = p.zw.Close() // it only releases memory: EncodeAll leaves nothing to flush
	}
	if len(p.chunks) == 0 {
		return Blob{}, nil, false, nil
	}
	at := p.offset
	if pad := roundUp(at, blockSize) - at; pad > 0 {
		if err := p.write(make([]byte, pad)); err != nil {
			return Blob{}, nil, false, err
		}
		at += pad
	}
	table := Table(at, p.chunks)
	if err := p.write(table); err != nil {
		return Blob{}, nil, false, err
	}
	return Blob{
		Digest: digest.NewDigest(digest.SHA256, p.sum), Size: at + int64(len(table)), Compressor: p.kind,
		TableOffset: at, ChunkCount: uint32(len(p.chunks)), DeviceSize: roundUp(p.device, blockSize),
	}, p.chunks, true, nil
}

// Expand writes the chunks of blob number index of img, read from the whole blob r, at their place on the device, so that
// the kernel can mount it. The bytes of every chunk are checked against the image's digest before they are written. What lies
// between chunks is not written: a sparse file is enough. The caller truncates it to the blob's DeviceSize.
func Expand(w io.WriterAt, r io.ReaderAt, img *Image, index int) error {
	blob := &img.Blobs[index]
	if err := blob.Readable(); err != nil {
		return err
	}
	if blob.Compressor != None && blob.Compressor != Zstd {
		return fmt.Errorf("blob %s: compressor %d: %w", blob.Digest, blob.Compressor, ErrUnsupported)
	}
	zr, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxChunkSize))
	if err != nil {
		return err
	}
	defer zr.Close()
	var stored, plain []byte
	for i := range img.Chunks {
		c := &img.Chunks[i]
		if int(c.Blob) != index {
			continue
		}
		stored = append(stored[:0], make([]byte, c.Length)...)
		if _, err := r.ReadAt(stored, c.Offset); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("blob %s: chunk %d: %w", blob.Digest, c.Index, err)
		}
		data := stored
		if c.Compressed() {
			if plain, err = zr.DecodeAll(stored, plain[:0]); err != nil {
				return fmt.Errorf("blob %s: chunk %d: %w: %w", blob.Digest, c.Index, ErrInvalid, err)
			}
			data = plain
		}
		if !matches(blob.Digester, data, c) {
			return fmt.Errorf("blob %s: chunk %d has other bytes than the bootstrap says: %w", blob.Digest, c.Index, ErrInvalid)
		}
		if _, err := w.WriteAt(data, c.DeviceOffset); err != nil {
			return fmt.Errorf("blob %s: chunk %d: %w", blob.Digest, c.Index, err)
		}
	}
	return nil
}

func matches(d Digester, data []byte, c *Chunk) bool {
	if len(data) != int(c.Size) {
		return false
	}
	var sum [32]byte
	if d == SHA256 {
		sum = sha256.Sum256(data)
	} else {
		sum = blake3.Sum256(data)
	}
	return bytes.Equal(sum[:], c.Digest[:])
}
