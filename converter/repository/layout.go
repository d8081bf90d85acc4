package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// partialPrefix begins the names of files that are being written.
const partialPrefix = ".partial-"

// Layout is an OCI image layout: a folder with blobs by digest, and index.json, which holds the tags as annotations. Several
// processes may write to one at once.
type Layout struct {
	folder string
	swept  sync.Once
}

// NewLayout returns the layout in the folder. Nothing is read or made before the first call of a method.
func NewLayout(folder string) *Layout { return &Layout{folder: folder} }

func (l *Layout) blobPath(d digest.Digest) string {
	return filepath.Join(l.folder, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// make creates what every layout has.
func (l *Layout) make(algorithm digest.Algorithm) error {
	if err := os.MkdirAll(filepath.Join(l.folder, ocispec.ImageBlobsDir, algorithm.String()), 0o755); err != nil {
		return fmt.Errorf("%w: %w", ErrLayout, err)
	}
	mark := filepath.Join(l.folder, ocispec.ImageLayoutFile)
	if _, err := os.Stat(mark); err == nil {
		return nil
	}
	raw, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(mark, raw, 0o644); err != nil {
		return fmt.Errorf("%w: %w", ErrLayout, err)
	}
	return nil
}

// index reads index.json; a missing one is ErrNotFound.
func (l *Layout) index() (*ocispec.Index, error) {
	raw, err := os.ReadFile(filepath.Join(l.folder, ocispec.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w oci:%s: %w: it has no %s", ErrLayout, l.folder, ErrNotFound, ocispec.ImageIndexFile)
	}
	if err != nil {
		return nil, fmt.Errorf("%w oci:%s: %w", ErrLayout, l.folder, err)
	}
	index := &ocispec.Index{}
	if err := json.Unmarshal(raw, index); err != nil {
		return nil, fmt.Errorf("%w oci:%s: %s: %w", ErrLayout, l.folder, ocispec.ImageIndexFile, err)
	}
	return index, nil
}

// find returns the descriptor of a tag or digest; of nothing, that of the only image there is.
func (l *Layout) find(ref string) (ocispec.Descriptor, error) {
	if d, err := digest.Parse(ref); err == nil {
		info, err := os.Stat(l.blobPath(d))
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("manifest %s in oci:%s: %w", ref, l.folder, ErrNotFound)
		}
		return ocispec.Descriptor{Digest: d, Size: info.Size()}, nil
	}
	index, err := l.index()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var tags []string
	if ref == "" {
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool { return l.refers(d) || attached(d) })
	}
	if found := called(index, ref); ref != "" && len(found) > 0 {
		return found[0], nil
	}
	for _, d := range index.Manifests {
		if ref == "" && len(index.Manifests) == 1 {
			return d, nil
		}
		tags = append(tags, d.Annotations[ocispec.AnnotationRefName])
	}
	return ocispec.Descriptor{}, fmt.Errorf("tag %q in oci:%s: %w; tags there: %q", ref, l.folder, ErrNotFound, tags)
}

// refers reports whether a manifest without a tag is there only because it refers to another one.
func (l *Layout) refers(d ocispec.Descriptor) bool {
	return d.Annotations[ocispec.AnnotationRefName] == "" && l.subject(d.Digest) != ""
}

// attached reports whether a manifest has a tag by which signatures and the like are found that belong to another one: its digest, and what it is.
func attached(d ocispec.Descriptor) bool {
	name, _, _ := strings.Cut(d.Annotations[ocispec.AnnotationRefName], ".")
	algorithm, encoded, found := strings.Cut(name, "-")
	return found && digest.NewDigestFromEncoded(digest.Algorithm(algorithm), encoded).Validate() == nil
}

// called returns the manifests that have the tag or, if none has, those of the tools that write the whole reference as a tag.
func called(index *ocispec.Index, tag string) []ocispec.Descriptor {
	var out, longer []ocispec.Descriptor
	for _, d := range index.Manifests {
		switch name := d.Annotations[ocispec.AnnotationRefName]; {
		case name == tag:
			out = append(out, d)
		case tag != "" && strings.HasSuffix(name, ":"+tag):
			longer = append(longer, d)
		}
	}
	if len(out) == 0 {
		return longer
	}
	return out
}

// Manifest returns the manifest or index under a tag or digest; under "" the only one there is. Where several have the tag, or none has
// one, such as one for each platform, it is an index of these. Errors: ErrNotFound, ErrDigest, ErrLayout.
func (l *Layout) Manifest(_ context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	if desc, raw, ok := l.several(ref); ok {
		return desc, raw, nil
	}
	desc, err := l.find(ref)
	if err != nil {
		return desc, nil, err
	}
	file, err := os.Open(l.blobPath(desc.Digest))
	if err != nil {
		return desc, nil, fmt.Errorf("manifest %s in oci:%s: %w (%w)", desc.Digest, l.folder, ErrNotFound, err)
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxManifest+1))
	if err != nil {
		return desc, nil, fmt.Errorf("manifest %s in oci:%s: %w", desc.Digest, l.folder, err)
	}
	if desc.MediaType == "" {
		var head struct {
			MediaType string `json:"mediaType"`
		}
		_ = json.Unmarshal(raw, &head) // what is no JSON is found out by who wants to use it
		desc.MediaType = head.MediaType
	}
	return untagged(desc), raw, hasDigest(desc.Digest, raw)
}

