package converter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/repository"
	"golang.org/x/sync/errgroup"
)

const (
	// maxManifestBytes bounds all manifests of a graph, which are held in memory.
	maxManifestBytes = 256 << 20
	// maxIndexDepth bounds indexes within indexes, and referrers of referrers.
	maxIndexDepth = 8
	// maxGraphBlobs bounds how many blobs one copy moves.
	maxGraphBlobs = 1 << 18
)

// graph is all that an image is made of: manifests, the blobs they name and what refers to them.
type graph struct {
	root  *graphManifest
	order []*graphManifest // each behind those it names; referrers behind what they refer to
	blobs []ocispec.Descriptor
	// foreign are layers that may not be distributed and lie behind a URL.
	foreign []ocispec.Descriptor
	size    int64 // of blobs
}

// graphManifest is a manifest of any kind.
type graphManifest struct {
	ocispec.Descriptor
	raw     []byte
	subject digest.Digest // what it refers to, if it does
	tag     string        // under which it was found, if it was by tag
}

// anyManifest is what is read of a manifest of any kind.
type anyManifest struct {
	ArtifactType string               `json:"artifactType"`
	Annotations  map[string]string    `json:"annotations"`
	Config       *ocispec.Descriptor  `json:"config"`
	Layers       []ocispec.Descriptor `json:"layers"`
	Blobs        []ocispec.Descriptor `json:"blobs"` // of the artifact manifests of release candidates
	Manifests    []ocispec.Descriptor `json:"manifests"`
	Subject      *ocispec.Descriptor  `json:"subject"`
}

// walker reads a graph. Whatever the other side says, it takes each manifest once, and no more than maxManifests.
type walker struct {
	from  store
	name  string
	graph graph
	seen  map[digest.Digest]*graphManifest
	tags  map[string]bool // of cosign
	blobs map[digest.Digest]int64
	held  int64 // bytes of manifests
}

// readGraph reads the manifests below a reference and, if wanted, what refers to them.
func readGraph(ctx context.Context, from store, name, ref string, referrers bool) (*graph, error) {
	w := &walker{
		from: from, name: name,
		seen: map[digest.Digest]*graphManifest{}, tags: map[string]bool{}, blobs: map[digest.Digest]int64{},
	}
	desc, raw, err := from.Manifest(ctx, ref)
	if errors.Is(err, repository.ErrNotFound) {
		return nil, classify(ErrSource, "image %s does not exist: check name and tag (%w)", name, err)
	}
	if err != nil {
		return nil, registryError("read "+name, name, err)
	}
	w.graph.root = &graphManifest{Descriptor: desc, raw: raw}
	if err := w.take(ctx, w.graph.root, 0); err != nil {
		return nil, err
	}
	for depth, first := 0, 0; referrers && first < len(w.graph.order); depth++ {
		if depth > maxIndexDepth {
			return nil, classify(ErrSource, "%s: referrers of referrers, %d deep", name, depth)
		}
		wave := w.graph.order[first:]
		first = len(w.graph.order)
		if err := w.referrers(ctx, wave, depth); err != nil {
			return nil, err
		}
	}
	return &w.graph, nil
}

// take notes a manifest, after all that it names.
func (w *walker) take(ctx context.Context, m *graphManifest, depth int) error {
	if w.seen[m.Digest] != nil {
		return nil
	}
	w.seen[m.Digest] = m
	if len(w.seen) > maxManifests {
		return classify(ErrSource, "%s: more than %d manifests", w.name, maxManifests)
	}
	if w.held += int64(len(m.raw)); w.held > maxManifestBytes {
		return classify(ErrSource, "%s: manifests of more than %d bytes in all", w.name, maxManifestBytes)
	}
	if depth > maxIndexDepth {
		return classify(ErrSource, "%s: indexes within indexes, %d deep", w.name, depth)
	}
	parts, err := w.parse(m)
	if err != nil {
		return err
	}
	blobs := append(parts.Layers, parts.Blobs...)
	if parts.Config != nil {
		blobs = append(blobs, *parts.Config)
	}
	for _, d := range parts.Manifests {
		if !isManifest(d.MediaType) { // a cache of BuildKit lists blobs
			blobs = append(blobs, d)
			continue
		}
		child, err := w.fetch(ctx, d)
		if err != nil {
			return err
		}
		if err := w.take(ctx, child, depth+1); err != nil {
			return err
		}
	}
	for _, d := range blobs {
		if err := w.blob(d); err != nil {
			return err
		}
	}
	w.graph.order = append(w.graph.order, m)
	return nil
}

// parse reads a manifest and completes what its descriptor says, as those who list referrers want it.
func (w *walker) parse(m *graphManifest) (*anyManifest, error) {
	if strings.HasPrefix(m.MediaType, "application/vnd.docker.distribution.manifest.v1") {
		return nil, classify(ErrSource, "%s: manifest %s is of Docker's schema 1, whose copies have other digests; push it again with a newer tool", w.name, m.Digest)
	}
	parts := &anyManifest{}
	if err := json.Unmarshal(m.raw, parts); err != nil {
		return nil, classify(ErrSource, "%s: manifest %s: %w", w.name, m.Digest, err)
	}
	if len(parts.Manifests) > maxManifests {
		return nil, classify(ErrSource, "%s: index %s of %d manifests, at most %d are taken", w.name, m.Digest, len(parts.Manifests), maxManifests)
	}
	if m.MediaType == "" {
		m.MediaType = ocispec.MediaTypeImageManifest
		if parts.Manifests != nil {
			m.MediaType = ocispec.MediaTypeImageIndex
		}
	}
	if parts.Subject == nil || parts.Subject.Digest.Validate() != nil {
		return parts, nil
	}
	m.subject = parts.Subject.Digest
	if m.ArtifactType = parts.ArtifactType; m.ArtifactType == "" && parts.Config != nil {
		m.ArtifactType = parts.Config.MediaType
	}
	m.Annotations = parts.Annotations
	return parts, nil
}

