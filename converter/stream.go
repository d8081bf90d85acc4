package converter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/shoal-project/shoal/converter/layer"
	"github.com/shoal-project/shoal/converter/repository"
	"github.com/shoal-project/shoal/converter/source"
)

const (
	// ownLayers is how many large files of a stream get a layer of their own, since nobody knows how many will come. Those that follow
	// share layers that grow.
	ownLayers = 40
	// firstShared is the size in bytes at which the first shared layer ends; every fourth doubles it.
	firstShared = 8 << 30
	// spoolMemory is how many bytes of small files are held in memory before they go to a temporary file.
	spoolMemory = 32 << 20
)

// readStream makes the layers of a model that is read from its start to its end. If the registry loses an upload it begins anew, unless
// the source can be read only once.
func (c *conversion) readStream(ctx context.Context) error {
	for try := 1; ; try++ {
		err := c.oneStream(ctx)
		if err == nil || try == streamTries || c.model.Once || ctx.Err() != nil || !errors.Is(err, repository.ErrLost) {
			return err
		}
		c.cfg.Logger.WarnContext(ctx, "the model is read anew", "error", err)
		c.layers, c.files, c.bytes = nil, 0, 0
	}
}

// oneStream makes the layers in the order of the source: large files are passed on as they come, small ones are kept for the end, as their
// layer is one. A stream with no more than ownLayers large files makes the same layers as a folder.
func (c *conversion) oneStream(ctx context.Context) error {
	root := strings.TrimPrefix(c.cfg.ModelPath, "/")
	s := &streamer{c: c, root: root, spool: &spool{path: filepath.Join(c.temp, "small")}, dirs: map[string]bool{}}
	newParents(root+"/x", s.dirs) // which are there in any case
	defer s.spool.close()
	err := c.model.Each(ctx, func(f *source.File, content io.Reader) error { return s.take(ctx, f, content) })
	if err == nil {
		err = s.endShared()
	} else if s.shared != nil {
		s.shared.stop()
	}
	if err != nil {
		return modelError(ctx, err)
	}
	sort.SliceStable(s.small, func(i, j int) bool { return source.Less(s.small[i].Name, s.small[j].Name) })
	if len(s.small) > 0 {
		p := part{entries: append(parents(s.root+"/x"), s.small...), of: smallFiles(s.count)}
		m, err := c.streamPart(ctx, p)
		if err != nil {
			return err
		}
		c.layers = append(c.layers, m)
	}
	sortLayers(c.layers)
	return nil
}

type streamer struct {
	c      *conversion
	root   string
	spool  *spool
	small  []layer.Entry
	dirs   map[string]bool // in small, which has all of them
	count  int             // of small files
	large  int
	shared *sharedLayer // nil if none is begun
}

func (s *streamer) take(ctx context.Context, f *source.File, content io.Reader) error {
	e := newEntry(s.root, f)
	e.Open = nil
	s.small = append(s.small, newParents(e.Name, s.dirs)...)
	if e.Kind != layer.File || e.Size < largeFile {
		if e.Kind == layer.File {
			s.count++
			s.c.cfg.Progress.Plan(Read, e.Size)
			if err := s.spool.add(&e, content); err != nil {
				return err
			}
			s.c.files++
			s.c.bytes += e.Size
		}
		s.small = append(s.small, e)
		return nil
	}
	s.c.files++
	s.c.bytes += e.Size
	s.c.cfg.Progress.Plan(Read, e.Size)
	s.c.cfg.Progress.Step(Read, "read "+f.Path)
	if s.large++; s.large > ownLayers {
		return s.share(ctx, e, content)
	}
	m, err := s.c.stream(ctx, func(out io.Writer) (*modelLayer, error) {
		w := layer.NewWriter(out, s.c.layerConfig())
		if err := addFile(ctx, w, e, content, map[string]bool{}); err != nil {
			return nil, err
		}
		l, err := w.Finish()
		if err != nil {
			return nil, err
		}
		return newModelLayer(l, f.Path, true), nil
	})
	if err != nil {
		return err
	}
	s.c.layers = append(s.c.layers, m)
	return nil
}

func addFile(ctx context.Context, w *layer.Writer, e layer.Entry, content io.Reader, seen map[string]bool) error {
	for _, dir := range newParents(e.Name, seen) {
		if err := w.Add(ctx, &dir, nil); err != nil {
			return err
		}
	}
	if err := checkSize(w, &e); err != nil {
		return err
	}
	return w.Add(ctx, &e, content)
}

