// Package layer writes the model layers of an image: uncompressed tar files whose file data begins at multiples of 4 KiB, so
// that the kernel's EROFS reads files straight out of the tar, followed behind the tar's end by a table for readers of chunks.
//
//	| dir | pad header | a.bin's data | pad header | b.bin's data | end of tar | table |
//	             4 KiB ^                     4 KiB ^              4 KiB ^
//
// The padding is a PAX comment record, which every tar reader skips. Names, content, order and whether a file is executable
// decide the bytes; owner, time and the other permissions do not.
//
// Everything is streamed and never stored. A Writer lays out, hashes and passes on the bytes of entries that are added one after
// the other, so that a source which can be read only once makes the same layer as a folder. What it returns remembers the layout and can give the same bytes again,
// from any offset, if the entries can be opened again:
//
//	entries → Writer.Add … Finish → Layer: digest, size, chunk map, extents of files
//	              └→ its io.Writer    └→ Open: the same bytes, or an error
package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// ErrChanged is the class of files that were changed while they were converted.
var ErrChanged = errors.New("changed while it was read; run again when nobody writes to it")

// Align is the multiple in bytes at which file data and the table begin.
const Align = 4096

// Kind is what an Entry is.
type Kind byte

// The kinds of entries.
const (
	File Kind = iota
	Dir
	Symlink
)

// Entry is one name in the layer.
type Entry struct {
	Name       string // slash-separated, relative to the image's root
	Kind       Kind
	Executable bool   // of a file
	Link       string // of a symbolic link
	Size       int64  // of a file in bytes
	// Open returns the content of a file from offset on. Nil for an entry that can be read only once. Its errors and those of
	// the content name the file, by where it is: they are passed on as they are.
	Open func(ctx context.Context, offset int64) (io.ReadCloser, error)
}

// Mode returns the permissions an entry gets: what git would keep of them.
func (e *Entry) Mode() int64 {
	switch {
	case e.Kind == Symlink:
		return 0o777
	case e.Kind == Dir || e.Executable:
		return 0o755
	}
	return 0o644
}

// headerAt returns the tar header of an entry that stands at offset, such that its content, if it has any, begins at a multiple of Align.
func headerAt(e *Entry, offset int64) ([]byte, error) {
	if e.Kind != File || e.Size == 0 {
		return header(e, 0)
	}
	head, err := header(e, 1)
	if err != nil {
		return nil, err
	}
	// All parts of a header are multiples of 512, and so much more comment makes it that much longer, but for the digits of its
	// length, which may cost one step more.
	missing := int(-(offset + int64(len(head))) & (Align - 1))
	for _, comment := range []int{1 + missing, 1 + missing - 2, 1 + missing + Align - 2} {
		if comment < 1 {
			continue
		}
		if head, err = header(e, comment); err != nil || (offset+int64(len(head)))%Align == 0 {
			return head, err
		}
	}
	return nil, errors.New("cannot align the tar header") // unreachable
}

// header returns the tar header of an entry with a PAX comment of the given length.
func header(e *Entry, comment int) ([]byte, error) {
	h := &tar.Header{Name: e.Name, Mode: e.Mode(), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	switch e.Kind {
	case Dir:
		h.Typeflag, h.Name = tar.TypeDir, e.Name+"/"
	case Symlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
	default:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	}
	if comment > 0 {
		h.PAXRecords = map[string]string{"comment": strings.Repeat(".", comment)}
	}
	var out bytes.Buffer
	if err := tar.NewWriter(&out).WriteHeader(h); err != nil {
		return nil, fmt.Errorf("%s: %w", e.Name, err)
	}
	return out.Bytes(), nil
}
