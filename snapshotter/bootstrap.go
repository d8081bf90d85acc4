package snapshotter

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	mirror "github.com/shoal-project/shoal/registry-mirror"
)

// maxBootstrap bounds a bootstrap in bytes: a million files. bootstrap.MountMemory bounds what it may take when it is decoded.
const maxBootstrap = 256 << 20

// bootstrapLimit bounds the bootstrap in a layer of size bytes. That of small files alone is packed to a twentieth.
func bootstrapLimit(size int64) int64 {
	const packed, least = 64, 16 << 20
	return min(packed*min(size, maxBootstrap)+least, maxBootstrap)
}

// decoding is the lock of who reads a bootstrap into memory: one at a time, however many are pulled.
const decoding = "decoding"

const bootstrapsName = "bootstraps"

// bootstrapPath is where a bootstrap waits for the last layer of its image. What is there has been checked.
func (s *Snapshotter) bootstrapPath(layer digest.Digest) string {
	return filepath.Join(s.cfg.Root, bootstrapsName, layer.Encoded())
}

// ownBootstrapPath is where a bootstrap waits for one snapshot alone.
func (s *Snapshotter) ownBootstrapPath(layer digest.Digest) string {
	return s.bootstrapPath(layer) + "-" + rand.Text()
}

// imagePath is the bootstrap of the image that is mounted in a snapshot.
func (s *Snapshotter) imagePath(id string) string { return filepath.Join(s.dir(id), "image.boot") }

// bootstrapOf has the image's bootstrap at its place, checked. With own it is taken from there, to a place of which the path is returned, and so is
// what it says.
func (s *Snapshotter) bootstrapOf(ctx context.Context, img mirror.Image, own bool) (string, *bootstrap.Image, error) {
	layer := *img.Bootstrap()
	path := s.bootstrapPath(layer.Digest)
	unlock, err := s.locks.lock(ctx, path)
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	if _, err := os.Stat(path); err != nil {
		decoded, err := s.fetchBootstrap(ctx, img.Blob(layer), path)
		if err != nil {
			return "", nil, fmt.Errorf("bootstrap layer %s: %w", layer.Digest, err)
		}
		s.decoded.put(path, decoded)
	}
	if !own {
		return path, nil, nil
	}
	taken, decoded := s.ownBootstrapPath(layer.Digest), s.decoded.take(path)
	if err := os.Rename(path, taken); err != nil {
		return "", nil, err
	}
	if decoded != nil {
		return taken, decoded, nil
	}
	unlockDecoding, err := s.locks.lock(ctx, decoding)
	if err != nil {
		return taken, nil, err
	}
	defer unlockDecoding()
	decoded, err = decodeFile(taken)
	return taken, decoded, err
}

// recentFor is how long a bootstrap stays decoded that was fetched with an image's first layer and is mounted with its last one.
const recentFor = time.Minute

// recent is the bootstrap that was decoded last, for who needs it next.
type recent struct {
	mu     sync.Mutex // guards the fields below
	path   string
	img    *bootstrap.Image
	forget *time.Timer
}

func (r *recent) put(path string, img *bootstrap.Image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.forget != nil {
		r.forget.Stop()
	}
	r.path, r.img, r.forget = path, img, time.AfterFunc(recentFor, func() { r.take(path) })
}

// take returns what the bootstrap at path says, once; nil when that is not known.
func (r *recent) take(path string) *bootstrap.Image {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.path != path {
		return nil
	}
	img := r.img
	r.path, r.img = "", nil
	return img
}

