package source

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

const (
	maxLink    = 4096      // bytes in the target of a symbolic link
	zipWindow  = 256 << 10 // bytes read at once of a zip's directory and headers
	zipWindows = 8         // of these are kept
	encrypted  = 0x1       // general purpose flag
)

// zipSource is where the bytes of a zip archive come from.
type zipSource struct {
	io.ReaderAt
	size int64
	open func(ctx context.Context, want span) (io.ReadCloser, error)
}

func (s *session) openLocalZip(ref, stem string) (*Model, error) {
	file, err := os.Open(ref)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrModel, err)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	src := &zipSource{file, info.Size(), func(_ context.Context, want span) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(file, want.from, want.to-want.from)), nil
	}}
	m := &Model{Name: stem, Local: true, close: file.Close}
	if m.Files, err = s.listZip(src, ref); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return m, nil
}

// openWebZip lists a zip by ranges of its directory. To compare its sha256 it has to be read whole, once more.
func (s *session) openWebZip(ctx context.Context, m *Model, r *remoteFile, head *webHead, want digest.Digest) error {
	if !head.ranges {
		return fmt.Errorf("%w %s: a zip archive is not read in order, and the server gives no ranges; download it and give the file", ErrModel, m.Ref)
	}
	open := func(ctx context.Context, want span) (io.ReadCloser, error) { return s.openRemote(ctx, r, want) }
	if want != "" {
		all, err := open(ctx, span{})
		if err != nil {
			return err
		}
		defer all.Close()
		if _, err := io.Copy(io.Discard, all); err != nil {
			return err
		}
	}
	windows, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel) // while it is listed
	src := &zipSource{&windowed{ctx: windows, open: open, size: head.size}, head.size, open}
	files, err := s.listZip(src, m.Ref)
	stop()
	if err != nil {
		cancel()
		return err
	}
	m.Files = files
	m.close = func() error {
		cancel()
		return nil
	}
	return nil
}

// listZip reads the directory at the archive's end. Sizes are bounded by what it declares: no entry yields more.
func (s *session) listZip(src *zipSource, ref string) ([]File, error) {
	archive, err := zip.NewReader(src, src.size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return nil, archiveError(ref, err)
	}
	if len(archive.File) > s.MaxFiles {
		return nil, tooMany(ref, s.MaxFiles)
	}
	c := s.collector(ref)
	z := &zipModel{s: s, src: src, ref: ref}
	var files []File
	for _, entry := range archive.File {
		name := tarName(entry.Name)
		if strings.HasSuffix(entry.Name, "/") || entry.Mode().IsDir() {
			if name != "." && !c.drops(name) {
				if err := c.addDir(name); err != nil {
					return nil, err
				}
			}
			continue
		}
		if !c.wants(name) {
			continue
		}
		f, err := z.newFile(entry, name)
		if err != nil {
			return nil, err
		}
		if err := c.add(&f); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return c.listed(files)
}

// zipModel is a zip under way; what it counts bounds all its entries together.
type zipModel struct {
	s      *session
	src    *zipSource
	ref    string
	packed int64
	plain  int64
}

func (z *zipModel) newFile(entry *zip.File, name string) (File, error) {
	f := File{Path: name, Mode: entry.Mode().Perm(), Executable: entry.Mode()&0o111 != 0}
	fault := func(format string, args ...any) (File, error) {
		return File{}, archiveError(z.ref, fmt.Errorf("%s: %w", name, fmt.Errorf(format, args...)))
	}
	size, packed := entry.UncompressedSize64, entry.CompressedSize64
	switch {
	case entry.Flags&encrypted != 0:
		return fault("it is encrypted")
	case entry.Method != zip.Store && entry.Method != zip.Deflate:
		return fault("it is compressed by method %d; only deflate is read", entry.Method)
	case packed > uint64(z.src.size) || z.packed > z.src.size-int64(packed):
		return fault("it lies outside of the archive, or in another entry")
	case size > uint64(z.s.MaxExpanded) || z.plain > z.s.MaxExpanded-int64(size):
		return fault("with it the archive expands to more than %d bytes, the limit that is set", z.s.MaxExpanded)
	case entry.Method == zip.Store && size != packed:
		return fault("it is stored, but its two sizes differ")
	case z.s.MaxRatio > 0 && size > freeBytes && size/uint64(z.s.MaxRatio) > packed:
		return fault("it expands to more than %d times its size, as archives do that mean harm", z.s.MaxRatio)
	}
	z.packed += int64(packed)
	z.plain += int64(size)
	f.Size = int64(size)
	if entry.Mode().Type() == fs.ModeSymlink {
		link, err := readLink(entry)
		if err != nil {
			return fault("symbolic link: %w", err)
		}
		f.Mode, f.Link, f.Size, f.Executable = fs.ModeSymlink|0o777, link, 0, false
		return f, nil
	}
	if !entry.Mode().IsRegular() {
		return fault("neither file, folder nor symbolic link; leave it out with --exclude")
	}
	f.open = func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return z.open(ctx, entry, name, offset)
	}
	return f, nil
}

