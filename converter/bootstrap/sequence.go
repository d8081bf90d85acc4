package bootstrap

import "io"

// sequence writes parts that come in the order of their offsets, with zeros between them.
type sequence struct {
	w      io.Writer
	offset int64 // behind what is in buffer
	done   int64 // what w has taken
	buffer []byte
	err    error
}

const sequenceBuffer = 64 << 10

func (s *sequence) put(offset int64, part []byte) {
	s.pad(offset)
	s.buffer = append(s.buffer, part...)
	s.offset += int64(len(part))
	if len(s.buffer) >= sequenceBuffer {
		_, _ = s.flush() // the error is kept
	}
}

// pad writes zeros up to an offset; there are never more than a block or so.
func (s *sequence) pad(offset int64) {
	s.buffer = append(s.buffer, make([]byte, offset-s.offset)...)
	s.offset = offset
}

// flush returns how much was written in all, and the first error.
func (s *sequence) flush() (int64, error) {
	if s.err == nil {
		var n int
		n, s.err = s.w.Write(s.buffer)
		s.done += int64(n)
	}
	s.buffer = s.buffer[:0]
	return s.done, s.err
}
