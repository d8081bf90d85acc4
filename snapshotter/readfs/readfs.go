package readfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/peer/piece"
)

// A Config says where the blobs are and what may be kept in memory.
type Config struct {
	// Open returns a reader of the whole blob as it is stored, safe for concurrent use. It is called at a blob's first read
	// and again when it failed; one that is an io.Closer is closed with the file tree.
	Open func(b *bootstrap.Blob) (io.ReaderAt, error)
	// CacheSize is how many bytes of expanded chunks are kept. The default, 0, keeps none; who reads in parts smaller than
	// a chunk expands it for each.
	CacheSize int64
}

// FS is the file tree of an image. It is safe for concurrent use.
type FS struct {
	img   *bootstrap.Image
	open  func(b *bootstrap.Blob) (io.ReaderAt, error)
	x     *bootstrap.Expander
	cache *cache
	blobs []blob
}

// blob is a blob that is opened when it is first needed.
type blob struct {
	mu sync.Mutex // held while opening
	r  io.ReaderAt
}

// New returns the file tree of an image as bootstrap.Decode returns it. Close releases it. An image with a blob that this
// package cannot read is bootstrap.ErrUnsupported, and the error names the feature.
func New(img *bootstrap.Image, cfg Config) (*FS, error) {
	for i := range img.Blobs {
		if err := img.Blobs[i].Readable(); err != nil {
			return nil, err
		}
	}
	x, err := bootstrap.NewExpander()
	if err != nil {
		return nil, err
	}
	return &FS{img: img, open: cfg.Open, x: x, cache: newCache(cfg.CacheSize), blobs: make([]blob, len(img.Blobs))}, nil
}

// Close closes the blobs that were opened. No call may be under way and none may follow.
func (f *FS) Close() error {
	f.x.Close()
	var errs []error
	for i := range f.blobs {
		if c, ok := f.blobs[i].r.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// ReadAt reads len(p) bytes of the regular file n, a file of this tree, from offset off. As with io.ReaderAt, n < len(p)
// comes with an error, io.EOF at the end of the file. name is for errors only.
func (f *FS) ReadAt(n *bootstrap.Inode, name string, p []byte, off int64) (int, error) {
	if n.Type() != bootstrap.TypeRegular || off < 0 {
		return 0, &fs.PathError{Op: "read", Path: name, Err: fs.ErrInvalid}
	}
	done := 0
	for done < len(p) {
		if off >= n.Size {
			return done, io.EOF
		}
		got, err := f.readChunk(n, p[done:], off)
		if err != nil {
			return done, &fs.PathError{Op: "read", Path: name, Err: err}
		}
		done += got
		off += int64(got)
	}
	return done, nil
}

// readChunk reads what p takes of the one chunk that has byte off.
func (f *FS) readChunk(n *bootstrap.Inode, p []byte, off int64) (int, error) {
	size := int64(f.img.ChunkSize)
	at := n.Chunks[off/size]
	c := &f.img.Chunks[at]
	off %= size
	if data := f.cache.get(at); data != nil {
		return copy(p, data[off:]), nil
	}
	b := &f.img.Blobs[c.Blob]
	r, err := f.blob(int(c.Blob))
	if err != nil {
		return 0, fmt.Errorf("open blob %s: %w", b.Digest, err)
	}
	var dst []byte
	whole := off == 0 && len(p) >= int(c.Size)
	if whole {
		dst = p[:c.Size]
	}
	data, err := f.x.Chunk(dst, r, b, c)
	if err != nil {
		clear(dst) // what was not verified is nobody's
		if errors.Is(err, bootstrap.ErrInvalid) {
			err = fmt.Errorf("%w: %w", piece.ErrMismatch, err)
		}
		return 0, err
	}
	if whole {
		return len(data), nil
	}
	f.cache.put(at, data)
	return copy(p, data[off:]), nil
}

func (f *FS) blob(i int) (io.ReaderAt, error) {
	b := &f.blobs[i]
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		r, err := f.open(&f.img.Blobs[i])
		if err != nil {
			return nil, err
		}
		b.r = r
	}
	return b.r, nil
}