// untagged leaves out the tag, which says where in this layout the manifest is, and nothing of it.
func untagged(d ocispec.Descriptor) ocispec.Descriptor {
	d.Annotations = maps.Clone(d.Annotations)
	if delete(d.Annotations, ocispec.AnnotationRefName); len(d.Annotations) == 0 {
		d.Annotations = nil
	}
	return d
}

// several returns an index of the manifests that a tag stands for, if it is more than one.
func (l *Layout) several(tag string) (ocispec.Descriptor, []byte, bool) {
	index, err := l.index()
	if err != nil {
		return ocispec.Descriptor{}, nil, false
	}
	index.Manifests = slices.DeleteFunc(called(index, tag), func(d ocispec.Descriptor) bool { return tag == "" && l.refers(d) })
	if len(index.Manifests) < 2 {
		return ocispec.Descriptor{}, nil, false
	}
	for i, d := range index.Manifests {
		index.Manifests[i] = untagged(d)
	}
	raw, err := json.Marshal(index)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw, err == nil
}

func hasDigest(want digest.Digest, raw []byte) error {
	if got := want.Algorithm().FromBytes(raw); got != want || len(raw) > maxManifest {
		return fmt.Errorf("manifest %s: %w: it has %s", want, ErrDigest, got)
	}
	return nil
}

// Has reports whether the blob is there whole. It is read for that: a disk may have spoiled it since it was written.
func (l *Layout) Has(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	return l.whole(ctx, d, func(int64) {})
}

// whole reports whether the blob is there and has its digest. One that cannot be read is none. progress is told of what is read, and takes
// it back if the blob is not whole.
func (l *Layout) whole(ctx context.Context, d ocispec.Descriptor, progress func(int64)) (bool, error) {
	info, err := os.Stat(l.blobPath(d.Digest))
	if err != nil || info.Size() != d.Size {
		return false, nil
	}
	r, err := l.Blob(ctx, d, 0)
	if err != nil {
		return false, nil
	}
	defer r.Close()
	sink := struct{ io.Writer }{io.Discard} // whose own ReadFrom reads less at once
	read, err := io.CopyBuffer(sink, &contextReader{ctx, r, progress}, make([]byte, 1<<20))
	if err == nil {
		return true, nil
	}
	progress(-read)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	return false, nil
}

// Blob returns the bytes of a blob from offset on. From offset 0 they end in an error of class ErrDigest instead of EOF if they are
// not those of the descriptor.
func (l *Layout) Blob(_ context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	file, err := os.Open(l.blobPath(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s in oci:%s: %w", d.Digest, l.folder, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("blob %s: %w", d.Digest, err), file.Close())
	}
	return verified(file, d, offset), nil
}

// Push brings a blob into the layout, unless it is there whole.
func (l *Layout) Push(ctx context.Context, b Blob) (Outcome, error) {
	if b.Progress == nil {
		b.Progress = func(int64) {}
	}
	if found, err := l.whole(ctx, b.Descriptor, b.Progress); err != nil || found {
		return Present, err
	}
	r, err := b.Open(ctx, 0)
	if err != nil {
		return "", err
	}
	defer r.Close()
	up, err := l.create(b.Digest.Algorithm())
	if err != nil {
		return "", err
	}
	defer up.Cancel(ctx)
	sent := newVerifier(io.NopCloser(&contextReader{ctx, r, b.Progress}), b.Descriptor)
	if _, err := io.Copy(up, sent); err != nil {
		return "", err
	}
	return Sent, up.Commit(ctx, b.Digest, b.Size)
}

// contextReader ends with the context. It lives no longer than the call it belongs to.
type contextReader struct {
	ctx      context.Context
	r        io.Reader
	progress func(int64)
}

func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.r.Read(p)
	c.progress(int64(n))
	return n, err
}

