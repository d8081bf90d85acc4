package converter

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/readahead"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/converter/repository"
	"github.com/shoal-project/shoal/converter/source"
	"github.com/shoal-project/shoal/peer/chunkmap"
)

const (
	// maxBaseLayer bounds the bytes one base layer unpacks to, so that a small file cannot keep a machine busy for ever.
	maxBaseLayer = 256 << 30
	// maxWindow is how many bytes a zstd layer may ask us to remember; runtimes take no more either.
	maxWindow = 128 << 20

	whiteoutPrefix = ".wh."
	opaqueMark     = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh."
	xattrPrefix    = "SCHILY.xattr."
)

// readBase reads the base's layers, lowest first: their bytes are verified, their files merged and packed, both blobs uploaded.
func (p *platform) readBase(ctx context.Context) error {
	for i := range p.base.Manifest.Layers {
		if err := p.frameworkLayer(ctx, i); err != nil {
			return err
		}
	}
	p.tree.NextLayer()
	return p.previousBlobs(ctx)
}

func (p *platform) frameworkLayer(ctx context.Context, i int) error {
	desc := p.base.Manifest.Layers[i]
	p.c.cfg.Progress.Step(Base, fmt.Sprintf("read base layer %d of %d, %s", i+1, len(p.base.Manifest.Layers), p.base.Platform))
	mediaType, err := source.LayerMediaType(desc.MediaType)
	if err != nil {
		return &classified{ErrSource, err}
	}
	l := image.Layer{DiffID: p.base.DiffIDs[i], Descriptor: ocispec.Descriptor{
		MediaType: mediaType, Digest: desc.Digest, Size: desc.Size,
	}}
	p.plainBase = append(p.plainBase, l)
	record := p.record("base", l, "")
	file, err := os.CreateTemp(p.c.temp, "layer-")
	if err != nil {
		return fmt.Errorf("%w: %w", errTemp, err)
	}
	blob, ok, err := p.packLayer(ctx, desc, l, file)
	if cerr := file.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("%w: %w", errTemp, cerr)
	}
	if err != nil {
		return p.layerError(ctx, i, desc, err)
	}
	if ok {
		l := image.BlobLayer(blob.Digest, blob.Size)
		p.addFramework(ctx, l, tempBlob(l.Descriptor, file.Name()), func() { _ = os.Remove(file.Name()) }) // the folder goes too
	} else {
		_ = os.Remove(file.Name())
	}
	p.c.upload(ctx, repository.Blob{
		Descriptor: desc, From: p.from,
		Open: func(ctx context.Context, offset int64) (io.ReadCloser, error) { return p.base.Layer(ctx, desc, offset) },
	}, record, nil)
	return nil
}

// addFramework lists a blob in the Nydus manifest and brings it to the target.
func (p *platform) addFramework(ctx context.Context, l image.Layer, b repository.Blob, done func()) {
	p.framework = append(p.framework, l)
	b.Descriptor = l.Descriptor
	p.c.upload(ctx, b, p.record("framework", l, ""), done)
}

// layerError names the layer and tells whether its source or its content is at fault.
func (p *platform) layerError(ctx context.Context, i int, desc ocispec.Descriptor, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	err = fmt.Errorf("base image %s: layer %d (%s): %w", p.ref, i+1, desc.Digest, err)
	for _, content := range []error{bootstrap.ErrPath, bootstrap.ErrUnsupported, bootstrap.ErrInvalid, errTar} {
		if errors.Is(err, content) {
			return p.blame(ctx, desc, err)
		}
	}
	answer, refused := errors.AsType[*transport.Error](err)
	switch {
	case errors.Is(err, ErrVerify), errors.Is(err, errTemp):
		return err
	case errors.Is(err, repository.ErrDigest):
		return &classified{ErrVerify, err}
	case errors.Is(err, repository.ErrNotFound), refused && hasCode(answer, transport.BlobUnknownErrorCode):
		return classify(ErrSource, "%w; the base image lacks a part of it, push it anew", err)
	}
	return registryError("read base image", p.ref, err)
}

// blame tells a layer whose content is wrong from one that was spoiled since it was pushed, which shows in its content first.
func (p *platform) blame(ctx context.Context, desc ocispec.Descriptor, fault error) error {
	r, err := p.base.Layer(ctx, desc, 0)
	if err == nil {
		_, err = io.Copy(io.Discard, r)
		_ = r.Close() // only read from
	}
	if errors.Is(err, repository.ErrDigest) || errors.Is(err, source.ErrDigest) {
		return classify(ErrVerify, "%w: its bytes are not those of its digest (%w)", fault, err)
	}
	return &classified{ErrSource, fault}
}

// tempBlob is a blob in a temporary file.
func tempBlob(d ocispec.Descriptor, path string) repository.Blob {
	return repository.Blob{Descriptor: d, Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return &lazyFile{path: path, offset: offset}, nil
	}}
}

// lazyFile opens a file at the first Read, so that many may wait without a descriptor.
type lazyFile struct {
	path   string
	offset int64
	file   *os.File
}

