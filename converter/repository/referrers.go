package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Referrers returns the manifests that name d as their subject: signatures, attestations. A registry without the referrers
// API is asked for the fallback tag of the distribution specification.
func (r *Registry) Referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	client, err := r.session(ctx, reading)
	if err != nil {
		return nil, err
	}
	var raw []byte
	err = r.cfg.Retry.do(ctx, func(ctx context.Context) error {
		ctx, w := newWatch(ctx, r.cfg.Retry.Idle)
		defer w.end()
		resp, err := r.send(ctx, client, call{method: http.MethodGet, url: r.url("referrers/%s", d), header: http.Header{
			"Accept": {ocispec.MediaTypeImageIndex},
		}})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		raw = nil
		if err := wantStatus(resp, http.StatusOK, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusBadRequest); err != nil || resp.StatusCode != http.StatusOK {
			return err
		}
		raw, err = io.ReadAll(io.LimitReader(resp.Body, maxManifest))
		return cause(ctx, err)
	})
	if err != nil {
		return nil, err
	}
	if raw == nil {
		_, raw, err = r.Manifest(ctx, FallbackTag(d))
		if errors.Is(err, ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("referrers of %s: %w", d, err)
	}
	return index.Manifests, nil
}

// FallbackTag returns the tag under which registries without the referrers API keep the list of a manifest's referrers.
func FallbackTag(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// Referrers returns the manifests of the layout that name d as their subject.
func (l *Layout) Referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	index, err := l.index()
	if err != nil {
		return nil, err
	}
	var out []ocispec.Descriptor
	for _, candidate := range index.Manifests {
		_, raw, err := l.Manifest(ctx, candidate.Digest.String())
		if err != nil {
			continue // what is broken refers to nothing
		}
		var m ocispec.Manifest
		if json.Unmarshal(raw, &m) == nil && m.Subject != nil && m.Subject.Digest == d {
			out = append(out, candidate)
		}
	}
	return out, nil
}
