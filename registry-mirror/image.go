package mirror

import (
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/registry-mirror/upstream"
)

// Image is what manifests that have passed the mirror tell of an image.
type Image struct {
	Registry, Repository string
	// Layers are those of the manifest that was asked for.
	Layers []ocispec.Descriptor
	// Nydus are the layers of the Nydus variant: those of the manifest itself if it is one, else of the one beside it. Empty when
	// there is none.
	Nydus []ocispec.Descriptor
	// Annotations are those of the manifest with the layers in Nydus.
	Annotations map[string]string
}

// Bootstrap returns the layer with the bootstrap and the chunk maps; nil when there is no Nydus variant.
func (i Image) Bootstrap() *ocispec.Descriptor { return findBootstrap(i.Nydus) }

// Blob returns the reference of one of the image's layers.
func (i Image) Blob(layer ocispec.Descriptor) BlobRef {
	ref := BlobRef{Registry: i.Registry, Repository: i.Repository, Digest: layer.Digest, Size: layer.Size}
	if b := i.Bootstrap(); b != nil && b.Digest != layer.Digest {
		ref.MapLayer, ref.MapSize = b.Digest, b.Size
	}
	return ref
}

// Image returns what is known of an image by the digest of its manifest, plain or Nydus, in a repository. It asks nobody: an image whose
// manifests did not pass is ErrUnknown, and so is one with layers that are not in its registry.
func (h *Handler) Image(registry, repository string, manifest digest.Digest) (Image, error) {
	at := request{Ref: upstream.Ref{Registry: registry, Repository: repository}}
	img := Image{Registry: registry, Repository: repository}
	doc, err := h.known(at, manifest)
	if err != nil {
		return Image{}, err
	}
	img.Layers = doc.Layers
	var beside digest.Digest
	switch {
	case findBootstrap(doc.Layers) != nil:
	case h.records.get(bucketSiblings, blobKey(at, manifest), &beside):
		if doc, err = h.known(at, beside); err != nil {
			return Image{}, err
		}
	default:
		return img, nil
	}
	img.Nydus, img.Annotations = doc.Layers, doc.Annotations
	return img, nil
}

// known reads a manifest that is known to be in the repository.
func (h *Handler) known(at request, manifest digest.Digest) (doc document, err error) {
	var tag tagRecord
	var rec manifestRecord
	if !h.records.get(bucketTags, tagKey(at.Registry, at.Repository, manifest.String()), &tag) ||
		!h.records.get(bucketManifests, manifest.String(), &rec) {
		return doc, fmt.Errorf("manifest %s of %s/%s: %w", manifest, at.Registry, at.Repository, ErrUnknown)
	}
	if doc, err = parse(rec.MediaType, rec.Body); err != nil {
		return doc, fmt.Errorf("manifest %s of %s/%s: %w", manifest, at.Registry, at.Repository, err)
	}
	if slices.ContainsFunc(doc.Layers, isForeign) {
		return doc, fmt.Errorf("layers of manifest %s of %s/%s, which are elsewhere: %w", manifest, at.Registry, at.Repository, ErrUnknown)
	}
	return doc, nil
}

// maxCallers bounds the repositories whose last caller is remembered.
const maxCallers = 1024

// callers remembers, in memory only, with what the last caller read each repository.
type callers struct {
	mu   sync.Mutex        // guards last
	last map[string]string // by registry/repository
}

func (c *callers) note(registry, repository, authorization string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := registry + "/" + repository
	if c.last == nil {
		c.last = map[string]string{}
	}
	if _, known := c.last[key]; !known && len(c.last) >= maxCallers {
		for other := range c.last { // any
			delete(c.last, other)
			break
		}
	}
	c.last[key] = authorization
}

// Refused forgets credentials that the origin does not accept any more, such as a token that has run out.
func (h *Handler) Refused(registry, repository, authorization string) {
	h.callers.mu.Lock()
	defer h.callers.mu.Unlock()
	if key := registry + "/" + repository; h.callers.last[key] == authorization {
		delete(h.callers.last, key)
	}
}

// Authorization returns the Authorization header with which the origin last accepted a caller for the repository since the start; empty when
// there was none. It is for the host's own reads of an image that this caller has pulled.
func (h *Handler) Authorization(registry, repository string) string {
	h.callers.mu.Lock()
	defer h.callers.mu.Unlock()
	return h.callers.last[registry+"/"+repository]
}
