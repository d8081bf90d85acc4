// Package source reads what an image is made of: a model, wherever it is, and the base image with the framework.
//
// A model is never stored on the way: what is read is passed on. There are two kinds. A listed model (folder, file, hub,
// bucket, zip archive, artifact of raw layers) tells all its files at once, and each can be opened any time, at any offset and
// concurrently. A stream (tar, compressed tar, image) is read once, in its order.
//
//	reference → Open → Model ─┬─ Files → File.Open: bytes from an offset on, or an error
//	                          └─ Each: one file after the other
//
// Filters, names, links and order are the same for all sources: see names and collector. Remote bytes pass a resumer, which
// goes on after cut connections and refuses content that changed, and a verifier, which compares what the source promises.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/opencontainers/go-digest"
)

// File is one name in a model.
type File struct {
	Path       string // slash-separated, relative to the model
	Mode       fs.FileMode
	Executable bool   // by anyone
	Link       string // target of a symbolic link that is kept
	Size       int64  // of a regular file in bytes
	// Digest is the sha256 the source promises for the content; "" if it does not.
	Digest digest.Digest

	real string // where the content is, if it is on a disk
	seen stamp  // of real, when it was listed
	open func(ctx context.Context, offset int64) (io.ReadCloser, error)
	url  func(ctx context.Context) (string, error)
}

// URL returns a URL that has the file's content, for others to read: of a hub's file, to be asked with the hub's token if there is one; of an
// object, signed for some hours. It is empty for files of other sources.
func (f *File) URL(ctx context.Context) (string, error) {
	if f.url == nil {
		return "", nil
	}
	return f.url(ctx)
}

// Open returns the content of a regular file of a listed model from an offset on; ctx bounds the reading too. Files may be
// opened concurrently. Content from offset 0 that comes from elsewhere is verified: if it has not the size and the checksum
// its source promises, the reader ends with an error instead of io.EOF. So does, with ErrChanged, that of a file on disk which was
// changed since it was listed.
func (f *File) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	open := f.Opener()
	if open == nil {
		return nil, fmt.Errorf("%s can be read only once, in the order of its source", f.Path)
	}
	return open(ctx, offset)
}

// Opener returns what Open does as a function that holds no more than it needs of the file; nil if it can be read only once. Of models
// with very many files the listing can go then.
func (f *File) Opener() func(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if f.open != nil || f.real == "" {
		return f.open
	}
	path, seen := f.real, f.seen
	return func(_ context.Context, offset int64) (io.ReadCloser, error) { return openLocalFile(path, seen, offset) }
}

// Visit gets one file. content is valid until it returns, and nil for folders and links; what it leaves is skipped.
type Visit func(f *File, content io.Reader) error

// Model is a model that was found. Close it when it is no longer read.
type Model struct {
	Name     string // what the source calls it; "" for standard input
	Ref      string // as it was given, without what is secret in it
	Revision string // what a moving name was resolved to: commit, digest of a manifest; "" if there is none
	Local    bool   // to read a file again costs no transfer
	Once     bool   // Each can be called only once, as for standard input; any other stream begins anew
	// Files are all files in byte order of the path, parents first. They are nil if the model is a stream, which only Each reads.
	Files []File

	each    func(ctx context.Context, visit Visit) error
	close   func() error
	session *session
}

// Each reads all files, each once: a listed model in its order, a stream as it comes. A stream's folders that hold something
// are implied, those that hold nothing come last. Some faults of a stream are known only at its end, so
// nothing is to be believed before Each has returned nil.
func (m *Model) Each(ctx context.Context, visit Visit) error {
	if m.each != nil {
		return m.each(ctx, visit)
	}
	for i := range m.Files {
		if err := visitFile(ctx, &m.Files[i], visit); err != nil {
			return err
		}
	}
	return nil
}

func visitFile(ctx context.Context, f *File, visit Visit) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !f.Mode.IsRegular() {
		return visit(f, nil)
	}
	r, err := f.Open(ctx, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	return visit(f, r)
}

// Close ends what the model holds open. Readers of its files are closed before.
func (m *Model) Close() error {
	if m.session != nil {
		m.session.hangUp()
	}
	if m.close == nil {
		return nil
	}
	return m.close()
}

// once makes a stream refuse to be read again.
func once(each func(context.Context, Visit) error) func(context.Context, Visit) error {
	used := false
	return func(ctx context.Context, visit Visit) error {
		if used {
			return errors.New("the model is a stream and was read already")
		}
		used = true
		return each(ctx, visit)
	}
}

// Open finds the model. ref is a folder, a file, an archive (.tar, .tar.gz, .tgz, .tar.zst, .zip), "-" for a tar on standard
// input, hf://ORGANISATION/NAME[@REVISION], s3://BUCKET/PREFIX, the URL of a file or archive, or oci://REFERENCE.
func Open(ctx context.Context, ref string, cfg Config) (*Model, error) {
	s, err := newSession(cfg)
	if err != nil {
		return nil, err
	}
	m, err := s.open(ctx, ref)
	if err != nil {
		s.hangUp()
		return nil, err
	}
	if m.Ref == "" {
		m.Ref = ref
	}
	m.session = s
	return m, nil
}

func (s *session) open(ctx context.Context, ref string) (*Model, error) {
	scheme, rest, ok := strings.Cut(ref, "://")
	switch {
	case ref == "":
		return nil, fmt.Errorf("%w: it is not named", ErrModel)
	case ref == "-":
		return s.openStdin()
	case !ok:
		return s.openLocal(ref)
	}
	switch scheme {
	case "file":
		return s.openLocal(rest)
	case "hf":
		return s.openHub(ctx, ref)
	case "s3":
		return s.openS3(ctx, ref)
	case "http", "https":
		if advice := hubSpelling(printable(ref)); advice != "" {
			return nil, fmt.Errorf("%w %s: it is a page; %s", ErrModel, printable(ref), advice)
		}
		return s.openWeb(ctx, ref)
	case "oci":
		return s.openOCI(ctx, ref)
	}
	if advice := spelling(ref); advice != "" {
		return nil, fmt.Errorf("%w %s: %s", ErrModel, printable(ref), advice)
	}
	return nil, fmt.Errorf("%w %s: no such kind of source; there are FOLDER, FILE, -, hf://, s3://, https://, http:// and oci://",
		ErrModel, printable(ref))
}

// Walk lists the folder with all below it; see Open.
func Walk(dir string) ([]File, error) {
	s, err := newSession(Config{})
	if err != nil {
		return nil, err
	}
	return s.walk(dir)
}
