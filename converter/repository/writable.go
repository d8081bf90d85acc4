package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// noUpload names an upload that no registry has.
const noUpload = "00000000-0000-0000-0000-000000000000"

// Writable asks whether blobs may be written, with nothing written: it goes on with an upload that there is not. Who may write is told that
// there is none, who may not that he may not; to ask for a token says nothing, since one is also given to who may only read. To open an upload
// and cancel it would leave files at registries of the distribution project. Errors are those of the registry.
func (r *Registry) Writable(ctx context.Context) error {
	client, err := r.session(ctx, writing)
	if err != nil {
		return err
	}
	return r.cfg.Retry.do(ctx, func(ctx context.Context) error {
		ctx, w := newWatch(ctx, r.cfg.Retry.Idle)
		defer w.end()
		resp, err := r.send(ctx, client, call{
			method: http.MethodPatch, url: r.url("blobs/uploads/%s", noUpload), header: http.Header{"Content-Type": {"application/octet-stream"}},
		})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if err := wantStatus(resp, http.StatusAccepted); refuses(err) {
			return err
		}
		return nil
	})
}

// refuses tells who may not write, or not now, from who is told that there is no such upload, in whatever words.
func refuses(err error) bool {
	if _, later := temporary(err); err == nil || later {
		return err != nil
	}
	switch status(err) {
	case 0, http.StatusUnauthorized, http.StatusForbidden, http.StatusMethodNotAllowed:
		return true
	}
	answer, ok := errors.AsType[*transport.Error](err)
	return ok && slices.ContainsFunc(answer.Errors, func(d transport.Diagnostic) bool {
		switch d.Code {
		case transport.NameUnknownErrorCode, transport.NameInvalidErrorCode, transport.DeniedErrorCode, transport.UnauthorizedErrorCode,
			transport.UnsupportedErrorCode, "NOT_FOUND": // as Harbor says of a project
			return true
		}
		return false
	})
}

// Writable tells whether the layout is one, or can be made, and whether its folders may be written, with nothing written. Errors are of class
// ErrLayout.
func (l *Layout) Writable(context.Context) error {
	if _, err := l.index(); err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, syscall.ENOTDIR) {
		return err
	}
	for _, folder := range []string{l.folder, filepath.Join(l.folder, ocispec.ImageBlobsDir, digest.SHA256.String())} {
		if err := writable(folder); err != nil {
			return fmt.Errorf("%w oci:%s: %w", ErrLayout, l.folder, err)
		}
	}
	return nil
}

// writable asks whether this process may write to a folder or, if it is not there, make it.
func writable(folder string) error {
	info, err := os.Stat(folder)
	if parent := filepath.Dir(folder); parent != folder && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)) {
		return writable(parent)
	}
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is no folder", folder)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, folder, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "write to", Path: folder, Err: err}
	}
	return nil
}
