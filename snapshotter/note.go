package snapshotter

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	mirror "github.com/shoal-project/shoal/registry-mirror"
)

// Labels that containerd gives the snapshot of an image's layer: where it comes from, if the snapshotter is configured to be told, and the
// layer's own annotations.
const (
	labelImage     = "containerd.io/snapshot/cri.image-ref"
	labelManifest  = "containerd.io/snapshot/cri.manifest-digest"
	labelLayer     = "containerd.io/snapshot/cri.layer-digest"
	labelDiffID    = "containerd.io/snapshot/diff-id"
	labelBlob      = "containerd.io/snapshot/nydus-blob"
	labelBootstrap = "containerd.io/snapshot/nydus-bootstrap"
	labelPrefetch  = "containerd.io/snapshot/shoal-prefetch"
)

// AnnotationPrefetch is the annotation of a Nydus manifest that says what of the image is fetched before it is read; see MountedImage. The label
// containerd.io/snapshot/shoal-prefetch of the snapshot where the image is mounted, which is its last layer's, overrules it. containerd makes the label of that
// layer's annotation of the same name.
const AnnotationPrefetch = "io.shoal.prefetch"

const noteName = "note.json"

// note is what the folder of a layer says that was not unpacked.
type note struct {
	Image      string `json:"image"` // reference
	Registry   string `json:"registry"`
	Repository string `json:"repository"`
	// Layer is the layer itself, for when its files are needed after all.
	Layer  blob          `json:"layer"`
	DiffID digest.Digest `json:"diff_id,omitempty"` // of the layer, if containerd told
	// Map is the layer with the bootstrap and the chunk maps.
	Map blob `json:"map"`
	// Blobs are the devices of the image that is mounted here, in the order of its bootstrap; Whole says that there is one.
	Blobs []blob `json:"blobs,omitempty"`
	Whole bool   `json:"whole"`
	// Prefetch is what the image says that is fetched before it is read; see MountedImage.
	Prefetch string `json:"prefetch,omitempty"`

	boot    string           // path of the checked bootstrap of a new one; writeNote moves it to imagePath
	decoded *bootstrap.Image // what it says; nil of an old one
}

type blob struct {
	Digest digest.Digest `json:"digest,omitempty"`
	Size   int64         `json:"size,omitempty"` // bytes
}

// pinned are the blobs that are read of a mounted image: its own, and the layer with their chunk maps.
func (n note) pinned() []blob { return append(slices.Clip(n.Blobs), n.Map) }

// ref names a blob of the note's image for the peer.
func (n note) ref(b blob) mirror.BlobRef {
	ref := mirror.BlobRef{Registry: n.Registry, Repository: n.Repository, Digest: b.Digest, Size: b.Size}
	if n.Map.Digest != "" && n.Map.Digest != b.Digest {
		ref.MapLayer, ref.MapSize = n.Map.Digest, n.Map.Size
	}
	return ref
}

// discard removes the bootstrap of a note that was not written.
func (n note) discard() error {
	if !n.Whole || n.boot == "" {
		return nil
	}
	if err := os.Remove(n.boot); err != nil && !errors.Is(err, fs.ErrNotExist) { // writeNote has moved it
		return err
	}
	return nil
}

// readNote returns the note of a snapshot's folder; fs.ErrNotExist when it is an ordinary one.
func (s *Snapshotter) readNote(id string) (note, error) {
	var n note
	data, err := os.ReadFile(filepath.Join(s.dir(id), noteName))
	if err != nil {
		return n, err
	}
	if err := json.Unmarshal(data, &n); err != nil {
		return n, fmt.Errorf("%s: %w; remove the image and pull it again", filepath.Join(s.dir(id), noteName), err)
	}
	return n, nil
}

// writeNote writes the note, and what it speaks of, to the disk: without it a snapshot is an ordinary layer, and an empty one.
func (s *Snapshotter) writeNote(id string, n note) error {
	if n.Whole {
		if err := os.Rename(n.boot, s.imagePath(id)); err != nil {
			return err
		}
	}
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	dir := s.dir(id)
	if err := renameio.WriteFile(filepath.Join(dir, noteName), data, 0o600, renameio.WithTempDir(dir)); err != nil {
		return err
	}
	return syncFolders(dir, filepath.Dir(dir))
}

// errPastMirror tells why an image whose data blobs are no archives cannot be used.
var errPastMirror = errors.New("it was not pulled through the node's mirror, which has to know its blobs; run shoal mirror configure")

// claim decides whether a layer need not be unpacked, and returns what to note of it; nil when containerd has to unpack it.
func (s *Snapshotter) claim(ctx context.Context, parent string, labels map[string]string) (*note, error) {
	if labels[labelBootstrap] == "true" { // small, and what an image is mounted from
		return nil, nil
	}
	n, err := s.recognise(ctx, parent, labels)
	switch {
	case err != nil && (ctx.Err() != nil || errors.Is(err, errPastMirror) || labels[labelBlob] == "true" && errors.Is(err, ErrUnseen)):
		return nil, fmt.Errorf("image %s: %w", labels[labelImage], err)
	case err != nil:
		n = nil
		s.metrics.fallbacks.Inc()
		s.log.Warn("image is unpacked, not mounted", "image", labels[labelImage], "layer", labels[labelLayer], "error", err)
	}
	how := "overlay"
	if n != nil {
		how = "placed"
	}
	s.metrics.layers.WithLabelValues(how).Inc()
	return n, nil
}

