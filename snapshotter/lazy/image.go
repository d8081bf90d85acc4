package lazy

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// A Blob names a data blob of an image.
type Blob struct {
	Digest digest.Digest
	Size   int64 // bytes
}

// An Image is what Mount mounts.
type Image struct {
	// Name is the image's reference, for logs and errors.
	Name string
	// Bootstrap is the path of a complete RAFS v6 bootstrap on this machine. It must stay while the image is mounted.
	Bootstrap string
	// Decoded is what the bootstrap says, where the caller knows it already; nil has it read. It is not to be changed.
	Decoded *bootstrap.Image
	// Blobs opens the image's blobs, also long after Mount has returned, and again after errors.
	Blobs Source
	// Prefetch says what is fetched before anybody reads it.
	Prefetch Prefetch
}

// decode takes out what the bootstrap says. It is let go with the return value, while the image stays.
func (i *Image) decode() (*bootstrap.Image, error) {
	if img := i.Decoded; img != nil {
		i.Decoded = nil
		return img, nil
	}
	return readBootstrap(i.Bootstrap)
}

// Prefetch says what of an image is fetched before anybody reads it, behind what readers wait for. The zero value is all of it, in the
// order that loaders read: what the bootstrap's prefetch table lists, then the rest by name.
type Prefetch struct {
	// None fetches nothing ahead.
	None bool
	// Files, if not empty, are paths within the image to fetch, in this order, and nothing else. A folder stands for all below it.
	Files []string
}

// ParsePrefetch reads what an annotation or a configuration says: nothing or "whole", "none", or paths apart by commas, each from the
// image's root.
func ParsePrefetch(s string) (Prefetch, error) {
	switch s {
	case "", "whole":
		return Prefetch{}, nil
	case "none":
		return Prefetch{None: true}, nil
	}
	files := strings.Split(s, ",")
	for _, file := range files {
		if !strings.HasPrefix(file, "/") {
			return Prefetch{}, fmt.Errorf("prefetch %q: want whole, none, or paths like /models/m/config.json,/usr/lib", s)
		}
	}
	return Prefetch{Files: files}, nil
}

// A Source opens blobs for reading while they are fetched. It is safe for concurrent use.
type Source interface {
	// Open returns a reader of the blob; who waits at several places at once opens several. ctx bounds only Open itself.
	Open(ctx context.Context, b Blob) (Reader, error)
}

// A Reader is one reader of a blob that is being fetched into a file. *peer.Reader is one.
type Reader interface {
	// Await blocks until bytes at off are in the file and verified and returns how many of [off, off+length) are, at least one. It
	// fails when ctx ends or when nobody has them; another reader may then try again.
	Await(ctx context.Context, off, length int64) (int64, error)
	// File returns the file with the blob's bytes, valid until Close. Only what Await returned may be read of it.
	File() (*os.File, error)
	// Verified reports whether all of the blob is in the file and was verified by this process.
	Verified() bool
	// Prefetch has all of the blob fetched.
	Prefetch()
	Close() error
}