func readLink(entry *zip.File) (string, error) {
	if entry.UncompressedSize64 > maxLink {
		return "", fmt.Errorf("its target has %d bytes", entry.UncompressedSize64)
	}
	r, err := entry.Open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	link, err := io.ReadAll(io.LimitReader(r, maxLink+1))
	return string(link), err
}

// open reads an entry. Inside of one that is compressed there is no other way to an offset than from the start.
func (z *zipModel) open(ctx context.Context, entry *zip.File, name string, offset int64) (io.ReadCloser, error) {
	what := z.ref + ": " + name
	at, err := entry.DataOffset()
	if err != nil {
		return nil, archiveError(what, err)
	}
	packed, size := int64(entry.CompressedSize64), int64(entry.UncompressedSize64)
	if at < 0 || at > z.src.size-packed {
		return nil, archiveError(what, errors.New("it lies outside of the archive"))
	}
	skip := offset
	if entry.Method == zip.Store {
		at, packed, skip = at+offset, max(0, packed-offset), 0
	}
	raw := io.NopCloser(strings.NewReader("")) // nobody can be asked for a range of nothing
	if packed > 0 {
		if raw, err = z.src.open(ctx, span{at, at + packed}); err != nil {
			return nil, err
		}
	}
	r := &zipContent{Reader: raw, raw: raw, what: what}
	if entry.Method == zip.Deflate && packed > 0 {
		r.Reader = inflate(r.Reader)
	}
	if _, err := io.CopyN(io.Discard, r, skip); err != nil && !errors.Is(err, io.EOF) {
		raw.Close()
		return nil, err
	}
	if offset > 0 {
		r.Reader = io.LimitReader(r.Reader, size-offset)
		return r, nil
	}
	return &verifier{ReadCloser: r, name: what, size: size, sums: []checksum{crcSum(entry.CRC32)}}, nil
}

// zipContent is the content of one entry.
type zipContent struct {
	io.Reader
	raw  io.ReadCloser
	what string
}

func (z *zipContent) Read(p []byte) (int, error) {
	n, err := z.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = archiveError(z.what, err)
	}
	return n, err
}

func (z *zipContent) Close() error { return z.raw.Close() }

// windowed reads a remote file in windows, so that the many small reads of a zip's directory and headers are few requests.
type windowed struct {
	ctx  context.Context // until the model is closed
	open func(ctx context.Context, want span) (io.ReadCloser, error)
	size int64

	mu     sync.Mutex
	starts [zipWindows]int64 // guarded by mu, as all below
	data   [zipWindows][]byte
	next   int
}

func (w *windowed) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		if off >= w.size {
			return n, io.EOF
		}
		data, err := w.window(off)
		if err != nil {
			return n, err
		}
		done := copy(p[n:], data)
		n += done
		off += int64(done)
	}
	return n, nil
}

// window returns what is known from an offset on. Only the first request for a window holds others up.
func (w *windowed) window(off int64) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, start := range w.starts {
		if off >= start && off < start+int64(len(w.data[i])) {
			return w.data[i][off-start:], nil
		}
	}
	start := off
	if w.size-off < zipWindow/4 { // the directory is read from its end
		start = max(0, w.size-zipWindow)
	}
	data := make([]byte, min(zipWindow, w.size-start))
	r, err := w.open(w.ctx, span{start, start + int64(len(data))})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, err
	}
	w.starts[w.next], w.data[w.next] = start, data
	w.next = (w.next + 1) % zipWindows
	return data[off-start:], nil
}
