// Package layer writes the model layers of an image: uncompressed tar files whose file data begins at multiples of 4 KiB, so
// that the kernel's EROFS reads files straight out of the tar, followed behind the tar's end by a table for readers of chunks.
//
//	| dir | pad header | a.bin's data | pad header | b.bin's data | end of tar | table |
//	             4 KiB ^                     4 KiB ^              4 KiB ^
//
// The padding is a PAX comment record, which every tar reader skips. Names, content, order and whether a file is executable
// decide the bytes; owner, time and the other permissions do not.
//
// Everything is streamed twice and never stored: NewPlan computes from names and sizes where each byte goes, Build reads the
// files once to learn the digests, and Open reads them again for the upload, checking against what Build saw.
//
//	entries → NewPlan → Build → Layer: digest, size, chunk map, extents of files
//	                              └→ Open: the same bytes, or an error
package layer

import (
	"archive/tar"
	"bytes"
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
	// Open returns the content of a file from its start. It is called once in each pass.
	Open func() (io.ReadCloser, error)
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

// segment is a run of bytes of the tar. Headers are made anew each time they are needed: with their padding they have some
// 4 KiB, which would add up in models of many small files.
type segment struct {
	length  int64
	entry   *Entry // whose content or header it is; nil for zeros and the table
	header  bool
	comment int    // length in bytes of the header's padding record
	raw     []byte // the table
}

// isContent reports whether the bytes are those of a file.
func (s *segment) isContent() bool { return s.entry != nil && !s.header }

// bytes returns the bytes of any other segment.
func (s *segment) bytes() []byte {
	switch {
	case s.raw != nil:
		return s.raw
	case s.entry != nil:
		raw, _ := header(s.entry, s.comment) // it was made before
		return raw
	}
	return make([]byte, s.length)
}

// Plan is a layer of which everything is known but the content.
type Plan struct {
	entries  []Entry
	segments []segment
	tarSize  int64 // with the padding behind its end
}

// NewPlan lays out a layer. Entries are written in the order given; a directory must come before what is in it.
func NewPlan(entries []Entry) (*Plan, error) {
	p := &Plan{entries: entries}
	for i := range entries {
		if err := p.add(&entries[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", entries[i].Name, err)
		}
	}
	p.zeros(1024) // two blocks of them end a tar
	p.zeros(-p.tarSize & (Align - 1))
	return p, nil
}

// Size returns the length of the tar in bytes, without the table.
func (p *Plan) Size() int64 { return p.tarSize }

func (p *Plan) append(s segment) {
	p.tarSize += s.length
	p.segments = append(p.segments, s)
}

func (p *Plan) zeros(n int64) {
	if n > 0 {
		p.append(segment{length: n})
	}
}

func (p *Plan) add(e *Entry) error {
	if e.Kind != File || e.Size == 0 {
		head, err := header(e, 0)
		if err != nil {
			return err
		}
		p.append(segment{entry: e, header: true, length: int64(len(head))})
		return nil
	}
	// All parts of a header are multiples of 512, and 512 more bytes of comment make it that much longer, so one of few
	// lengths fits.
	for comment := 1; comment <= 2*Align; comment += 256 {
		head, err := header(e, comment)
		if err != nil {
			return err
		}
		if (p.tarSize+int64(len(head)))%Align != 0 {
			continue
		}
		p.append(segment{entry: e, header: true, comment: comment, length: int64(len(head))})
		p.append(segment{entry: e, length: e.Size})
		p.zeros(-e.Size & 511)
		return nil
	}
	return errors.New("cannot align the tar header") // unreachable
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
		return nil, err
	}
	return out.Bytes(), nil
}