// isManifest tells manifests from blobs. What says nothing of itself is taken for a manifest.
func isManifest(mediaType string) bool {
	return mediaType == "" || isIndex(mediaType) || mediaType == ocispec.MediaTypeImageManifest ||
		strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.") ||
		mediaType == "application/vnd.oci.artifact.manifest.v1+json"
}

// fetch reads a manifest that another one names, unless it was taken before.
func (w *walker) fetch(ctx context.Context, d ocispec.Descriptor) (*graphManifest, error) {
	m := &graphManifest{Descriptor: d}
	if w.seen[d.Digest] != nil {
		return m, nil
	}
	if err := checkDescriptor(w.name, d); err != nil {
		return nil, err
	}
	desc, raw, err := w.from.Manifest(ctx, d.Digest.String())
	if errors.Is(err, repository.ErrNotFound) {
		return nil, classify(ErrSource, "%s names manifest %s, which is not there", w.name, d.Digest)
	}
	if err != nil {
		return nil, registryError("read manifest "+d.Digest.String(), w.name, err)
	}
	if int64(len(raw)) != d.Size {
		return nil, classify(ErrVerify, "%s names manifest %s with %d bytes, it has %d", w.name, d.Digest, d.Size, len(raw))
	}
	if m.MediaType == "" {
		m.MediaType = desc.MediaType
	}
	m.raw = raw
	return m, nil
}

// blob notes a blob, once.
func (w *walker) blob(d ocispec.Descriptor) error {
	if err := checkDescriptor(w.name, d); err != nil {
		return err
	}
	if size, ok := w.blobs[d.Digest]; ok {
		if size != d.Size {
			return classify(ErrVerify, "%s names blob %s once with %d bytes and once with %d", w.name, d.Digest, size, d.Size)
		}
		return nil
	}
	w.blobs[d.Digest] = d.Size
	if len(w.blobs) > maxGraphBlobs {
		return classify(ErrSource, "%s: more than %d blobs", w.name, maxGraphBlobs)
	}
	if len(d.URLs) > 0 && (strings.Contains(d.MediaType, "nondistributable") || strings.Contains(d.MediaType, ".foreign.")) {
		w.graph.foreign = append(w.graph.foreign, d)
		return nil
	}
	if w.graph.size += d.Size; w.graph.size < 0 {
		return classify(ErrVerify, "%s: its blobs have more bytes than can be counted", w.name)
	}
	w.graph.blobs = append(w.graph.blobs, d)
	return nil
}

// cosignSuffixes are the tags under which cosign keeps what belongs to a manifest.
var cosignSuffixes = []string{".sig", ".att", ".sbom"}

// referrers takes what refers to the manifests of a wave. Asking is done for several at once.
func (w *walker) referrers(ctx context.Context, wave []*graphManifest, depth int) error {
	found := make([][]*graphManifest, len(wave))
	var group errgroup.Group
	group.SetLimit(asked)
	var mu sync.Mutex
	var failed error
	for i, m := range wave {
		group.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			list, err := w.referring(ctx, m.Digest)
			mu.Lock()
			defer mu.Unlock()
			if found[i] = list; err != nil && failed == nil {
				failed = registryError("list what refers to "+m.Digest.String()+" (--no-referrers leaves it out)", w.name, err)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return failed
	}
	for _, list := range found {
		for _, m := range list {
			if err := w.referrer(ctx, m, depth); err != nil {
				return err
			}
		}
	}
	return nil
}

// referrer takes a manifest that refers to another one.
func (w *walker) referrer(ctx context.Context, m *graphManifest, depth int) error {
	switch {
	case m.tag != "" && w.tags[m.tag]:
		return nil
	case m.tag != "":
		w.tags[m.tag] = true
		if known := w.seen[m.Digest]; known != nil { // it has a tag now, all the same
			known.tag = m.tag
		}
		return w.take(ctx, m, depth)
	}
	fetched, err := w.fetch(ctx, m.Descriptor)
	if err != nil {
		return fmt.Errorf("%w; leave referrers out with --no-referrers", err)
	}
	return w.take(ctx, fetched, depth)
}

// referring lists what refers to a manifest: by subject, and by cosign's tags.
func (w *walker) referring(ctx context.Context, d digest.Digest) ([]*graphManifest, error) {
	list, err := w.from.Referrers(ctx, d)
	if err != nil {
		return nil, err
	}
	if len(list) > maxManifests {
		return nil, classify(ErrSource, "%s: %d referrers of %s, at most %d are taken", w.name, len(list), d, maxManifests)
	}
	var out []*graphManifest
	for _, r := range list {
		out = append(out, &graphManifest{Descriptor: r})
	}
	for _, suffix := range cosignSuffixes {
		tag := repository.FallbackTag(d) + suffix
		desc, raw, err := w.from.Manifest(ctx, tag)
		if errors.Is(err, repository.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, &graphManifest{Descriptor: desc, raw: raw, tag: tag})
	}
	return out, nil
}
