package layer

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/zeebo/blake3"
)

// Open returns the bytes of the layer from offset on, reading the files again. Each group is compared with what the Writer saw; a
// file that was changed since ends the stream with ErrChanged and the file's name. The context bounds the reading too. The
// reader is not safe for concurrent use; several may be open at once.
func (l *Layer) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if offset < 0 || offset > l.Size {
		return nil, fmt.Errorf("layer %s of %d bytes: no offset %d", l.Digest, l.Size, offset)
	}
	r := &reader{ctx: ctx, layer: l, group: blake3.New()}
	// Verification begins with a group, so what is before offset in its group is read too.
	start := offset / piece.GroupSize * piece.GroupSize
	r.seek(start)
	if _, err := io.CopyN(io.Discard, r, offset-start); err != nil {
		_ = r.Close() // the first error is the one to tell
		return nil, err
	}
	return r, nil
}

type reader struct {
	ctx   context.Context
	layer *Layer
	next  int64         // offset of the next segment
	file  io.ReadCloser // of the segment before it, if it is content
	left  int64         // of the segment before it
	raw   []byte        // likewise
	err   error

	group    *blake3.Hasher
	groupLen int
	groups   int
	total    int64
	lastFile string // of which a byte was read
}

// seek moves to the start of a group.
func (r *reader) seek(offset int64) {
	r.total, r.groups = offset, int(offset/piece.GroupSize)
	r.next = offset
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
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
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
	if errors.Is(err, io.EOF) && r.left == 0 {
		err = nil
	}
	if err != nil {
		return n, named(r.lastFile, shorter(err))
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
			return named(r.lastFile, err)
		}
	}
	if r.next == r.layer.Size {
		return io.EOF
	}
	s, err := r.layer.segment(r.next)
	if err != nil {
		return err
	}
	r.next += s.length
	if r.left, r.raw = s.length, s.raw; s.entry == nil {
		return nil
	}
	r.lastFile = s.entry.Name
	if r.file, err = s.entry.Open(r.ctx, s.offset); err != nil {
		r.file = nil
		return err
	}
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