func (f *lazyFile) Read(p []byte) (int, error) {
	if f.file == nil {
		var err error
		if f.file, err = os.Open(f.path); err != nil {
			return 0, err
		}
		if _, err = f.file.Seek(f.offset, io.SeekStart); err != nil {
			return 0, err
		}
	}
	return f.file.Read(p)
}

func (f *lazyFile) Close() error {
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

var (
	// errTar marks what is wrong with the tar inside of a layer.
	errTar = errors.New("bad tar")
	// errTemp marks what is wrong with the temporary file.
	errTemp = errors.New("temporary file")
)

// tempWriter marks the errors of the temporary file, which is not the base image's fault.
type tempWriter struct{ w io.Writer }

func (t tempWriter) Write(p []byte) (int, error) {
	n, err := t.w.Write(p)
	return n, tempError(err)
}

func tempError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w; set TMPDIR to a folder with more room", errTemp, err)
}

// contextWriter ends with the context: the holes of a sparse file are packed without a read of the layer.
type contextWriter struct{ ctx context.Context }

func (w contextWriter) Write(p []byte) (int, error) { return len(p), w.ctx.Err() }

// packLayer reads a layer to its end and writes its Nydus blob to temp; ok is false if it has no file with content.
func (p *platform) packLayer(ctx context.Context, desc ocispec.Descriptor, l image.Layer, temp io.Writer) (blob bootstrap.Blob, ok bool, err error) {
	r, err := p.openLayer(ctx, desc)
	if err != nil {
		return blob, false, err
	}
	defer r.Close()
	nydus := chunkmap.NewCutter()
	buffered := bufio.NewWriterSize(tempWriter{temp}, 1<<20)
	packer, err := bootstrap.NewPacker(io.MultiWriter(contextWriter{ctx}, buffered, nydus), rafsChunkSize, compressors[p.c.cfg.Compressor], p.dict)
	if err != nil {
		return blob, false, err
	}
	defer packer.Close()
	p.tree.NextLayer()
	if err := p.mergeTar(r, packer); err != nil {
		return blob, false, err
	}
	if p.maps[l.Digest], err = r.finish(l); err != nil {
		return blob, false, err
	}
	packed, err := packer.Finish()
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		return blob, false, err
	}
	known := p.blobs.Has(packed.Blob.Digest)
	p.blobs.Add(packed)
	if len(packed.Chunks) == 0 {
		return blob, false, nil
	}
	p.maps[packed.Blob.Digest] = nydus.Map(packed.Blob.Digest)
	return packed.Blob, !known, nil
}

// mergeTar applies the entries of a layer's tar to the tree and packs the content of its files.
func (p *platform) mergeTar(r io.Reader, packer *bootstrap.Packer) error {
	var total int64
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return tarError("", err)
		}
		if total += hdr.Size; hdr.Size < 0 || total > maxBaseLayer || total < 0 {
			return fmt.Errorf("%s: the layer unpacks to more than %d bytes: %w", hdr.Name, int64(maxBaseLayer), errTar)
		}
		n, err := p.mergeEntry(hdr)
		if err != nil {
			return err
		}
		if n == nil || n.Size == 0 {
			continue
		}
		if err := packer.Add(n, tr); err != nil {
			return tarError(hdr.Name, err)
		}
	}
}

// tarError tells a broken tar from a broken connection.
func tarError(name string, err error) error {
	if _, ok := errors.AsType[*wayError](err); ok {
		return named(name, err)
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) {
		err = fmt.Errorf("%w: %w", errTar, err)
	}
	return named(name, err)
}

func named(name string, err error) error {
	if name == "" {
		return err
	}
	return fmt.Errorf("%s: %w", name, err)
}

// mergeEntry applies one entry and returns its inode if it is a regular file.
func (p *platform) mergeEntry(hdr *tar.Header) (*bootstrap.Inode, error) {
	dir, name := path.Split(strings.TrimSuffix(hdr.Name, "/"))
	switch {
	case name == opaqueMark:
		return nil, p.tree.Opaque(dir)
	case strings.HasPrefix(name, aufsPrefix):
		return nil, nil
	case strings.HasPrefix(name, whiteoutPrefix):
		hidden := strings.TrimPrefix(name, whiteoutPrefix)
		if hidden == "" || hidden == "." || hidden == ".." {
			return nil, fmt.Errorf("%q hides nothing: %w", hdr.Name, bootstrap.ErrPath)
		}
		return nil, p.tree.Whiteout(dir + hidden)
	}
	n := &bootstrap.Inode{
		Mode: uint32(hdr.Mode & 0o7777), UID: uint32(hdr.Uid), GID: uint32(hdr.Gid),
		Mtime: hdr.ModTime.Unix(), MtimeNsec: uint32(hdr.ModTime.Nanosecond()), Xattrs: xattrs(hdr),
	}
	switch hdr.Typeflag {
	case tar.TypeReg:
		n.Mode |= bootstrap.TypeRegular
		n.Size = hdr.Size
	case tar.TypeDir:
		n.Mode |= bootstrap.TypeDir
	case tar.TypeSymlink:
		n.Mode = bootstrap.TypeSymlink | 0o777
		n.Link = hdr.Linkname
	case tar.TypeLink:
		return nil, p.tree.Link(hdr.Name, hdr.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		n.Mode |= map[byte]uint32{tar.TypeChar: bootstrap.TypeChar, tar.TypeBlock: bootstrap.TypeBlock}[hdr.Typeflag]
		n.Major, n.Minor = uint32(hdr.Devmajor), uint32(hdr.Devminor)
	case tar.TypeFifo:
		n.Mode |= bootstrap.TypeFIFO
	case tar.TypeXGlobalHeader:
		return nil, nil
	default:
		return nil, fmt.Errorf("%q: type %q: %w", hdr.Name, hdr.Typeflag, errTar)
	}
	if err := p.tree.Add(hdr.Name, n); err != nil {
		return nil, err
	}
	if hdr.Typeflag != tar.TypeReg {
		return nil, nil
	}
	return n, nil
}

// xattrs returns the extended attributes Linux knows; those of other systems (com.apple.…) are left out by runtimes too.
func xattrs(hdr *tar.Header) map[string]string {
	var out map[string]string
	for key, value := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(key, xattrPrefix); ok && bootstrap.IsXattr(name) {
			if out == nil {
				out = map[string]string{}
			}
			out[name] = value
		}
	}
	return out
}

