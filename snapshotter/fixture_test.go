package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/zeebo/blake3"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	mirror "github.com/shoal-project/shoal/registry-mirror"
)

const (
	testRegistry   = "registry.example"
	testRepository = "models/tiny"
	testRef        = testRegistry + "/" + testRepository + ":1"
)

var testManifest = digest.FromString("the plain manifest")

// A registry holds one image with its blobs.
type registry struct {
	dir   string
	known mirror.Image
	diffs []digest.Digest

	mu     sync.Mutex // guards opened
	opened map[digest.Digest]int
}

// newRegistry returns an image of two archives; its Nydus variant has one blob, and shows one file, "weights".
func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{dir: t.TempDir(), known: mirror.Image{Registry: testRegistry, Repository: testRepository}, opened: map[digest.Digest]int{}}
	r.known.Layers = []ocispec.Descriptor{
		r.add(t, archiveOf(t, map[string]string{"base": "of the base", "gone": "soon"})),
		r.add(t, archiveOf(t, map[string]string{"weights": "of the model", ".wh.gone": ""})),
	}
	for _, l := range r.known.Layers {
		r.diffs = append(r.diffs, l.Digest)
	}
	data := append([]byte("of the model"), make([]byte, 4096-12)...)
	blob := r.add(t, data)
	raw, err := bootstrap.Encode(&bootstrap.Image{
		ChunkSize: 1 << 20,
		Blobs:     []bootstrap.Blob{{Digest: blob.Digest, Size: 4096, TableOffset: 4096, ChunkCount: 1, DeviceSize: 4096}},
		Chunks:    []bootstrap.Chunk{{Digest: blake3.Sum256(data[:12]), Length: 12, Size: 12}},
		Root: &bootstrap.Inode{Mode: bootstrap.TypeDir | 0o755, Children: map[string]*bootstrap.Inode{
			"weights": {Mode: bootstrap.TypeRegular | 0o644, Size: 12, Chunks: []uint32{0}},
		}},
	})
	check(t, err)
	r.known.Nydus = []ocispec.Descriptor{blob, r.bootstrapLayer(t, raw)}
	return r
}

// bootstrapLayer adds a bootstrap layer.
func (r *registry) bootstrapLayer(t *testing.T, raw []byte) ocispec.Descriptor {
	t.Helper()
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	_, err := zw.Write(archiveOf(t, map[string]string{image.BootstrapName: string(raw)}))
	check(t, errors.Join(err, zw.Close()))
	d := r.add(t, packed.Bytes())
	d.Annotations = map[string]string{image.AnnotationBootstrap: "true"}
	return d
}

func (r *registry) add(t *testing.T, data []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(data), Size: int64(len(data))}
	check(t, os.WriteFile(filepath.Join(r.dir, d.Digest.Encoded()), data, 0o600))
	return d
}

// Image implements Images.
func (r *registry) Image(host, repository string, manifest digest.Digest) (mirror.Image, error) {
	if host != testRegistry || repository != testRepository || manifest != testManifest {
		return mirror.Image{}, mirror.ErrUnknown
	}
	return r.known, nil
}

// Open implements Images.
func (r *registry) Open(_ context.Context, ref mirror.BlobRef) (mirror.Blob, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened[ref.Digest]++
	f, err := os.Open(filepath.Join(r.dir, ref.Digest.Encoded()))
	if err != nil {
		return nil, err
	}
	return fileBlob{f: f}, nil
}

// fileBlob is a blob that is all there.
type fileBlob struct{ f *os.File }

// File implements mirror.Blob.
func (b fileBlob) File() (*os.File, error) { return b.f, nil }

// Await implements mirror.Blob.
func (b fileBlob) Await(_ context.Context, _, length int64) (int64, error) { return length, nil }

// AwaitMoving implements mirror.Blob.
func (b fileBlob) AwaitMoving(_ context.Context, _, length int64, _ time.Duration) (int64, error) {
	return length, nil
}

// Close implements mirror.Blob.
func (b fileBlob) Close() error { return b.f.Close() }

func archiveOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		check(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name]))}))
		_, err := tw.Write([]byte(files[name]))
		check(t, err)
	}
	check(t, tw.Close())
	return out.Bytes()
}

