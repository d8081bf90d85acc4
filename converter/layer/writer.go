package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"

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
	Table func(offset int64, chunks iter.Seq[Chunk]) []byte
	// Progress, if not nil, is called with the number of bytes read since it was called last.
	Progress func(n int64)
	// AnyFormat takes model files as they are, also those whose header contradicts them; otherwise they are an error.
	AnyFormat bool
}

// Layer is a layer whose content was read once. It is not changed any more and may be used concurrently.
type Layer struct {
	Digest  digest.Digest // sha256; the layer is not compressed, so it is its DiffID too
	Size    int64         // in bytes, with the table
	TarSize int64         // in bytes; where the table begins
	Map     *chunkmap.Map
	Entries []*Entry

	// What follows says where everything is. A layer may have a great many small files, so it is no more than it has to be.
	chunkSize uint32
	offsets   []int64    // where the header of each entry ends
	digests   [][32]byte // of the chunks
	table     func(offset int64, chunks iter.Seq[Chunk]) []byte
}

// Writer makes a layer of the entries added to it. It is not safe for concurrent use.
type Writer struct {
	cfg   Config
	out   io.Writer
	sum   hash.Hash
	cut   *chunkmap.Cutter
	layer Layer
	free  pool
}

// NewWriter returns a Writer that passes the layer's bytes on to out.
func NewWriter(out io.Writer, cfg Config) *Writer {
	if cfg.Progress == nil {
		cfg.Progress = func(int64) {}
	}
	return &Writer{cfg: cfg, out: out, sum: sha256.New(), cut: chunkmap.NewCutter(), layer: Layer{chunkSize: cfg.ChunkSize, table: cfg.Table}, free: newPool(cfg.ChunkSize)}
}

// Size returns the number of bytes written so far.
func (w *Writer) Size() int64 { return w.layer.TarSize }

// Add appends an entry, which is kept and must not be changed. A directory must come before what is in it. content is that of a file from its
// start; nil: the entry is opened. The
// error names the file that could not be read, whose size is not what the entry says, or whose header contradicts it.
func (w *Writer) Add(ctx context.Context, e *Entry, content io.Reader) error {
	return named(e.Name, w.add(ctx, e, content))
}

// named names the file of an error that is this package's own. Who reads a file, or its header, names it already.
func named(name string, err error) error {
	if errors.Is(err, ErrChanged) {
		return fmt.Errorf("%s: %w", name, err)
	}
	return err
}

func (w *Writer) add(ctx context.Context, e *Entry, content io.Reader) error {
	if e.Kind == File && e.Size == 0 && !w.cfg.AnyFormat {
		if err := chunkmap.Empty(e.Name); err != nil {
			return err
		}
	}
	head, err := headerAt(e, w.layer.TarSize)
	if err != nil {
		return err
	}
	if err := w.emit(head); err != nil {
		return err
	}
	w.layer.Entries, w.layer.offsets = append(w.layer.Entries, e), append(w.layer.offsets, w.layer.TarSize)
	if e.Kind != File || e.Size == 0 {
		return nil
	}
	if content == nil {
		r, err := e.Open(ctx, 0)
		if err != nil {
			return err
		}
		defer r.Close()
		content = r
	}
	if err := w.content(ctx, e, content); err != nil {
		return err
	}
	return w.zeros(-e.Size & (tarUnit - 1))
}

// Finish ends the layer. The Writer must not be used afterwards.
func (w *Writer) Finish() (*Layer, error) {
	if err := w.zeros(1024); err != nil { // two blocks of them end a tar
		return nil, err
	}
	if err := w.zeros(-w.layer.TarSize & (Align - 1)); err != nil {
		return nil, err
	}
	l := w.layer // a copy: the Writer and its buffers can go
	tarSize := l.TarSize
	if l.ChunkCount() > 0 {
		if err := w.emit(l.table(tarSize, l.Chunks())); err != nil {
			return nil, err
		}
	}
	l.TarSize, l.Size = tarSize, w.cut.Size()
	l.Digest = digest.NewDigest(digest.SHA256, w.sum)
	l.Map = w.cut.Map(l.Digest)
	return &l, nil
}

// emit appends bytes that are not those of a file.
func (w *Writer) emit(raw []byte) error {
	w.layer.TarSize += int64(len(raw))
	w.sum.Write(raw)
	_, _ = w.cut.Write(raw) // it never fails
	_, err := w.out.Write(raw)
	return err
}

func (w *Writer) zeros(n int64) error {
	if n == 0 {
		return nil
	}
	return w.emit(make([]byte, n))
}

// content appends the bytes of a file, hashed in four ways while they are read.
func (w *Writer) content(ctx context.Context, e *Entry, r io.Reader) error {
	w.cut.BeginFile(e.Name, e.Size)
	p := &pass{free: w.free}
	p.taker(func(b []byte) error { w.sum.Write(b); return nil })
	p.taker(func(b []byte) error { _, _ = w.cut.Write(b); return nil }) // it never fails
	p.taker(func(b []byte) error { w.layer.digests = append(w.layer.digests, blake3.Sum256(b)); return nil })
	written := p.taker(func(b []byte) error {
		w.cfg.Progress(int64(len(b)))
		_, err := w.out.Write(b)
		return err
	})
	err := errors.Join(p.run(ctx, r, e.Size, int64(w.cfg.ChunkSize)), *written)
	w.layer.TarSize += e.Size
	if ferr := w.cut.EndFile(); err == nil && ferr != nil && !w.cfg.AnyFormat {
		err = ferr
	}
	if err != nil {
		return err
	}
	return atEnd(r)
}

// shorter turns an early end of a file into ErrChanged. A connection that was cut comes as an error that says so, even if it wraps one of an end.
func shorter(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF { //nolint:errorlint // see above
		return fmt.Errorf("it became shorter: %w", ErrChanged)
	}
	return err
}

// atEnd checks that a file ends where its size says. This is also where a source that verifies its files says what it found.
func atEnd(r io.Reader) error {
	var one [1]byte
	for {
		switch n, err := r.Read(one[:]); {
		case n > 0:
			return fmt.Errorf("it became longer: %w", ErrChanged)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
