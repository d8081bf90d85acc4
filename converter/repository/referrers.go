package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxReferrers bounds how many referrers of one manifest are taken.
const maxReferrers = 4096

// Referrers returns the manifests that name d as their subject: signatures, attestations. A registry without the referrers
// API is asked for the fallback tag of the distribution specification.
func (r *Registry) Referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	list, api, err := r.listed(ctx, d)
	if err != nil || api {
		return list, err
	}
	return r.fallback(ctx, d)
}

// listed asks the referrers API, page by page; api is false if the registry has none.
func (r *Registry) listed(ctx context.Context, d digest.Digest) (list []ocispec.Descriptor, api bool, err error) {
	client, err := r.session(ctx, reading)
	if err != nil {
		return nil, false, err
	}
	for at := r.url("referrers/%s", d); at != nil; {
		var raw []byte
		var next *url.URL
		err = r.cfg.Retry.do(ctx, func(ctx context.Context) error {
			raw, next, err = r.referrersPage(ctx, client, at)
			return err
		})
		if err != nil || raw == nil {
			return nil, false, err
		}
		var index ocispec.Index
		if err := json.Unmarshal(raw, &index); err != nil {
			return nil, false, fmt.Errorf("referrers of %s: %w", d, err)
		}
		list = append(list, index.Manifests...)
		if len(list) > maxReferrers || next != nil && len(index.Manifests) == 0 {
			return nil, false, fmt.Errorf("referrers of %s: more than %d, or a list that does not end", d, maxReferrers)
		}
		at = next
	}
	return list, true, nil
}

// referrersPage returns one page and where the next one is. Without the API raw is nil.
func (r *Registry) referrersPage(ctx context.Context, client *http.Client, at *url.URL) (raw []byte, next *url.URL, err error) {
	ctx, w := newWatch(ctx, r.cfg.Retry.Idle)
	defer w.end()
	resp, err := r.send(ctx, client, call{method: http.MethodGet, url: at, header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}}})
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	err = wantStatus(resp, http.StatusOK, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusBadRequest)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, nil, err
	}
	if raw, err = io.ReadAll(io.LimitReader(resp.Body, maxManifest)); err != nil {
		return nil, nil, cause(ctx, err)
	}
	return raw, nextPage(resp), nil
}

// nextPage reads the Link header: <URL>; rel="next". Another host's pages are not asked for.
func nextPage(resp *http.Response) *url.URL {
	target, rest, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
	if !ok || !strings.Contains(rest, `rel="next"`) && !strings.Contains(rest, "rel=next") {
		return nil
	}
	next, err := url.Parse(target)
	if err != nil {
		return nil
	}
	if next = resp.Request.URL.ResolveReference(next); next.Host != resp.Request.URL.Host {
		return nil
	}
	return next
}

// fallback reads the list of referrers under the fallback tag.
func (r *Registry) fallback(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	_, raw, err := r.Manifest(ctx, FallbackTag(d))
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("referrers of %s under the fallback tag: %w", d, err)
	}
	if len(index.Manifests) > maxReferrers {
		return nil, fmt.Errorf("referrers of %s: %d under the fallback tag, more than %d", d, len(index.Manifests), maxReferrers)
	}
	return index.Manifests, nil
}

// FallbackTag returns the tag under which registries without the referrers API keep the list of a manifest's referrers.
func FallbackTag(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// Refer writes a manifest that names subject so that Referrers finds it: registries without the referrers API have it listed
// under the fallback tag too. Two clients that do so at the same time may lose one entry there, which the specification
// has no way to prevent.
func (r *Registry) Refer(ctx context.Context, subject digest.Digest, desc ocispec.Descriptor, raw []byte) error {
	if err := r.PutManifest(ctx, desc.Digest.String(), desc.MediaType, raw); err != nil {
		return err
	}
	if _, api, err := r.listed(ctx, subject); err != nil || api {
		return err
	}
	list, err := r.fallback(ctx, subject)
	if err != nil {
		return err
	}
	for _, d := range list {
		if d.Digest == desc.Digest {
			return nil
		}
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: append(list, desc),
	})
	if err != nil {
		return err
	}
	return r.PutManifest(ctx, FallbackTag(subject), ocispec.MediaTypeImageIndex, index)
}

// Referrers returns the manifests of the layout that name d as their subject.
func (l *Layout) Referrers(_ context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	index, err := l.index()
	if err != nil {
		return nil, err
	}
	var out []ocispec.Descriptor
	for _, candidate := range index.Manifests {
		if l.subject(candidate.Digest) == d {
			out = append(out, candidate)
		}
	}
	return out, nil
}

// subject returns what a manifest refers to, and nothing if it does not or is broken.
func (l *Layout) subject(d digest.Digest) digest.Digest {
	if d.Validate() != nil {
		return ""
	}
	file, err := os.Open(l.blobPath(d))
	if err != nil {
		return ""
	}
	defer file.Close()
	var m ocispec.Manifest
	if json.NewDecoder(io.LimitReader(file, maxManifest)).Decode(&m) != nil || m.Subject == nil {
		return ""
	}
	return m.Subject.Digest
}

// Refer writes a manifest that names a subject and lists it in index.json, where Referrers finds it.
func (l *Layout) Refer(ctx context.Context, _ digest.Digest, desc ocispec.Descriptor, raw []byte) error {
	if err := l.PutManifest(ctx, desc.Digest.String(), desc.MediaType, raw); err != nil {
		return err
	}
	return l.update(func(index *ocispec.Index) {
		for _, d := range index.Manifests {
			if d.Digest == desc.Digest {
				return
			}
		}
		index.Manifests = append(index.Manifests, desc)
	})
}
