package mirror

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// Names of the Nydus project, by which an index tells its lazy variant and a manifest its bootstrap.
	nydusArtifactType  = "application/vnd.nydus.image.manifest.v1+json"
	nydusOSFeature     = "nydus.remoteimage.v1"
	nydusBootstrapNote = "containerd.io/snapshot/nydus-bootstrap"

	// learnTimeout bounds the look at an image's other variant, which the caller waits for.
	learnTimeout = 3 * time.Second
)

// learn takes from a manifest that passes by what reading its blobs needs: their sizes, and the bootstrap layer with
// their chunk maps, which stands in the Nydus variant beside a plain one. Nothing here can fail the answer.
func (h *Handler) learn(ctx context.Context, req request, rec Record) {
	var known bool
	key := learnedKey(req, rec.Digest)
	if h.records.get(bucketSiblings, key, &known) {
		return
	}
	doc, err := parse(rec.MediaType, rec.Body)
	if err != nil {
		h.log.Warn("nothing is learned of a manifest", "registry", req.Registry, "repository", req.Repository, "manifest", rec.Digest, "error", err)
		return
	}
	if len(doc.Manifests) > 0 {
		h.learnIndex(req, doc)
	} else if !h.learnManifest(ctx, req, rec.Digest, doc) {
		return
	}
	_ = h.records.put(bucketSiblings, key, true) // not kept: learned again
}

// learnedKey names a manifest within its repository: what one repository says of an image means nothing in another.
func learnedKey(req request, d digest.Digest) string { return "learned " + blobKey(req, d) }

// learnIndex notes which Nydus manifest stands beside which plain one in this repository.
func (h *Handler) learnIndex(req request, doc document) {
	for _, lazy := range doc.Manifests {
		if !isNydus(lazy) {
			continue
		}
		for _, plain := range doc.Manifests {
			if !isNydus(plain) && samePlatform(plain.Platform, lazy.Platform) {
				_ = h.records.put(bucketSiblings, blobKey(req, plain.Digest), lazy.Digest) // not kept: no chunk map is known
			}
		}
	}
}

func isNydus(d ocispec.Descriptor) bool {
	return d.ArtifactType == nydusArtifactType || d.Platform != nil && slices.Contains(d.Platform.OSFeatures, nydusOSFeature)
}

func samePlatform(a, b *ocispec.Platform) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.OS == b.OS && a.Architecture == b.Architecture && a.Variant == b.Variant
}

// learnManifest notes the blobs of a manifest; it reports false when the other variant could not be looked at.
func (h *Handler) learnManifest(ctx context.Context, req request, d digest.Digest, doc document) bool {
	layers, bootstrap, complete := doc.Layers, findBootstrap(doc.Layers), true
	var lazy digest.Digest
	if bootstrap == nil && h.records.get(bucketSiblings, blobKey(req, d), &lazy) {
		ctx, cancel := context.WithTimeout(ctx, learnTimeout)
		defer cancel()
		other, err := h.sibling(ctx, req, lazy)
		complete = err == nil
		if err != nil {
			h.log.Warn("no look at the Nydus variant, blobs are read without chunk maps", "manifest", lazy, "error", err)
		}
		bootstrap = findBootstrap(other.Layers)
		layers = append(layers, other.Layers...)
	}
	if bootstrap != nil { // it has the chunk maps, which every layer's first byte waits for
		h.blobs.Warm(BlobRef{Registry: req.Registry, Repository: req.Repository, Digest: bootstrap.Digest, Size: bootstrap.Size}, req.authorization())
	}
	for _, l := range layers {
		if isForeign(l) {
			continue // the origin has to say that it has it
		}
		h.learnBlob(req, l, bootstrap)
	}
	if doc.Config != nil && !isForeign(*doc.Config) {
		h.learnBlob(req, *doc.Config, nil)
	}
	return complete
}

// learnBlob notes what a manifest says of a blob; bootstrap is the layer with its chunk map, or nil. Where manifests contradict each other, as
// registries let them, its size is not known.
func (h *Handler) learnBlob(req request, blob ocispec.Descriptor, bootstrap *ocispec.Descriptor) {
	info := blobInfo{Size: max(blob.Size, 0)}
	var before blobInfo
	if h.records.get(bucketBlobs, blobKey(req, blob.Digest), &before) {
		if before.Size != info.Size {
			info.Size = 0
		}
		info.MapLayer, info.MapSize = before.MapLayer, before.MapSize // another image of the repository may know its chunk map
	}
	if bootstrap != nil && bootstrap.Digest != blob.Digest {
		info.MapLayer, info.MapSize = bootstrap.Digest, bootstrap.Size
	}
	if info != before {
		_ = h.records.put(bucketBlobs, blobKey(req, blob.Digest), info) // not kept: the origin is asked for the size
	}
}

// blobKey names a blob within its repository, since that is where its chunk map is.
func blobKey(req request, d digest.Digest) string {
	return req.Registry + "/" + req.Repository + "@" + d.String()
}

func (h *Handler) sibling(ctx context.Context, req request, d digest.Digest) (document, error) {
	req.Reference, req.header = d.String(), req.header.Clone()
	req.header.Set("Accept", ocispec.MediaTypeImageManifest)
	req.method = http.MethodGet
	rec, err := h.manifest(ctx, req)
	if err != nil {
		return document{}, err
	}
	return parse(rec.MediaType, rec.Body)
}

// isForeign reports whether a descriptor is of what lies elsewhere than in the registry, which therefore takes a manifest that names it without
// looking whether the repository has it. Such a manifest proves nothing: whoever may push anywhere could name another's blob like that.
func isForeign(d ocispec.Descriptor) bool {
	return len(d.URLs) > 0 || strings.Contains(d.MediaType, ".foreign.") || strings.Contains(d.MediaType, ".nondistributable.")
}

func findBootstrap(layers []ocispec.Descriptor) *ocispec.Descriptor {
	for i := range layers {
		if layers[i].Annotations[nydusBootstrapNote] == "true" && !isForeign(layers[i]) {
			return &layers[i]
		}
	}
	return nil
}