// recognise returns the note of a layer of an image that can be mounted; nil when it cannot, and an error when it should.
func (s *Snapshotter) recognise(ctx context.Context, parent string, labels map[string]string) (*note, error) {
	if s.cfg.Images == nil || s.cfg.Mounter == nil {
		return nil, nil
	}
	img, ok := s.imageOf(labels)
	if !ok && labels[labelBlob] == "true" {
		return nil, errPastMirror
	}
	if !ok || img.Bootstrap() == nil {
		return nil, nil
	}
	below, err := s.chain(ctx, parent)
	if err != nil {
		return nil, err
	}
	depth := len(below)
	if depth >= len(img.Layers) || img.Layers[depth].Digest.String() != labels[labelLayer] {
		return nil, nil // not in its place
	}
	isBlob := labels[labelBlob] == "true"
	// What only says that it is a data blob, and is an archive, is one that other images may have too.
	if isBlob && img.Layers[depth].MediaType != image.MediaTypeBlob {
		return nil, nil
	}
	if err := s.unseen(ctx); err != nil {
		return nil, err
	}
	n := newNote(labels, img)
	n.Layer = blob{img.Layers[depth].Digest, img.Layers[depth].Size}
	n.DiffID = digest.Digest(labels[labelDiffID])
	if isBlob {
		return &n, nil
	}
	n.Whole = depth == len(img.Layers)-1
	if n.boot, n.decoded, err = s.bootstrapOf(ctx, img, n.Whole); err == nil && n.Whole {
		n.Blobs, err = devices(n.decoded, img.Nydus)
	}
	if err != nil {
		return nil, errors.Join(err, n.discard())
	}
	return &n, nil
}

// imageOf returns what is known of the image that a layer's labels name.
func (s *Snapshotter) imageOf(labels map[string]string) (mirror.Image, bool) {
	spec, err := reference.Parse(labels[labelImage])
	if err != nil || s.cfg.Images == nil {
		return mirror.Image{}, false
	}
	manifest, err := digest.Parse(labels[labelManifest])
	if err != nil {
		return mirror.Image{}, false
	}
	registry := spec.Hostname()
	img, err := s.cfg.Images.Image(registry, strings.TrimPrefix(spec.Locator, registry+"/"), manifest)
	return img, err == nil // pulled past the mirror: an ordinary image for us
}

func newNote(labels map[string]string, img mirror.Image) note {
	b := img.Bootstrap()
	return note{Image: labels[labelImage], Registry: img.Registry, Repository: img.Repository, Map: blob{b.Digest, b.Size},
		Prefetch: cmp.Or(labels[labelPrefetch], img.Annotations[AnnotationPrefetch])}
}

// adopt makes the unpacked bootstrap layer of a Nydus image the place where the image is mounted. It is refused when the bootstrap is.
func (s *Snapshotter) adopt(ctx context.Context, id string, labels map[string]string) (note, error) {
	name := labels[labelImage]
	if s.cfg.Mounter == nil {
		return note{}, fmt.Errorf("image %s: this host cannot mount Nydus images; pull its plain variant", name)
	}
	img, ok := s.imageOf(labels)
	if !ok || img.Bootstrap() == nil {
		return note{}, fmt.Errorf("image %s: %w", name, errPastMirror)
	}
	n := newNote(labels, img)
	n.Whole, n.boot = true, s.ownBootstrapPath(img.Bootstrap().Digest)
	root, err := os.OpenRoot(s.fsPath(id)) // what a layer holds may be links to anywhere
	if err != nil {
		return n, err
	}
	defer root.Close()
	if n.decoded, err = s.copyBootstrap(ctx, root, n.boot); err != nil {
		return n, fmt.Errorf("image %s: %w", name, err)
	}
	if n.Blobs, err = devices(n.decoded, img.Nydus); err != nil {
		return n, errors.Join(fmt.Errorf("image %s: %w", name, err), n.discard())
	}
	if err := s.writeNote(id, n); err != nil {
		return n, errors.Join(err, n.discard())
	}
	return n, empty(root)
}

// empty removes what is in a folder.
func empty(root *os.Root) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, root.RemoveAll(e.Name()))
	}
	return errors.Join(errs...)
}

// sizes returns the layers' sizes by digest.
func sizes(layers []ocispec.Descriptor) map[digest.Digest]int64 {
	out := make(map[digest.Digest]int64, len(layers))
	for _, l := range layers {
		out[l.Digest] = l.Size
	}
	return out
}

// isBootstrap reports whether containerd unpacks the bootstrap layer of a Nydus image into the snapshot with these labels.
func isBootstrap(labels map[string]string) bool {
	return labels[labelBootstrap] == "true" && labels[snapshots.LabelSnapshotRef] != ""
}