// sharedLayer is a layer that takes several files of a stream. The goroutine that makes it gets them one by one, and ends with
// the last.
type sharedLayer struct {
	files chan streamed
	taken chan error // one for each file
	done  chan error
	made  *modelLayer
	size  int64
	limit int64
	// stopped: the layer will not be used. It is set before files is closed.
	stopped bool
}

type streamed struct {
	entry   layer.Entry
	content io.Reader
}

// share adds a file to the shared layer, or begins one.
func (s *streamer) share(ctx context.Context, e layer.Entry, content io.Reader) error {
	if s.shared != nil && s.shared.size >= s.shared.limit {
		if err := s.endShared(); err != nil {
			return err
		}
	}
	if s.shared == nil {
		number := len(s.c.layers) - ownLayers
		if number >= maxLargeLayers-ownLayers {
			return fmt.Errorf("%s: the stream holds too many large files for the layers of an image; unpack it into a folder", e.Name)
		}
		s.shared = s.begin(ctx, firstShared<<(number/4))
	}
	s.shared.size += e.Size
	select {
	case s.shared.files <- streamed{e, content}:
	case err := <-s.shared.done:
		s.shared = nil
		return err
	}
	select {
	case err := <-s.shared.taken:
		return err
	case err := <-s.shared.done:
		s.shared = nil
		return err
	}
}

func (s *streamer) begin(ctx context.Context, limit int64) *sharedLayer {
	sh := &sharedLayer{files: make(chan streamed), taken: make(chan error), done: make(chan error, 1), limit: limit}
	go func() { // ends when files is closed, or with its first error
		var err error
		sh.made, err = s.c.stream(ctx, func(out io.Writer) (*modelLayer, error) {
			return sh.write(ctx, layer.NewWriter(out, s.c.layerConfig()), s.root)
		})
		sh.done <- err
	}()
	return sh
}

func (sh *sharedLayer) write(ctx context.Context, w *layer.Writer, root string) (*modelLayer, error) {
	seen, first, count := map[string]bool{}, "", 0
	for f := range sh.files {
		if err := addFile(ctx, w, f.entry, f.content, seen); err != nil {
			return nil, err
		}
		if count++; count == 1 {
			first = strings.TrimPrefix(f.entry.Name, root+"/")
		}
		sh.taken <- nil
	}
	if sh.stopped {
		return nil, context.Canceled
	}
	l, err := w.Finish()
	if err != nil {
		return nil, err
	}
	return newModelLayer(l, largeFiles(first, count), true), nil
}

// stop ends a layer that will not be used.
func (sh *sharedLayer) stop() {
	sh.stopped = true
	close(sh.files)
	_ = sh.wait() // it is known why
}

func (sh *sharedLayer) wait() error { return <-sh.done }

func (s *streamer) endShared() error {
	sh := s.shared
	if sh == nil {
		return nil
	}
	s.shared = nil
	close(sh.files)
	if err := sh.wait(); err != nil {
		return err
	}
	s.c.layers = append(s.c.layers, sh.made)
	return nil
}

// spool keeps small files: in memory, and when they become many, in a temporary file.
type spool struct {
	path string
	held int64 // in memory
	file *os.File
	size int64 // of file
}

func (s *spool) add(e *layer.Entry, content io.Reader) error {
	raw := make([]byte, e.Size) // below largeFile, whatever the archive says
	if _, err := io.ReadFull(content, raw); err != nil {
		return err
	}
	switch n, err := io.Copy(io.Discard, content); { // a source that verifies a file says so at its end
	case err != nil:
		return err
	case n > 0:
		return fmt.Errorf("%s: %w", e.Name, layer.ErrChanged)
	}
	if s.held+e.Size <= spoolMemory {
		s.held += e.Size
		e.Open = func(_ context.Context, offset int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(raw[offset:])), nil
		}
		return nil
	}
	if s.file == nil {
		var err error
		if s.file, err = os.Create(s.path); err != nil {
			return fmt.Errorf("%w: %w", errTemp, err)
		}
	}
	at := s.size
	if _, err := s.file.WriteAt(raw, at); err != nil {
		return fmt.Errorf("%w: %w; set TMPDIR to a folder with more room", errTemp, err)
	}
	s.size += e.Size
	e.Open = func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(s.file, at+offset, e.Size-offset)), nil
	}
	return nil
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close() // its folder is removed
	}
}
