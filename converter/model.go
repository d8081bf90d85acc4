package converter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"runtime"
	"sort"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/converter/layer"
	"github.com/shoal-project/shoal/converter/repository"
	"github.com/shoal-project/shoal/converter/source"
	"golang.org/x/sync/errgroup"
)

const (
	// rafsChunkSize is the length in bytes at which both variants' file systems read.
	rafsChunkSize = 1 << 20
	// largeFile is the size in bytes from which a model file gets a layer of its own.
	largeFile = 1 << 20
	// maxLargeLayers bounds the number of those layers: runtimes stack at most 127. Beyond, files next to each other share
	// one. The bound does not depend on the base, so that neither do the layers.
	maxLargeLayers = 63
	// maxLayers is the number of layers that all runtimes stack.
	maxLayers = 127
	// maxModelLayer is the size in bytes of a layer whose chunk map its readers still take.
	maxModelLayer = 480 << 30
	// streamTries is how often a layer is made anew whose upload the registry lost.
	streamTries = 4
)

// modelLayer is a layer with files of the model.
type modelLayer struct {
	*layer.Layer
	of     string
	large  bool         // it holds large files
	chunks int          // RAFS chunks
	file   *layer.Entry // the only one it holds; nil if there are several
	record *Layer
}

// letGo drops what a layer that is at the target would be read from again.
func (m *modelLayer) letGo() {
	for _, e := range m.Entries {
		e.Open = nil
	}
}

// forget drops what nobody needs who neither reads nor merges the layer any more.
func (m *modelLayer) forget() { m.Layer = &layer.Layer{Digest: m.Digest, Size: m.Size} }

func (m *modelLayer) image() image.Layer {
	return image.Layer{DiffID: m.Digest, Descriptor: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer, Digest: m.Digest, Size: m.Size,
	}}
}

// readModel makes the model's layers, small files first, then large ones in the order of their names.
func (c *conversion) readModel(ctx context.Context) error {
	if c.model.Files == nil {
		return c.readStream(ctx)
	}
	for i := range c.model.Files {
		if f := &c.model.Files[i]; f.Mode.IsRegular() {
			c.files++
			c.bytes += f.Size
		}
	}
	c.cfg.Progress.Plan(Read, c.bytes)
	parts := split(c.cfg.ModelPath, c.model.Files)
	c.model.Files = nil // the parts have them now
	c.layers = make([]*modelLayer, len(parts))
	var work errgroup.Group // with the context of all: the uploads it starts go on when it has ended
	work.SetLimit(c.parallel())
	for i, p := range parts {
		work.Go(func() (err error) {
			c.layers[i], err = c.modelLayer(ctx, p)
			return c.failing(err)
		})
	}
	return work.Wait()
}

// parallel is how many layers are made at once: each processor hashes one, and who waits for a network more.
func (c *conversion) parallel() int {
	if c.model.Local {
		return max(2, runtime.GOMAXPROCS(0))
	}
	return max(4, runtime.GOMAXPROCS(0))
}

// part is what goes into one model layer.
type part struct {
	entries []layer.Entry
	of      string
	large   bool
}

func newEntry(root string, f *source.File) layer.Entry {
	e := layer.Entry{Name: root + "/" + f.Path, Executable: f.Executable, Link: f.Link, Size: f.Size, Open: f.Opener()}
	switch {
	case f.Mode.IsDir():
		e.Kind = layer.Dir
	case f.Link != "":
		e.Kind = layer.Symlink
	}
	return e
}

// split distributes the model over layers: first one with all folders, links and small files, then the large files.
func split(modelPath string, files []source.File) []part {
	root := strings.TrimPrefix(modelPath, "/")
	small := part{entries: append(make([]layer.Entry, 0, len(files)+8), parents(root+"/x")...)}
	folders, count := len(small.entries), 0
	var large []layer.Entry
	for i := range files {
		e := newEntry(root, &files[i])
		if e.Kind == layer.File && e.Size >= largeFile {
			large = append(large, e)
			continue
		}
		if e.Kind == layer.File {
			count++
		}
		small.entries = append(small.entries, e)
	}
	var parts []part
	if len(small.entries) > folders {
		small.of = smallFiles(count)
		parts = append(parts, small)
	}
	per := (len(large) + maxLargeLayers - 1) / maxLargeLayers
	for len(large) > 0 {
		group := large[:min(per, len(large))]
		large = large[len(group):]
		parts = append(parts, largePart(root, group))
	}
	return parts
}