// Create begins a blob whose digest is not known yet.
func (l *Layout) Create(context.Context) (Upload, error) { return l.create(digest.SHA256) }

func (l *Layout) create(algorithm digest.Algorithm) (*partial, error) {
	if err := l.make(algorithm); err != nil {
		return nil, err
	}
	folder := filepath.Dir(l.blobPath(digest.NewDigestFromEncoded(algorithm, "x")))
	l.swept.Do(l.sweep)
	for {
		file, err := os.CreateTemp(folder, partialPrefix)
		if err == nil && unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && isNamed(file) {
			return &partial{file: file, layout: l}, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrLayout, err)
		}
		_ = file.Close() // somebody swept it in between
	}
}

// isNamed reports whether a file is still what its name stands for.
func isNamed(file *os.File) bool {
	mine, err := file.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(file.Name())
	return err == nil && os.SameFile(mine, now)
}

// sweep removes what processes that were killed have left of blobs on their way. Who writes one has it locked.
func (l *Layout) sweep() {
	left, _ := filepath.Glob(filepath.Join(l.folder, ocispec.ImageBlobsDir, "*", partialPrefix+"*")) // the pattern is none of ours if the folder's name spoils it
	for _, name := range left {
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && isNamed(file) {
			_ = os.Remove(name) // the next one tries again
		}
		_ = file.Close() // nothing was written
	}
}

// partial is a blob on its way into a layout.
type partial struct {
	file   *os.File // not embedded: its ReadFrom would pass by Write
	layout *Layout
	ended  bool
}

func (p *partial) Write(b []byte) (int, error) {
	n, err := p.file.Write(b)
	if err != nil {
		err = fmt.Errorf("%w oci:%s: %w", ErrLayout, p.layout.folder, err)
	}
	return n, err
}

func (p *partial) Commit(_ context.Context, d digest.Digest, size int64) error {
	info, err := p.file.Stat()
	if err == nil && info.Size() != size {
		err = fmt.Errorf("%d bytes of %d were written", info.Size(), size)
	}
	if err == nil {
		err = p.file.Chmod(0o644)
	}
	if err == nil { // before it is closed, and so swept by others
		err = os.Rename(p.file.Name(), p.layout.blobPath(d))
	}
	if err != nil {
		return fmt.Errorf("%w: blob %s: %w", ErrLayout, d, err)
	}
	p.ended = true
	if err := p.file.Close(); err != nil {
		return errors.Join(fmt.Errorf("%w: blob %s: %w", ErrLayout, d, err), os.Remove(p.layout.blobPath(d)))
	}
	return nil
}

func (p *partial) Cancel(context.Context) {
	if !p.ended {
		p.ended = true
		_ = p.file.Close()
		_ = os.Remove(p.file.Name())
	}
}

// PutManifest writes a manifest whose blobs are there, under its digest or a tag, which moves.
func (l *Layout) PutManifest(ctx context.Context, ref, mediaType string, raw []byte) error {
	d := digest.FromBytes(raw)
	if want, err := digest.Parse(ref); err == nil {
		d = want
	}
	up, err := l.create(d.Algorithm())
	if err != nil {
		return err
	}
	defer up.Cancel(ctx)
	if _, err := up.Write(raw); err != nil {
		return err
	}
	if err := up.Commit(ctx, d, int64(len(raw))); err != nil || ref == d.String() {
		return err
	}
	return l.tag(ref, ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))})
}

// tag gives a manifest a tag in index.json.
func (l *Layout) tag(tag string, desc ocispec.Descriptor) error {
	return l.update(func(index *ocispec.Index) {
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
			return d.Annotations[ocispec.AnnotationRefName] == tag && (tag != "" || !l.refers(d))
		})
		if tag != "" {
			desc.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
		}
		index.Manifests = append(index.Manifests, desc)
	})
}

// update changes index.json, which one process at a time does.
func (l *Layout) update(change func(*ocispec.Index)) error {
	lock, err := os.Open(l.folder)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLayout, err)
	}
	defer lock.Close() // which unlocks
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("%w: lock %s: %w", ErrLayout, l.folder, err)
	}
	index, err := l.index()
	if errors.Is(err, ErrNotFound) {
		index, err = &ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}, nil
	}
	if err != nil {
		return err
	}
	change(index)
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(l.folder, ocispec.ImageIndexFile), raw, 0o644); err != nil {
		return fmt.Errorf("%w: %w", ErrLayout, err)
	}
	return nil
}
