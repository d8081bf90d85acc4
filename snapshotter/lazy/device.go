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
	file   *os.File // opened before it was marked: it raises no events
	key    fanotify.File
	filler filler
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

// plain reports whether the device of blob index is the blob as it is, and the chunks of that blob.
func plain(img *bootstrap.Image, index int) (chunks []bootstrap.Chunk, yes bool) {
	yes = true
	for i := range img.Chunks {
		if c := &img.Chunks[i]; int(c.Blob) == index {
			chunks = append(chunks, *c)
			yes = yes && !c.Compressed() && c.Offset == c.DeviceOffset
		}
	}
	return chunks, yes && len(chunks) > 0
}

// openDevice returns the device of one blob of an image. folder is where blobs are expanded.
func openDevice(ctx context.Context, folder string, source Source, img *bootstrap.Image, index int) (*device, error) {
	b := &img.Blobs[index]
	d, err := &device{}, error(nil)
	if chunks, yes := plain(img, index); yes {
		d.filler, d.file, err = openShared(ctx, source, Blob{b.Digest, b.Size})
	} else {
		d.filler, d.file, err = openExpanded(folder, source, b, chunks)
	}
	if err == nil {
		if d.key, err = fanotify.FileOf(d.file); err != nil {
			_ = d.filler.close(false) // nothing was written
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

func openShared(ctx context.Context, source Source, b Blob) (filler, *os.File, error) {
	anchor, err := source.Open(ctx, b)
	if err != nil {
		return nil, nil, err
	}
	file, err := anchor.File()
	var key fanotify.File
	if err == nil {
		key, err = fanotify.FileOf(file)
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
	return &shared{anchor: anchor, size: b.Size, pool: &readers{source: source, blob: b, check: check}}, file, nil
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