func smallFiles(count int) string { return fmt.Sprintf("%d small files", count) }

func largePart(root string, files []layer.Entry) part {
	p := part{large: true}
	seen := map[string]bool{}
	for _, f := range files {
		p.entries = append(append(p.entries, newParents(f.Name, seen)...), f)
	}
	p.of = largeFiles(strings.TrimPrefix(files[0].Name, root+"/"), len(files))
	return p
}

func largeFiles(first string, count int) string {
	if count == 1 {
		return first
	}
	return fmt.Sprintf("%d large files from %s", count, first)
}

// parents returns the folders above a name, topmost first.
func parents(name string) []layer.Entry {
	var out []layer.Entry
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		out = append([]layer.Entry{{Name: dir, Kind: layer.Dir}}, out...)
	}
	return out
}

// newParents returns the folders above a name that were not seen yet, and notes them.
func newParents(name string, seen map[string]bool) []layer.Entry {
	var out []layer.Entry
	for _, dir := range parents(name) {
		if !seen[dir.Name] {
			seen[dir.Name] = true
			out = append(out, dir)
		}
	}
	return out
}

// modelLayer makes one layer of files that can be opened at will. Where they are on disk and the target is a registry, they are
// hashed first and read again for what the registry has not got; everywhere else they are read once, on their way.
func (c *conversion) modelLayer(ctx context.Context, p part) (*modelLayer, error) {
	if c.asks && c.model.Local {
		c.cfg.Progress.Step(Read, "hash "+p.of)
		defer c.cfg.Progress.Ended(Read, "hash "+p.of)
		m, err := c.write(ctx, p, io.Discard)
		if err != nil {
			return nil, err
		}
		c.upload(ctx, repository.Blob{Descriptor: m.image().Descriptor, Open: m.reopen}, m.record, nil)
		return m, nil
	}
	return c.streamPart(ctx, p)
}

// streamPart brings a layer to the target while it is made, and begins anew if the registry lost it.
func (c *conversion) streamPart(ctx context.Context, p part) (*modelLayer, error) {
	c.cfg.Progress.Step(Read, "read "+p.of)
	defer c.cfg.Progress.Ended(Read, "read "+p.of)
	for try := 1; ; try++ {
		m, err := c.stream(ctx, func(w io.Writer) (*modelLayer, error) { return c.write(ctx, p, w) })
		if err == nil {
			m.letGo()
			return m, nil
		}
		if try == streamTries || !errors.Is(err, repository.ErrLost) {
			return nil, err
		}
		c.cfg.Logger.WarnContext(ctx, "layer is made anew", "of", p.of, "error", err)
	}
}

// reopen gives what goes wrong in the second reading the class it had in the first.
func (m *modelLayer) reopen(ctx context.Context, offset int64) (io.ReadCloser, error) {
	r, err := m.Open(ctx, offset)
	if err != nil {
		return nil, modelError(ctx, err)
	}
	return &changedReader{ctx, r}, nil
}

// changedReader is the content of a second reading. It lives no longer than the call its context belongs to.
type changedReader struct {
	ctx context.Context
	io.ReadCloser
}

func (r *changedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = modelError(r.ctx, err)
	}
	return n, err
}

// write makes a layer of a part and passes its bytes on.
func (c *conversion) write(ctx context.Context, p part, out io.Writer) (made *modelLayer, err error) {
	cfg, read := c.layerConfig(), int64(0)
	progress := cfg.Progress
	cfg.Progress = func(n int64) { read += n; progress(n) }
	defer func() {
		if err != nil {
			progress(-read) // it may be read again
		}
	}()
	w := layer.NewWriter(out, cfg)
	for i := range p.entries {
		e := &p.entries[i]
		if err := checkSize(w, e); err != nil {
			return nil, err
		}
		if err := w.Add(ctx, e, nil); err != nil {
			return nil, modelError(ctx, err)
		}
	}
	l, err := w.Finish()
	if err != nil {
		return nil, modelError(ctx, err)
	}
	return newModelLayer(l, p.of, p.large), nil
}

