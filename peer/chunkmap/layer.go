package chunkmap

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
)

// ErrNotFound is returned by FromLayer when the layer holds no chunk map for the blob.
var ErrNotFound = errors.New("no chunk map")

// What is read from a layer is bounded, whatever its compression pretends. The map of a 500 GB blob has 64 MiB.
const (
	maxLayerBytes = 8 << 30
	maxMapBytes   = 64 << 20
	maxEntries    = 1 << 16
	suffix        = ".chunks"
	folder        = "image/"
)

// MaxLayerMaps is how many bytes of chunk maps AllFromLayer takes from one layer.
const MaxLayerMaps = 256 << 20

// FileName returns the name a blob's chunk map has in the tar of a bootstrap layer.
func FileName(blob digest.Digest) string { return folder + blob.Encoded() + suffix }

// FromLayer reads a bootstrap layer, a tar or a gzip-compressed tar, up to the chunk map of blob and returns it. The bytes
// need not be trusted: sizes and counts are bounded. The caller checks the layer's own digest, which covers the map only if
// the layer is read to its end. Errors are ErrNotFound, ErrInvalid, ErrUnsupported and those of r.
func FromLayer(r io.Reader, blob digest.Digest) (*Map, error) {
	var found *Map
	err := walkLayer(r, func(name string, read func() (*Map, error)) (stop bool, err error) {
		if name != FileName(blob) {
			return false, nil
		}
		found, err = read()
		return true, err
	})
	if err != nil {
		return nil, fmt.Errorf("chunk map of %s: %w", blob, err)
	}
	if found == nil || found.Blob != blob {
		return nil, fmt.Errorf("chunk map of %s: %w", blob, ErrNotFound)
	}
	return found, nil
}

// AllFromLayer is FromLayer for every chunk map of the layer, by blob. It reads the layer to its end; one bad map is an
// error.
func AllFromLayer(r io.Reader) (map[digest.Digest]*Map, error) {
	all, total := map[digest.Digest]*Map{}, 0
	err := walkLayer(r, func(name string, read func() (*Map, error)) (stop bool, err error) {
		m, err := read()
		if err != nil {
			return true, fmt.Errorf("%s: %w", name, err)
		}
		if total += len(m.Blob) + groupSize*len(m.Groups) + chunkSize*len(m.Chunks); total > MaxLayerMaps {
			return true, fmt.Errorf("%w: more than %d bytes of them", ErrInvalid, MaxLayerMaps)
		}
		if all[m.Blob] != nil {
			return true, fmt.Errorf("%s: %w: it stands there twice", name, ErrInvalid) // FromLayer would take the first
		}
		all[m.Blob] = m
		return false, nil
	})
	if err != nil {
		return nil, fmt.Errorf("chunk maps of a layer: %w", err)
	}
	return all, nil
}

// walkLayer calls visit for each regular file that is named like a chunk map.
func walkLayer(r io.Reader, visit func(name string, read func() (*Map, error)) (stop bool, err error)) error {
	plain, err := decompress(r)
	if err != nil {
		return err
	}
	bounded := &io.LimitedReader{R: plain, N: maxLayerBytes}
	tr := tar.NewReader(bounded)
	for range maxEntries {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			// The rest is read so that a reader that verifies the layer's digest sees all of it.
			_, err = io.Copy(io.Discard, bounded)
			return err
		}
		if err != nil {
			return layerError(err, bounded)
		}
		name := strings.TrimPrefix(hdr.Name, "./")
		if hdr.Typeflag != tar.TypeReg || !strings.HasPrefix(name, folder) || !strings.HasSuffix(name, suffix) {
			continue
		}
		stop, err := visit(name, func() (*Map, error) { return readMap(tr, name, hdr.Size) })
		if err != nil {
			return layerError(err, bounded)
		}
		if stop {
			return nil
		}
	}
	return fmt.Errorf("%w: the layer has more than %d entries", ErrInvalid, maxEntries)
}

// layerError gives faults of the tar itself their class; those of the reader below keep theirs.
func layerError(err error, bounded *io.LimitedReader) error {
	if bounded.N <= 0 {
		return fmt.Errorf("%w: the layer has more than %d bytes", ErrInvalid, int64(maxLayerBytes))
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return err
}

func readMap(r io.Reader, name string, size int64) (*Map, error) {
	if size > maxMapBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrInvalid, size, maxMapBytes)
	}
	// ReadAll grows with the bytes that arrive, so a tar header that lies costs nothing.
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	m, err := Decode(data)
	if err != nil {
		return nil, err
	}
	if FileName(m.Blob) != name {
		return nil, fmt.Errorf("%w: it stands under the name of another blob, it describes %s", ErrInvalid, m.Blob)
	}
	return m, nil
}

// decompress looks at the first bytes only.
func decompress(r io.Reader) (io.Reader, error) {
	br := bufio.NewReader(r)
	head, err := br.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(head) < 2 || head[0] != 0x1f || head[1] != 0x8b {
		return br, nil
	}
	zr, err := gzip.NewReader(br)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return zr, nil
}
