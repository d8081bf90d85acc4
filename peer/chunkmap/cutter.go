package chunkmap

import (
	"sync"

	"github.com/opencontainers/go-digest"
)

// besideFrom is the length in bytes from which on groups are hashed beside the chunks; below, a goroutine costs more.
const besideFrom = 128 << 10

// Cutter computes the chunk map of the bytes written to it and decides by itself where chunks are cut, by the rules at the
// top of this package. The map depends on the bytes and the files, not on the sizes of the writes; large writes are faster.
// It is an io.Writer that never fails, and not safe for concurrent use. Make one with NewCutter.
type Cutter struct {
	groups groupHash
	chunks chunkHash
	gear   gear
	file   *openFile // nil outside of files
}

// openFile is the file the Cutter is in.
type openFile struct {
	name     string
	size, at int64
	header   headReader // nil behind it
	format   string
	parts    []part // those not ended; behind the last the file is cut by content
	fault    string
	begins   []byte // of a file that is small enough for a pointer
}

// cuts reports whether the file is long enough for cuts of its own.
func (f *openFile) cuts() bool { return f.size >= minPart }

// NewCutter returns a Cutter that has seen no byte and is outside of files.
func NewCutter() *Cutter {
	return &Cutter{groups: newGroupHash(), chunks: newChunkHash(), gear: newGear()}
}

// BeginFile says that the next size bytes are the content of a file, whose name may have folders before it. A file that
// was begun and not ended ends here.
func (c *Cutter) BeginFile(name string, size int64) {
	_ = c.EndFile() // who does not ask does not care
	c.file = &openFile{name: name, size: size, header: headerOf(name, size)}
	c.file.format = formatOf(c.file.header)
	if c.file.cuts() {
		c.chunks.cut()
	}
}

// EndFile ends the file begun. The error is nil or a *FormatError: a safetensors or GGUF file is broken, or a pointer of
// Git LFS stands in place of a file. The map is valid all the same. Outside of files EndFile does nothing.
func (c *Cutter) EndFile() error {
	f := c.file
	if f == nil {
		return nil
	}
	c.file = nil
	if f.cuts() {
		c.chunks.cut()
	}
	if isPointer(f.begins) {
		return &FormatError{f.name, "Git LFS", "a pointer stands in place of the file: run git lfs pull"}
	}
	if f.header != nil { // the file ended before it
		_, f.fault = f.header.tensors()
	}
	if f.fault == "" {
		return nil
	}
	return &FormatError{f.name, f.format, f.fault}
}

// Write takes the next bytes of the blob. The error is always nil. It returns when all of p was hashed.
func (c *Cutter) Write(p []byte) (int, error) {
	var beside sync.WaitGroup
	if len(p) >= besideFrom {
		beside.Go(func() { c.groups.write(p) })
	} else {
		c.groups.write(p)
	}
	for rest := p; len(rest) > 0; {
		rest = rest[c.step(rest):]
	}
	beside.Wait()
	return len(p), nil
}

// step takes some bytes, at least one, that are cut in one way.
func (c *Cutter) step(p []byte) (n int) {
	f := c.file
	if f == nil || f.at >= f.size {
		c.byContent(p)
		return len(p)
	}
	p = p[:min(int64(len(p)), f.size-f.at)]
	if f.size <= maxPointer {
		f.begins = append(f.begins, p...)
	}
	switch {
	case f.header != nil:
		var done bool
		n, done = f.header.feed(p)
		c.byContent(p[:n])
		if done {
			c.endHeader(f.at + int64(n))
		}
	case len(f.parts) > 0:
		n = int(min(int64(len(p)), f.parts[0].end-f.at))
		if f.parts[0].runs {
			c.byContent(p[:n])
		} else {
			c.chunks.upToMax(p[:n])
		}
		if f.at+int64(n) == f.parts[0].end {
			c.chunks.cut()
			f.parts = f.parts[1:]
		}
	default:
		n = len(p)
		c.byContent(p)
	}
	f.at += int64(n)
	return n
}

// endHeader learns where the tensors are. A header that is none, or broken, is no reason for a cut.
func (c *Cutter) endHeader(at int64) {
	f := c.file
	var list []tensor
	list, f.fault = f.header.tensors()
	f.header = nil
	if f.fault == "" && f.cuts() && len(list) > 0 {
		c.chunks.cut()
		f.parts = partsOf(list, at)
	}
}

func (c *Cutter) byContent(p []byte) {
	for len(p) > 0 {
		if c.chunks.length == 0 {
			c.gear.begin(c.chunks.start)
		}
		n, last := c.gear.scan(c.chunks.length, p)
		c.chunks.write(p[:n], last)
		p = p[n:]
	}
}

// Size returns the number of bytes written so far.
func (c *Cutter) Size() int64 { return c.chunks.size() }

// Map ends the blob and returns its map. The Cutter must not be used afterwards.
func (c *Cutter) Map(blob digest.Digest) *Map {
	c.chunks.cut()
	m := &Map{Blob: blob, Size: c.Size(), Groups: c.groups.end(), Chunks: c.chunks.list}
	if m.EncodedSize() > maxMapBytes {
		m.Chunks = nil
	}
	return m
}