func newModelLayer(l *layer.Layer, of string, large bool) *modelLayer {
	return &modelLayer{Layer: l, of: of, large: large, chunks: l.ChunkCount(), file: onlyFile(l), record: &Layer{Kind: "model", Digest: l.Digest, Size: l.Size, Of: of}}
}

// checkSize refuses a file that makes its layer too large, before it is read.
func checkSize(w *layer.Writer, e *layer.Entry) error {
	if e.Size > maxModelLayer-w.Size() {
		return classify(ErrSource, "model: %s makes a layer of more than %d bytes; cut the file into shards", e.Name, int64(maxModelLayer))
	}
	return nil
}

func (c *conversion) layerConfig() layer.Config {
	return layer.Config{
		ChunkSize: rafsChunkSize,
		Table: func(offset int64, chunks iter.Seq[layer.Chunk]) []byte {
			return bootstrap.Table(offset, rafsChunks(chunks))
		},
		Progress:  func(n int64) { c.cfg.Progress.Done(Read, n) },
		AnyFormat: c.cfg.AnyFormat,
	}
}

// stream brings a layer to the target while it is made.
func (c *conversion) stream(ctx context.Context, makeLayer func(io.Writer) (*modelLayer, error)) (*modelLayer, error) {
	up, err := c.sink.Create(ctx)
	if err != nil {
		return nil, c.pushError("push a layer", err)
	}
	defer up.Cancel(ctx)
	out := &targetWriter{c: c, up: up}
	m, err := makeLayer(out)
	if err == nil {
		err = up.Commit(ctx, m.Digest, m.Size)
		out.fail(err)
	}
	if out.err != nil {
		c.cfg.Progress.Done(Push, -out.written)
		return nil, c.pushError("push a layer of the model", out.err)
	}
	if err != nil {
		return nil, err
	}
	if !c.cfg.DryRun {
		m.record.Outcome = repository.Sent
	}
	return m, nil
}

// targetWriter counts what goes to the target and remembers what went wrong with it, so that it is not taken for a fault of the model.
type targetWriter struct {
	c       *conversion
	up      repository.Upload
	written int64
	err     error
}

func (w *targetWriter) fail(err error) {
	if err != nil && w.err == nil {
		w.err = err
	}
}

func (w *targetWriter) Write(p []byte) (int, error) {
	n, err := w.up.Write(p)
	w.written += int64(n)
	w.c.cfg.Progress.Plan(Push, int64(n))
	w.c.cfg.Progress.Done(Push, int64(n))
	w.fail(err)
	return n, err
}

// rafsChunks are the chunks of a layer as its blob has them.
func rafsChunks(chunks iter.Seq[layer.Chunk]) iter.Seq[bootstrap.Chunk] {
	return func(yield func(bootstrap.Chunk) bool) {
		index := uint32(0)
		for c := range chunks {
			if !yield(bootstrap.Chunk{
				Index: index, Digest: c.Digest, Offset: c.Offset, Length: c.Size, DeviceOffset: c.Offset, Size: c.Size, FileOffset: c.FileOffset,
			}) {
				return
			}
			index++
		}
	}
}

// sortLayers brings the layers of a stream into the order of a folder's: small files first, then by name.
func sortLayers(layers []*modelLayer) {
	sort.SliceStable(layers, func(i, j int) bool {
		a, b := layers[i], layers[j]
		if a.large != b.large {
			return b.large
		}
		return a.large && source.Less(firstFile(a), firstFile(b))
	})
}

func firstFile(m *modelLayer) string {
	for _, e := range m.Entries {
		if e.Kind == layer.File {
			return e.Name
		}
	}
	return ""
}