// pins are in memory.
type pins struct {
	mu  sync.Mutex // guards set
	set map[digest.Digest][]string
}

func newPins() *pins { return &pins{set: map[digest.Digest][]string{}} }

func (p *pins) Pin(d digest.Digest, owner string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(p.set[d], owner) {
		p.set[d] = append(p.set[d], owner)
	}
	return nil
}

func (p *pins) Unpin(d digest.Digest, owner string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.set[d] = slices.DeleteFunc(p.set[d], func(o string) bool { return o == owner }); len(p.set[d]) == 0 {
		delete(p.set, d)
	}
	return nil
}

func (p *pins) Pins() map[digest.Digest][]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[digest.Digest][]string{}
	for d, owners := range p.set {
		out[d] = slices.Clone(owners)
	}
	return out
}

// A host is a snapshotter over the registry's image.
type host struct {
	*Snapshotter

	t    *testing.T
	reg  *registry
	pins *pins
	root string
}

func newHost(t *testing.T) *host {
	t.Helper()
	needRoot(t)
	return newHostAt(t, filepath.Join(t.TempDir(), "snapshots"))
}

// newHostAt returns one with its snapshots at root.
func newHostAt(t *testing.T, root string) *host {
	t.Helper()
	h := &host{t: t, reg: newRegistry(t), pins: newPins(), root: root}
	h.start()
	t.Cleanup(func() {
		for _, dir := range h.mounted() {
			check(t, mount.Unmount(dir, 0))
		}
		check(t, h.Close())
	})
	return h
}

// start opens the snapshotter, again after Close.
func (h *host) start() {
	h.t.Helper()
	s, err := New(Config{Root: h.root, Images: h.reg, Mounter: eager{h.reg}, Pins: h.pins})
	check(h.t, err)
	h.Snapshotter = s
}

// mounted returns where images are mounted below the root.
func (h *host) mounted() []string {
	h.t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	check(h.t, err)
	var out []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], h.root) {
			out = append(out, fields[4])
		}
	}
	return out
}

// labels are those that containerd gives layer i of the image.
func (h *host) labels(i int) map[string]string {
	return map[string]string{
		labelImage: testRef, labelManifest: testManifest.String(), labelLayer: h.reg.known.Layers[i].Digest.String(),
		snapshots.LabelSnapshotRef: identity.ChainID(h.reg.diffs[:i+1]).String(),
	}
}

// pull does what containerd does with the image in a namespace, and returns the name of the last layer's snapshot. Layers that are not
// placed are unpacked as empty ones.
func (h *host) pull(namespace string) (top string, placed int) {
	h.t.Helper()
	ctx := h.t.Context()
	for i := range h.reg.known.Layers {
		labels := h.labels(i)
		target, key := labels[snapshots.LabelSnapshotRef], namespace+" extract "+labels[snapshots.LabelSnapshotRef]
		_, err := h.Prepare(ctx, key, top, snapshots.WithLabels(labels))
		if !errdefs.IsAlreadyExists(err) {
			check(h.t, err)
			check(h.t, h.Commit(ctx, namespace+" "+target, key))
			top = namespace + " " + target
			continue
		}
		placed++
		top = h.target(target, top)
	}
	return top, placed
}

// target finds the snapshot of a layer as containerd does.
func (h *host) target(target, parent string) (name string) {
	h.t.Helper()
	check(h.t, h.Walk(h.t.Context(), func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted && info.Labels[snapshots.LabelSnapshotRef] == target && info.Parent == parent {
			name = info.Name
		}
		return nil
	}))
	if name == "" {
		h.t.Fatalf("no snapshot for %s on %q", target, parent)
	}
	return name
}

// read mounts a snapshot as a container's root and returns what a file of it has.
func (h *host) read(mounts []mount.Mount, name string) (string, error) {
	h.t.Helper()
	dir := h.t.TempDir()
	check(h.t, mount.All(mounts, dir))
	defer func() { check(h.t, mount.Unmount(dir, 0)) }()
	data, err := os.ReadFile(filepath.Join(dir, name))
	return string(data), err
}

func (h *host) layers(how string) int {
	return int(testutil.ToFloat64(h.metrics.layers.WithLabelValues(how)))
}
