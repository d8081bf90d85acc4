package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/zeebo/blake3"
)

// Config says how a layer is cut for readers of chunks.
type Config struct {
	// ChunkSize is the length in bytes at which files are cut, a multiple of 4 KiB.
	ChunkSize uint32
	// Table returns what is appended behind the tar, whose length is offset. It is not called for a layer without data,
	// which gets no table. It must return the same for the same chunks.
	Table func(offset int64, chunks []Chunk) []byte
	// Progress, if not nil, is called with the number of bytes read since it was called last.
	Progress func(n int64)
}

// Chunk is one cut of one file.
type Chunk struct {
	Offset     int64 // in the layer, in bytes
	Size       uint32
	Digest     [32]byte // BLAKE3 of its bytes
	FileOffset int64    // in the file
}

// Extent is where the chunks of one file are.
type Extent struct {
	Entry        int // place in the entries given to NewPlan
	First, Count int // in Layer.Chunks
}

// Layer is a layer whose content was read once. It is not changed any more and may be used concurrently.
type Layer struct {
	Digest  digest.Digest // sha256; the layer is not compressed, so it is its DiffID too
	Size    int64         // in bytes, with the table
	TarSize int64         // in bytes; where the table begins
	Map     *chunkmap.Map
	Chunks  []Chunk
	Extents []Extent // of the files that have content

	segments []segment
}

// builder feeds three hashes: the layer's digest, its chunk map, and those of the chunks of the file.
type builder struct {
	cfg    Config
	sum    hash.Hash
	groups *chunkmap.Builder
	layer  *Layer
	buf    []byte
}

// Build reads all files. The error names the file that could not be read or whose size is not what the plan says.
func (p *Plan) Build(ctx context.Context, cfg Config) (*Layer, error) {
	b := &builder{
		cfg: cfg, sum: sha256.New(), groups: chunkmap.NewBuilder(), buf: make([]byte, cfg.ChunkSize),
		layer: &Layer{TarSize: p.tarSize, segments: p.segments[:len(p.segments):len(p.segments)]},
	}
	index := map[*Entry]int{}
	for i := range p.entries {
		index[&p.entries[i]] = i
	}
	for i := range p.segments {
		s := &p.segments[i]
		if !s.isContent() {
			b.write(s.bytes())
			continue
		}
		first := len(b.layer.Chunks)
		if err := b.file(ctx, s.entry); err != nil {
			return nil, fmt.Errorf("%s: %w", s.entry.Name, err)
		}
		b.layer.Extents = append(b.layer.Extents, Extent{index[s.entry], first, len(b.layer.Chunks) - first})
	}
	if len(b.layer.Chunks) > 0 {
		table := cfg.Table(p.tarSize, b.layer.Chunks)
		b.write(table)
		b.layer.segments = append(b.layer.segments, segment{raw: table, length: int64(len(table))})
	}
	b.layer.Size = b.groups.Size()
	b.layer.Digest = digest.NewDigest(digest.SHA256, b.sum)
	b.layer.Map = b.groups.Map(b.layer.Digest)
	return b.layer, nil
}

func (b *builder) write(raw []byte) {
	b.sum.Write(raw)
	_, _ = b.groups.Write(raw)
}

func (b *builder) file(ctx context.Context, e *Entry) error {
	r, err := e.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	b.groups.Cut() // a file's content is found again wherever it stands
	start := b.groups.Size()
	for done := int64(0); done < e.Size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := b.buf[:min(int64(len(b.buf)), e.Size-done)]
		if _, err := io.ReadFull(r, part); err != nil {
			return shorter(err)
		}
		var digest [32]byte
		var hashes sync.WaitGroup
		hashes.Go(func() { b.sum.Write(part) })
		hashes.Go(func() { digest = blake3.Sum256(part) })
		_, _ = b.groups.Write(part)
		hashes.Wait()
		b.layer.Chunks = append(b.layer.Chunks, Chunk{start + done, uint32(len(part)), digest, done})
		done += int64(len(part))
		if b.cfg.Progress != nil {
			b.cfg.Progress(int64(len(part)))
		}
	}
	b.groups.Cut()
	return atEnd(r)
}

// shorter turns an early end of a file into ErrChanged.
func shorter(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("it became shorter: %w", ErrChanged)
	}
	return err
}

// atEnd checks that a file ends where its size says.
func atEnd(r io.Reader) error {
	var one [1]byte
	switch n, err := r.Read(one[:]); {
	case n > 0:
		return fmt.Errorf("it became longer: %w", ErrChanged)
	case err != nil && !errors.Is(err, io.EOF):
		return err
	}
	return nil
}
