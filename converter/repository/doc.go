// Package repository reads and writes images where they are kept: in a repository of a registry, or in an OCI layout in a
// folder. Both are spoken to alike:
//
//	ParseReference  "REGISTRY/NAME:TAG" or "oci:FOLDER[:TAG]"
//	Registry        a repository of a registry, over the distribution API
//	Layout          a folder
//	Discard         takes everything, keeps nothing
//
// Everything that is read is verified: a manifest has the digest it was asked by, a blob ends in an error instead of EOF if it
// has another one. What is written becomes visible whole or not at all.
//
// A registry is a place where anything can go wrong, so that all of it is expected. A request that meets a broken connection,
// 408, 429 or 5xx is repeated with growing pauses, longer ones where Retry-After asks for them, and given up only when nothing has moved for
// Retry.Attempts tries. An upload goes on where the registry says it ended. A server that does not move for Retry.Idle is
// treated as one whose connection broke.
//
// The methods of Registry, Layout and Discard may be called concurrently, those of an Upload not.
package repository

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

var (
	// ErrNotFound is the class of manifests, blobs and layouts that are not there.
	ErrNotFound = errors.New("not found")
	// ErrDigest is the class of bytes that have not the digest they should.
	ErrDigest = errors.New("other bytes than its digest says")
	// ErrReference is the class of references that name nothing.
	ErrReference = errors.New("reference")
	// ErrLayout is the class of layouts that are no layouts, or contradict themselves.
	ErrLayout = errors.New("OCI layout")
	// ErrLost is the class of uploads that the registry has forgotten and that cannot begin anew.
	ErrLost = errors.New("upload lost")
)

const (
	// maxManifest bounds a manifest in bytes; the distribution specification asks registries for 4 MiB.
	maxManifest = 16 << 20
	layoutMark  = "oci:"
)

// Reference names an image or a place for one.
type Reference struct {
	Registry name.Repository // unless it is a layout
	Folder   string          // of a layout, else empty
	// Tag or Digest, or neither: the registry's default tag is never assumed.
	Tag    string
	Digest digest.Digest
}

// IsLayout reports whether the reference is to a folder.
func (r Reference) IsLayout() bool { return r.Folder != "" }

// Name is what is asked for: the digest, or else the tag.
func (r Reference) Name() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

func (r Reference) String() string {
	place := layoutMark + r.Folder
	if !r.IsLayout() {
		place = r.Registry.Name()
	}
	switch {
	case r.Digest != "":
		return place + "@" + r.Digest.String()
	case r.Tag != "":
		return place + ":" + r.Tag
	}
	return place
}

// ParseReference reads REGISTRY/NAME[:TAG][@DIGEST] or oci:FOLDER[:TAG][@DIGEST]. The registry has to be written out: a name
// without one is Docker Hub's to some tools and a mistake to others. The errors are of class ErrReference.
func ParseReference(s string, opts ...name.Option) (Reference, error) {
	rest, d, err := cutDigest(s)
	if err != nil {
		return Reference{}, err
	}
	if folder, ok := strings.CutPrefix(rest, layoutMark); ok {
		r := Reference{Folder: folder, Digest: d}
		if i := strings.LastIndexByte(folder, ':'); i > strings.LastIndexByte(folder, filepath.Separator) {
			r.Folder, r.Tag = folder[:i], folder[i+1:]
		}
		if r.Folder == "" || strings.HasSuffix(folder, ":") {
			return Reference{}, fmt.Errorf("%w %q: no folder, or no tag behind the colon; want oci:FOLDER[:TAG]", ErrReference, s)
		}
		return r, nil
	}
	if scheme, _, ok := strings.Cut(rest, "://"); ok {
		return Reference{}, fmt.Errorf("%w %s: leave out %s://; registries that speak plain HTTP want --plain-http", ErrReference, s, scheme)
	}
	host, path, _ := strings.Cut(rest, "/")
	if path == "" || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return Reference{}, fmt.Errorf("%w %s names no registry: want REGISTRY/NAME:TAG, such as registry.example.com/ml/llama:v1", ErrReference, s)
	}
	r := Reference{Digest: d}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		if _, err := name.NewTag(rest, append(opts, name.StrictValidation)...); err != nil {
			return Reference{}, fmt.Errorf("%w %q: %w", ErrReference, s, err)
		}
		rest, r.Tag = rest[:i], rest[i+1:]
	}
	if r.Registry, err = name.NewRepository(rest, opts...); err != nil {
		return Reference{}, fmt.Errorf("%w %q: %w", ErrReference, s, err)
	}
	return r, nil
}

func cutDigest(s string) (rest string, d digest.Digest, err error) {
	rest, raw, ok := strings.Cut(s, "@")
	if !ok {
		return s, "", nil
	}
	if d, err = digest.Parse(raw); err != nil {
		return "", "", fmt.Errorf("%w %q: digest: %w", ErrReference, s, err)
	}
	return rest, d, nil
}
