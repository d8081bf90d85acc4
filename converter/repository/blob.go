package repository

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blobReader reads a blob, asking again for the rest when the connection breaks. It lives no longer than the call its context
// belongs to.
type blobReader struct {
	ctx    context.Context
	r      *Registry
	client *http.Client
	desc   ocispec.Descriptor
	tries  tries

	offset int64
	body   io.ReadCloser
	watch  *watch
	rctx   context.Context // of the request under way
}

func (b *blobReader) Read(p []byte) (int, error) {
	for {
		if b.body == nil {
			return 0, io.ErrClosedPipe
		}
		n, err := b.body.Read(p)
		if n > 0 {
			b.watch.alive()
			b.offset += int64(n)
			b.tries.moved()
			return n, nil
		}
		if err == nil || errors.Is(err, io.EOF) && b.offset >= b.desc.Size {
			return 0, err
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err := b.reopen(cause(b.rctx, err)); err != nil {
			return 0, err
		}
	}
}

// reopen asks for the bytes from offset on, after err if it is not nil.
func (b *blobReader) reopen(err error) error {
	for {
		if err != nil {
			_ = b.Close() // of what has failed
			if err := b.tries.again(b.ctx, err); err != nil {
				return fmt.Errorf("blob %s: %w", b.desc.Digest, err)
			}
		}
		if err = b.open(); err == nil {
			return nil
		}
	}
}

func (b *blobReader) open() error {
	b.rctx, b.watch = newWatch(b.ctx, b.r.cfg.Retry.Idle)
	header := http.Header{}
	if b.offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.offset))
	}
	resp, err := b.r.send(b.rctx, b.client, call{method: http.MethodGet, url: b.r.url("blobs/%s", b.desc.Digest), header: header})
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusNotFound {
		defer resp.Body.Close()
		return fmt.Errorf("%w (%w)", ErrNotFound, wantStatus(resp, http.StatusOK))
	}
	if err := wantStatus(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return err
	}
	b.body = resp.Body
	if resp.StatusCode == http.StatusOK && b.offset > 0 { // a registry without ranges
		if _, err := io.CopyN(io.Discard, aliveReader{resp.Body, b.watch}, b.offset); err != nil {
			return cause(b.rctx, err)
		}
	}
	return nil
}

// aliveReader tells a watch of every byte.
type aliveReader struct {
	r     io.Reader
	watch *watch
}

func (a aliveReader) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if n > 0 {
		a.watch.alive()
	}
	return n, err
}

func (b *blobReader) Close() error {
	if b.watch != nil {
		b.watch.end()
	}
	if b.body == nil {
		return nil
	}
	body := b.body
	b.body = nil
	return body.Close()
}

// verified returns r with what can be verified of it.
func verified(r io.ReadCloser, want ocispec.Descriptor, offset int64) io.ReadCloser {
	if offset > 0 {
		return r
	}
	return newVerifier(r, want)
}

// verifier compares a blob with its descriptor while it is read.
type verifier struct {
	r    io.ReadCloser
	want ocispec.Descriptor
	sum  hash.Hash
	read int64
	err  error
}

func newVerifier(r io.ReadCloser, want ocispec.Descriptor) *verifier {
	return &verifier{r: r, want: want, sum: want.Digest.Algorithm().Hash()}
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	v.sum.Write(p[:n])
	if v.read += int64(n); v.read > v.want.Size {
		n, err = 0, fmt.Errorf("blob %s: %w: it has more than its %d bytes", v.want.Digest, ErrDigest, v.want.Size)
	}
	if errors.Is(err, io.EOF) {
		if got := digest.NewDigest(v.want.Digest.Algorithm(), v.sum); v.read != v.want.Size || got != v.want.Digest {
			err = fmt.Errorf("blob %s of %d bytes: %w: there are %d bytes with digest %s", v.want.Digest, v.want.Size, ErrDigest, v.read, got)
		}
	}
	v.err = err
	return n, err
}

func (v *verifier) Close() error { return v.r.Close() }
