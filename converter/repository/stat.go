package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"

	"github.com/opencontainers/go-digest"
)

// Stat returns the size of a blob in bytes without reading it, -1 if the registry does not say. One that is not there is
// ErrNotFound.
func (r *Registry) Stat(ctx context.Context, d digest.Digest) (size int64, err error) {
	client, err := r.session(ctx, reading)
	if err != nil {
		return 0, err
	}
	return r.stat(ctx, client, d)
}

func (r *Registry) stat(ctx context.Context, client *http.Client, d digest.Digest) (size int64, err error) {
	err = r.cfg.Retry.do(ctx, func(ctx context.Context) error {
		ctx, w := newWatch(ctx, r.cfg.Retry.Idle)
		defer w.end()
		resp, err := r.send(ctx, client, call{method: http.MethodHead, url: r.url("blobs/%s", d)})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			return fmt.Errorf("blob %s: %w", d, ErrNotFound)
		}
		size = resp.ContentLength
		return wantStatus(resp, http.StatusOK)
	})
	return size, err
}

// Stat returns the size of a blob in bytes. One that is not there is ErrNotFound.
func (l *Layout) Stat(_ context.Context, d digest.Digest) (int64, error) {
	info, err := os.Stat(l.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("blob %s in oci:%s: %w", d, l.folder, ErrNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("blob %s: %w", d, err)
	}
	return info.Size(), nil
}
