package source

import (
	"context"
	"io"
)

// stdinPart is how many bytes of standard input are asked for at once.
const stdinPart = 256 << 10

// patient reads a stream that nobody may ever write to again, such as a terminal or a pipe: a Read of it ends with the context, which one of the
// stream itself does not. Its goroutine ends with the stream, with Close, or, if a read of the stream is under way then, behind that.
type patient struct {
	ctx    context.Context // that of the caller who reads
	parts  chan streamPart
	closed chan struct{}
	rest   []byte
	err    error
}

type streamPart struct {
	data []byte
	err  error
}

func newPatient(ctx context.Context, r io.Reader) *patient {
	p := &patient{ctx: ctx, parts: make(chan streamPart), closed: make(chan struct{})}
	go p.pump(r)
	return p
}

// pump fills one buffer while the other is read: a part is taken only when the one before it was read to its end.
func (p *patient) pump(r io.Reader) {
	var bufs [2][]byte
	for turn := 0; ; turn ^= 1 {
		if bufs[turn] == nil {
			bufs[turn] = make([]byte, stdinPart)
		}
		n, err := r.Read(bufs[turn])
		select {
		case p.parts <- streamPart{bufs[turn][:n], err}:
		case <-p.closed:
			return
		}
		if err != nil {
			return
		}
	}
}

func (p *patient) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.err != nil {
			return 0, p.err
		}
		select {
		case part := <-p.parts:
			p.rest, p.err = part.data, part.err
		case <-p.ctx.Done():
			return 0, context.Cause(p.ctx)
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// Close must not be called twice.
func (p *patient) Close() error {
	close(p.closed)
	return nil
}
