package bootstrap

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Nydus writes blobs with several parts as a tar from behind: each part, then its header of one block. A table of contents,
// if there is one, is the last part; it says how the others are compressed.
const (
	tarBlock = 512
	// maxParts bounds how many parts are looked at: there are six kinds.
	maxParts = 16

	partBootstrap = "image.boot"
	partTOC       = "rafs.blob.toc"

	// Entry of the table of contents, 128 bytes.
	tocEntrySize     = 128
	tocFlags         = 0  // u32
	tocName          = 8  // 16 bytes
	tocDigest        = 24 // 32 bytes, sha256 of the uncompressed part, or zeros
	tocOffset        = 56 // u64, in the blob
	tocCompressedLen = 64 // u64
	tocLen           = 72 // u64
	tocIsPlain       = 0x1
	tocIsZstd        = 0x2
	tocIsLZ4         = 0x4
)

// DecodeInlined decodes the bootstrap that lies in a data blob, as nydus-image and nydus-snapshotter make one for each layer
// before they are merged. r is the whole blob of size bytes, whose digest is blob: a bootstrap within cannot know that. It
// takes any bytes, as Decode does; a blob without a bootstrap is ErrInvalid.
func DecodeInlined(r io.ReaderAt, size int64, blob digest.Digest) (*Image, error) {
	raw, err := Inlined(r, size)
	if err != nil {
		return nil, err
	}
	return decode(bytes.NewReader(raw), int64(len(raw)), blob)
}

// Inlined returns the bytes of the bootstrap within a data blob; see DecodeInlined.
func Inlined(r io.ReaderAt, size int64) ([]byte, error) {
	end := size
	for range maxParts {
		name, off, length, err := partBefore(r, end)
		if err != nil {
			return nil, fmt.Errorf("blob: %w", err)
		}
		switch name {
		case partTOC:
			return inlinedByTOC(r, off, length)
		case partBootstrap:
			raw, err := readPart(r, off, length)
			if err != nil {
				return nil, fmt.Errorf("blob: %s: %w", name, err)
			}
			return raw, nil
		}
		end = off
	}
	return nil, fmt.Errorf("blob: no bootstrap within: %w", ErrInvalid)
}

// partBefore returns the part that ends, with its header, at offset end.
func partBefore(r io.ReaderAt, end int64) (name string, off, length int64, err error) {
	header := make([]byte, tarBlock)
	if end < tarBlock {
		return "", 0, 0, fmt.Errorf("no bootstrap within: %w", ErrInvalid)
	}
	if err := readFull(r, header, end-tarBlock); err != nil {
		return "", 0, 0, err
	}
	hdr, err := tar.NewReader(bytes.NewReader(header)).Next()
	if err != nil || hdr.Size < 0 || hdr.Size > end-tarBlock {
		return "", 0, 0, fmt.Errorf("no bootstrap within: %w", ErrInvalid)
	}
	return hdr.Name, end - tarBlock - hdr.Size, hdr.Size, nil
}

func readPart(r io.ReaderAt, off, length int64) ([]byte, error) {
	if length > maxBootstrap {
		return nil, fmt.Errorf("%d bytes: %w", length, ErrInvalid)
	}
	raw := make([]byte, length)
	return raw, readFull(r, raw, off)
}

func inlinedByTOC(r io.ReaderAt, off, length int64) ([]byte, error) {
	if length%tocEntrySize != 0 || length > maxParts*tocEntrySize {
		return nil, fmt.Errorf("blob: table of contents of %d bytes: %w", length, ErrInvalid)
	}
	table, err := readPart(r, off, length)
	if err != nil {
		return nil, fmt.Errorf("blob: table of contents: %w", err)
	}
	for ; len(table) > 0; table = table[tocEntrySize:] {
		entry := table[:tocEntrySize]
		if strings.TrimRight(string(entry[tocName:tocDigest]), "\x00") != partBootstrap {
			continue
		}
		raw, err := expandPart(r, off, entry)
		if err != nil {
			return nil, fmt.Errorf("blob: %s: %w", partBootstrap, err)
		}
		return raw, nil
	}
	return nil, fmt.Errorf("blob: no bootstrap within: %w", ErrInvalid)
}

// expandPart reads the part of an entry, which must end before offset end.
func expandPart(r io.ReaderAt, end int64, entry []byte) ([]byte, error) {
	le := binary.LittleEndian
	off, stored, length := le.Uint64(entry[tocOffset:]), le.Uint64(entry[tocCompressedLen:]), le.Uint64(entry[tocLen:])
	if off > uint64(end) || stored > uint64(end)-off || length > maxBootstrap {
		return nil, fmt.Errorf("%d bytes at %d: %w", stored, off, ErrInvalid)
	}
	data, err := readPart(r, int64(off), int64(stored))
	if err != nil {
		return nil, err
	}
	switch flags := le.Uint32(entry[tocFlags:]); {
	case flags&tocIsZstd != 0:
		if data, err = expandAll(Zstd, data, int64(length)); err != nil {
			return nil, err
		}
	case flags&tocIsLZ4 != 0 || flags&tocIsPlain == 0:
		return nil, fmt.Errorf("flags %#x: %w", flags, ErrUnsupported)
	}
	if sum := [32]byte(entry[tocDigest:]); uint64(len(data)) != length || sum != [32]byte{} && sum != SHA256.sum(data) {
		return nil, fmt.Errorf("it has other bytes than the table of contents says: %w", ErrInvalid)
	}
	return data, nil
}