// baseLayer is the unpacked stream of a layer, with what is needed to verify it in both forms.
type baseLayer struct {
	io.Reader // unpacked

	compressed io.Reader
	source     io.Closer
	done       []func()
	sum        hash.Hash // of the stored bytes
	diff       hash.Hash // of the unpacked ones
	chunks     *chunkmap.Cutter
}

func (p *platform) openLayer(ctx context.Context, desc ocispec.Descriptor) (*baseLayer, error) {
	raw, err := p.base.Layer(ctx, desc, 0)
	if err != nil {
		return nil, err
	}
	l := &baseLayer{source: raw, sum: sha256.New(), diff: sha256.New(), chunks: chunkmap.NewCutter()}
	counted := &readCounter{ctx: ctx, r: io.LimitReader(raw, desc.Size+1), progress: p.c.cfg.Progress, stage: Base}
	l.compressed = bufio.NewReaderSize(io.TeeReader(counted, io.MultiWriter(l.sum, l.chunks)), 1<<20)
	plain, err := l.decompress()
	if err != nil {
		_ = l.Close() // the first error is the one to tell
		return nil, blame(err)
	}
	// It is read, verified and expanded while what came before is packed.
	ahead := readahead.NewReader(io.TeeReader(&unpacked{plain}, l.diff))
	l.Reader, l.done = ahead, append([]func(){func() { _ = ahead.Close() }}, l.done...) // it ends before what it reads
	return l, nil
}

// unpacked is what a layer unpacks to; its errors tell whether the layer is broken or the way to it.
type unpacked struct{ r io.Reader }

func (u *unpacked) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = blame(err)
	}
	return n, err
}

// blame marks an error as the content's fault, unless the stored bytes came with it.
func blame(err error) error {
	if _, ok := errors.AsType[*wayError](err); ok {
		return err
	}
	return fmt.Errorf("%w: %w", errTar, err)
}

func (l *baseLayer) decompress() (io.Reader, error) {
	br := l.compressed.(*bufio.Reader)
	head, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return gzip.NewReader(br)
	case string(head) == "\x28\xb5\x2f\xfd":
		zr, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		l.done = append(l.done, zr.Close)
		return zr, nil
	}
	return br, nil
}

// finish reads what is behind the tar, verifies both digests and returns the chunk map of the stored bytes.
func (l *baseLayer) finish(want image.Layer) (*chunkmap.Map, error) {
	for _, r := range []io.Reader{l.Reader, l.compressed} {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return nil, tarError("", err)
		}
	}
	if got := digest.NewDigest(digest.SHA256, l.sum); got != want.Digest || l.chunks.Size() != want.Size {
		return nil, classify(ErrVerify, "it has %d bytes with digest %s, the manifest says %d and %s", l.chunks.Size(), got, want.Size, want.Digest)
	}
	if got := digest.NewDigest(digest.SHA256, l.diff); got != want.DiffID {
		return nil, classify(ErrVerify, "it unpacks to %s, the configuration says %s", got, want.DiffID)
	}
	return l.chunks.Map(want.Digest), nil
}

func (l *baseLayer) Close() error {
	for _, done := range l.done {
		done()
	}
	return l.source.Close()
}

// wayError is what went wrong on the way of a layer's stored bytes, and so is no fault of what they hold: a connection that was cut ends them as
// early as a broken archive does.
type wayError struct{ err error }

func (e *wayError) Error() string { return e.err.Error() }
func (e *wayError) Unwrap() error { return e.err }

// readCounter counts, marks errors as those of the way, and ends with the context. It lives no longer than the call it belongs to.
type readCounter struct {
	ctx      context.Context
	r        io.Reader
	progress Progress
	stage    Stage
}

func (r *readCounter) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, &wayError{err}
	}
	n, err := r.r.Read(p)
	r.progress.Done(r.stage, int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		err = &wayError{err}
	}
	return n, err
}
