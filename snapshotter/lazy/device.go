package lazy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/snapshotter/fanotify"
)

// errReplaced means that the peer dropped a blob whose file is mounted.
var errReplaced = errors.New("the blob was stored anew, in another file than the one that is mounted; mount the image again")

// A device is a file that the kernel reads as one of an image's blobs. Images with the same blob share it.
type device struct {
	file    *os.File // opened before it was marked: it raises no events
	key     fanotify.File
	filler  filler
	origins *origins
	// whole is set when all bytes are there and verified; then the file is not marked any more.
	whole atomic.Bool
	// Guarded by Driver.mu:
	users   []*mount
	refs    int // users, and reads under way; the last one closes
	discard bool
	// accesses are the reads that the kernel asked about, as far as they are remembered.
	accesses []access
}

// A filler brings the bytes of a device.
type filler interface {
	// fill returns when what there is of bytes [off, off+length) is in the file and verified.
	fill(ctx context.Context, off, length int64) error
	// fetch brings all bytes, in their order, and tells up to which one of the blob they are there.
	fetch(ctx context.Context, progress func(done int64)) error
	// whole reports whether all bytes are in the file and verified by this process.
	whole() bool
	// close closes the file, and removes what the driver has made if discard is set.
	close(discard bool) error
}

// split returns, for each blob of an image, the chunks that have to be expanded; none of a blob that is a device as it is, which whole tells.
func split(img *bootstrap.Image) (chunks [][]bootstrap.Chunk, whole []bool) {
	counts, odd := make([]int, len(img.Blobs)), make([]bool, len(img.Blobs))
	for i := range img.Chunks {
		c := &img.Chunks[i]
		counts[c.Blob]++
		odd[c.Blob] = odd[c.Blob] || c.Compressed() || c.Offset != c.DeviceOffset
	}
	chunks, whole = make([][]bootstrap.Chunk, len(img.Blobs)), make([]bool, len(img.Blobs))
	for i, n := range counts {
		if whole[i] = n > 0 && !odd[i]; !whole[i] {
			chunks[i] = make([]bootstrap.Chunk, 0, n)
		}
	}
	for i := range img.Chunks {
		if c := &img.Chunks[i]; !whole[c.Blob] {
			chunks[c.Blob] = append(chunks[c.Blob], *c)
		}
	}
	return chunks, whole
}

// newDevice makes a device of what a filler and its file are.
func newDevice(b *bootstrap.Blob, from *origins, f filler, file *os.File, err error) (*device, error) {
	d := &device{filler: f, file: file, origins: from}
	if err == nil {
		if d.key, err = fanotify.FileOf(d.file); err != nil {
			_ = f.close(false) // nothing was written
		}
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", b.Digest, err)
	}
	d.whole.Store(d.filler.whole())
	return d, nil
}

// shared is a device that is the peer's own file of the blob.
type shared struct {
	anchor Reader // keeps the file
	size   int64
	pool   *readers
}

// openShared opens the peer's file of a blob. It is as long as the blob, whatever size the image says.
func openShared(ctx context.Context, source *origins, b Blob) (filler, *os.File, error) {
	anchor, err := source.Open(ctx, b)
	if err != nil {
		return nil, nil, err
	}
	file, err := anchor.File()
	var key fanotify.File
	if err == nil {
		key, err = fanotify.FileOf(file)
	}
	var info os.FileInfo
	if err == nil {
		info, err = file.Stat()
	}
	if err != nil {
		_ = anchor.Close() // only read from
		return nil, nil, err
	}
	check := func(r Reader) error {
		f, err := r.File()
		if err != nil {
			return err
		}
		if now, err := fanotify.FileOf(f); err != nil || now != key {
			return errors.Join(err, errReplaced)
		}
		return nil
	}
	return &shared{anchor: anchor, size: info.Size(), pool: &readers{source: source, blob: b, check: check}}, file, nil
}

func (s *shared) fill(ctx context.Context, off, length int64) error {
	if off >= s.size {
		return nil // the kernel reads whole blocks
	}
	return s.pool.await(ctx, off, min(length, s.size-off))
}

func (s *shared) fetch(ctx context.Context, progress func(done int64)) error {
	return s.pool.use(ctx, func(r Reader) error {
		r.Prefetch()
		for off := int64(0); off < s.size; progress(off) {
			n, err := r.Await(ctx, off, s.size-off)
			if err != nil {
				return err
			}
			off += n
		}
		return nil
	})
}

func (s *shared) whole() bool { return s.anchor.Verified() }

func (s *shared) close(bool) error {
	s.pool.close()
	return s.anchor.Close()
}