// fetchBootstrap reads a bootstrap layer and writes the bootstrap to path when it is good.
func (s *Snapshotter) fetchBootstrap(ctx context.Context, layer mirror.BlobRef, path string) (*bootstrap.Image, error) {
	blob, err := s.cfg.Images.Open(ctx, layer)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	stream := &stream{ctx: ctx, blob: blob, size: layer.Size}
	if err := stream.awaitAll(); err != nil { // its digest is right only when all of it is there
		return nil, err
	}
	unlock, err := s.locks.lock(ctx, decoding)
	if err != nil {
		return nil, err
	}
	defer unlock()
	files, err := image.FilesOfLayer(stream, func(name string) bool { return name == image.BootstrapName }, bootstrapLimit(layer.Size))
	if err != nil {
		return nil, err
	}
	raw, ok := files[image.BootstrapName]
	if !ok {
		return nil, fmt.Errorf("it has no %s", image.BootstrapName)
	}
	return keepBootstrap(bytes.NewReader(raw), int64(len(raw)), path)
}

// copyBootstrap takes the bootstrap out of an unpacked bootstrap layer.
func (s *Snapshotter) copyBootstrap(ctx context.Context, layer *os.Root, path string) (*bootstrap.Image, error) {
	unlock, err := s.locks.lock(ctx, decoding)
	if err != nil {
		return nil, err
	}
	defer unlock()
	f, err := layer.Open(image.BootstrapName)
	if err != nil {
		return nil, fmt.Errorf("bootstrap layer: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxBootstrap {
		return nil, fmt.Errorf("bootstrap layer: %s is no bootstrap", image.BootstrapName)
	}
	return keepBootstrap(f, info.Size(), path)
}

// keepBootstrap checks a bootstrap and writes it to path, as a whole or not at all.
func keepBootstrap(r io.ReaderAt, size int64, path string) (*bootstrap.Image, error) {
	img, err := accept(bootstrap.DecodeWithin(r, size, bootstrap.MountMemory))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := renameio.TempFile(filepath.Dir(path), path)
	if err != nil {
		return nil, err
	}
	defer f.Cleanup() //nolint:errcheck // nothing is left to clean up after the replacement
	if _, err := io.Copy(f, io.NewSectionReader(r, 0, size)); err != nil {
		return nil, err
	}
	return img, f.CloseAtomicallyReplace()
}

// decodeFile decodes the bootstrap in a file, and accepts what may be mounted.
func decodeFile(path string) (*bootstrap.Image, error) {
	return accept(bootstrap.DecodeFile(path, bootstrap.MountMemory))
}

func accept(img *bootstrap.Image, err error) (*bootstrap.Image, error) {
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	for i := range img.Blobs {
		if err := img.Blobs[i].Readable(); err != nil {
			return nil, fmt.Errorf("bootstrap: %w", err)
		}
	}
	return img, nil
}

// devices returns the blobs of a bootstrap in the order of its device table, with the sizes that the manifest's layers have.
func devices(img *bootstrap.Image, layers []ocispec.Descriptor) ([]blob, error) {
	known := sizes(layers)
	out := make([]blob, len(img.Blobs))
	for i, b := range img.Blobs {
		size, ok := known[b.Digest]
		if !ok {
			return nil, fmt.Errorf("bootstrap: the manifest has no layer %s", b.Digest)
		}
		out[i] = blob{b.Digest, size}
	}
	return out, nil
}

// stream reads a blob in order, waiting under ctx; it lives no longer than the call it was made for.
type stream struct {
	ctx  context.Context
	blob mirror.Blob
	size int64
	off  int64
}

func (s *stream) Read(p []byte) (int, error) {
	if s.off >= s.size {
		return 0, io.EOF
	}
	n, err := s.blob.Await(s.ctx, s.off, s.size-s.off)
	if err != nil {
		return 0, err
	}
	f, err := s.blob.File()
	if err != nil {
		return 0, err
	}
	m, err := f.ReadAt(p[:min(n, int64(len(p)))], s.off)
	s.off += int64(m)
	if errors.Is(err, io.EOF) { // the file may end with these bytes
		err = nil
	}
	return m, err
}

// awaitAll waits for the whole blob.
func (s *stream) awaitAll() error {
	for off := int64(0); off < s.size; {
		n, err := s.blob.Await(s.ctx, off, s.size-off)
		if err != nil {
			return err
		}
		off += n
	}
	return nil
}
