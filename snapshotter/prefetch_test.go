package snapshotter

import (
	"context"
	"fmt"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// listener is a Mounter that takes down what it was asked to mount.
type listener struct {
	eager

	asked *[]MountedImage
}

// Mount implements Mounter.
func (l listener) Mount(ctx context.Context, image MountedImage, target string) error {
	*l.asked = append(*l.asked, image)
	return l.eager.Mount(ctx, image, target)
}

// What is fetched before it is read is said by the manifest's annotation, and over it by the label of the layer in whose place the image is mounted, which
// is the last one. A restart knows it still.
func TestRootLabelsOverruleAnnotationsOfWhatIsFetched(t *testing.T) {
	for _, c := range []struct{ annotation, first, last, want string }{
		{"", "", "", ""}, {"none", "", "", "none"}, {"none", "", "/weights", "/weights"}, {"", "", "none", "none"}, {"/weights", "none", "", "/weights"},
	} {
		t.Run(fmt.Sprintf("annotation %q, labels %q %q", c.annotation, c.first, c.last), func(t *testing.T) {
			h := newHost(t)
			if c.annotation != "" {
				h.reg.known.Annotations = map[string]string{AnnotationPrefetch: c.annotation}
			}
			var asked []MountedImage
			start := func() {
				t.Helper()
				check(t, h.Close())
				var err error
				h.Snapshotter, err = New(Config{Root: h.root, Images: h.reg, Mounter: listener{eager{h.reg}, &asked}, Pins: h.pins})
				check(t, err)
			}
			start()
			parent := ""
			for i, label := range []string{c.first, c.last} {
				labels := h.labels(i)
				if label != "" {
					labels[labelPrefetch] = label
				}
				name := labels[snapshots.LabelSnapshotRef]
				if _, err := h.Prepare(t.Context(), "extract "+name, parent, snapshots.WithLabels(labels)); !errdefs.IsAlreadyExists(err) {
					t.Fatalf("layer %d is not placed: %v", i, err)
				}
				parent = h.target(name, parent)
			}
			for _, dir := range h.mounted() {
				check(t, mount.Unmount(dir, 0))
			}
			start()
			check(t, h.Restore(t.Context()))
			if len(asked) != 2 || asked[0].Prefetch != c.want || asked[1].Prefetch != c.want {
				t.Errorf("asked for %+v, want %q twice", asked, c.want)
			}
		})
	}
}
