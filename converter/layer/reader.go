package layer

import (
	"fmt"
	"io"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/zeebo/blake3"
)

// Open returns the bytes of the layer from the start, reading the files again. Each group is compared with what Build saw; a
// file that was changed since ends the stream with ErrChanged and the file's name. The reader is not safe for concurrent
// use; several may be open at once.
func (l *Layer) Open() io.ReadCloser { return &reader{layer: l, group: blake3.New()} }

type reader struct {
	layer *Layer
	next  int           // segment
	file  io.ReadCloser // of the segment before next, if it is a file
	left  int64         // of the segment before next
	raw   []byte
	err   error

	group    *blake3.Hasher
	groupLen int
	groups   int
	total    int64
	lastFile string // of which a byte was read
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.read(p)
	if verr := r.verify(p[:n]); verr != nil {
		n, err = 0, verr
	}
	r.err = err
	return n, err
}

func (r *reader) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for r.left == 0 {
		if err := r.advance(); err != nil {
			return 0, err
		}
	}
	p = p[:min(int64(len(p)), r.left)]
	if r.file == nil {
		n := copy(p, r.raw)
		r.raw, r.left = r.raw[n:], r.left-int64(n)
		return n, nil
	}
	n, err := r.file.Read(p)
	r.left -= int64(n)
	if err == io.EOF && r.left == 0 {
		err = nil
	}
	if err != nil {
		return n, fmt.Errorf("%s: %w", r.lastFile, shorter(err))
	}
	return n, nil
}

// advance opens the next segment.
func (r *reader) advance() error {
	if r.file != nil {
		file := r.file
		r.file = nil
		defer file.Close()
		if err := atEnd(file); err != nil {
			return fmt.Errorf("%s: %w", r.lastFile, err)
		}
	}
	if r.next == len(r.layer.segments) {
		return io.EOF
	}
	s := &r.layer.segments[r.next]
	r.next++
	r.left = s.length
	if !s.isContent() {
		r.raw = s.bytes()
		return nil
	}
	r.lastFile = s.entry.Name
	file, err := s.entry.Open()
	if err != nil {
		return fmt.Errorf("%s: %w", r.lastFile, err)
	}
	r.file = file
	return nil
}

// verify compares every group that p completes.
func (r *reader) verify(p []byte) error {
	r.total += int64(len(p))
	for len(p) > 0 {
		n := min(len(p), piece.GroupSize-r.groupLen)
		_, _ = r.group.Write(p[:n])
		r.groupLen += n
		p = p[n:]
		if r.groupLen == piece.GroupSize {
			if err := r.endGroup(); err != nil {
				return err
			}
		}
	}
	if r.total == r.layer.Size && r.groupLen > 0 {
		return r.endGroup()
	}
	return nil
}

func (r *reader) endGroup() error {
	var got piece.Digest
	r.group.Sum(got[:0])
	r.group.Reset()
	r.groupLen = 0
	if r.groups >= len(r.layer.Map.Groups) || got != r.layer.Map.Groups[r.groups] {
		return fmt.Errorf("%s, or a file before it in the same layer: %w", r.lastFile, ErrChanged)
	}
	r.groups++
	return nil
}

// Close ends the reading.
func (r *reader) Close() error {
	r.err = io.ErrClosedPipe
	if r.file == nil {
		return nil
	}
	file := r.file
	r.file = nil
	return file.Close()
}
