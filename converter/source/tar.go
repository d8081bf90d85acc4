package source

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// tarBlock is what a tar is made of. Two blocks of zeros end it; one is enough for most readers, and for us.
const tarBlock = 512

func (s *session) openStdin() (*Model, error) {
	stdin := s.Stdin
	if stdin == nil {
		stdin = bytes.NewReader(nil)
	}
	each := s.tarModel("standard input", func(ctx context.Context) (io.ReadCloser, error) { return newPatient(ctx, stdin), nil })
	return &Model{Once: true, each: once(each)}, nil
}

func (s *session) openLocalTar(ref, stem string) (*Model, error) {
	each := s.tarModel(ref, func(context.Context) (io.ReadCloser, error) { return os.Open(ref) })
	return &Model{Name: stem, Local: true, each: each}, nil
}

// tarModel reads a tar archive as a model.
func (s *session) tarModel(ref string, open func(context.Context) (io.ReadCloser, error)) func(context.Context, Visit) error {
	return func(ctx context.Context, visit Visit) error {
		c := s.collector(ref)
		r, err := open(ctx)
		if err != nil {
			return err
		}
		defer r.Close()
		err = s.readTar(ctx, r, ref, func(h *tar.Header, content io.Reader) error { return c.tarEntry(h, content, visit) })
		if err != nil {
			return err
		}
		return c.visitEmpty(visit)
	}
}

// visitEmpty ends a stream.
func (c *collector) visitEmpty(visit Visit) error {
	empty, err := c.finish()
	if err != nil {
		return err
	}
	for _, name := range empty {
		dir := dirFile(name)
		if err := visit(&dir, nil); err != nil {
			return err
		}
	}
	return nil
}

// readTar calls entry for each entry of a tar and then reads to the end of the stream, so that what verifies it has seen
// all. Names come without what only tars have: a dot in front, a slash behind.
func (s *session) readTar(ctx context.Context, r io.Reader, ref string, entry func(h *tar.Header, content io.Reader) error) error {
	in, err := s.expand(ctx, r)
	if err != nil {
		return archiveError(ref, err)
	}
	defer in.free()
	tail := &zeroTail{r: in}
	archive := tar.NewReader(tail)
	for n := 0; ; n++ {
		tail.zeros = 0
		h, err := archive.Next()
		switch {
		case errors.Is(err, io.EOF) && tail.zeros < tarBlock:
			return archiveError(ref, io.ErrUnexpectedEOF)
		case errors.Is(err, io.EOF):
			return archiveError(ref, in.drain())
		case errors.Is(err, tar.ErrHeader) && n == 0:
			return archiveError(ref, in.noTar())
		case err != nil && !errors.Is(err, tar.ErrInsecurePath):
			return archiveError(ref, err)
		case n > s.MaxFiles:
			return tooMany(ref, s.MaxFiles)
		}
		h.Name = tarName(h.Name)
		content := &tarContent{ctx: ctx, r: archive, meter: in.meter, what: ref + ": " + h.Name}
		if h.Size > s.MaxExpanded {
			return archiveError(ref, fmt.Errorf("%s has %d bytes, the limit is %d", h.Name, h.Size, s.MaxExpanded))
		}
		if err := entry(h, content); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, content); err != nil {
			return err
		}
		content.over = true
	}
}

// tarName leaves hostile names as they are: checkName refuses them, and tells them as they were.
func tarName(name string) string {
	if strings.HasPrefix(name, "/") || strings.Contains("/"+name+"/", "/../") {
		return name
	}
	return path.Clean(name)
}

// zeroTail counts the zeros at the end of what was read.
type zeroTail struct {
	r     io.Reader
	zeros int
}

func (z *zeroTail) Read(p []byte) (int, error) {
	n, err := z.r.Read(p)
	if rest := len(bytes.TrimRight(p[:n], "\x00")); rest > 0 {
		z.zeros = n - rest
	} else {
		z.zeros += n
	}
	return n, err
}

// tarContent is the content of one entry.
type tarContent struct {
	ctx   context.Context
	r     io.Reader
	meter *meter // a sparse file may be larger than the tar it is in
	what  string // for errors
	over  bool
}

func (t *tarContent) Read(p []byte) (int, error) {
	if t.over {
		return 0, errors.New("the stream went on")
	}
	if err := t.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := t.r.Read(p)
	if fault := t.meter.spend(int64(n)); fault != nil {
		return 0, archiveError(t.what, fault)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = archiveError(t.what, err)
	}
	return n, err
}

// tarEntry passes on an entry that is wanted.
func (c *collector) tarEntry(h *tar.Header, content io.Reader, visit Visit) error {
	f := File{Path: h.Name}
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeDir:
		if f.Path == "." || c.drops(f.Path) {
			return nil
		}
		return c.addDir(f.Path)
	}
	if !c.wants(f.Path) {
		return nil
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		f.Mode, f.Executable, f.Size = h.FileInfo().Mode().Perm(), h.Mode&0o111 != 0, h.Size
	case tar.TypeSymlink:
		f.Mode, f.Link, content = fs.ModeSymlink|0o777, h.Linkname, nil
	case tar.TypeLink:
		return c.fault(fmt.Errorf("%s: a hard link to %s, whose content went by already; make the archive with tar --hard-dereference",
			f.Path, h.Linkname))
	default:
		return c.fault(fmt.Errorf("%s: neither file, folder nor symbolic link (tar type %q); leave it out with --exclude", f.Path, h.Typeflag))
	}
	if err := c.add(&f); err != nil {
		return err
	}
	return visit(&f, content)
}
