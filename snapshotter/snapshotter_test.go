package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/converter/image"
)

func TestRootImageIsMountedInPlaceOfItsLayers(t *testing.T) {
	h := newHost(t)
	top, placed := h.pull("a")
	if placed != 2 || h.layers("placed") != 2 || h.Mounted() != 1 {
		t.Errorf("%d layers placed, %d counted, %d images mounted; want 2, 2, 1", placed, h.layers("placed"), h.Mounted())
	}
	mounts, err := h.Prepare(t.Context(), "container", top)
	check(t, err)
	if got, err := h.read(mounts, "weights"); got != "of the model" || err != nil {
		t.Errorf("weights: %q, %v", got, err)
	}
	again, err := h.Mounts(t.Context(), "container")
	check(t, err)
	if got, err := h.read(again, "weights"); got != "of the model" || err != nil {
		t.Errorf("weights, asked again: %q, %v", got, err)
	}
	views, err := h.View(t.Context(), "view", top)
	check(t, err)
	if len(views) != 1 || views[0].Type != "bind" {
		t.Errorf("a view of one image is %v, want a bind mount", views)
	}
	if got, err := h.read(views, "weights"); got != "of the model" || err != nil {
		t.Errorf("weights, in a view: %q, %v", got, err)
	}
	for d, n := range h.reg.opened {
		for _, l := range h.reg.known.Layers {
			if l.Digest == d {
				t.Errorf("layer %s was opened %d times", d, n)
			}
		}
	}
}

func TestRootManyPullsAtOnceMountOnce(t *testing.T) {
	h := newHost(t)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() { h.pull(strings.Repeat("n", i+1)) })
	}
	group.Wait()
	if n := len(h.mounted()); n != 1 {
		t.Errorf("%d mounts, want 1", n)
	}
	leftovers := 0
	entries, err := os.ReadDir(filepath.Join(h.root, "snapshots"))
	check(t, err)
	for range entries {
		leftovers++
	}
	if leftovers != 2 {
		t.Errorf("%d folders of snapshots, want those of 2 layers", leftovers)
	}
}

// Another namespace of containerd may have unpacked the same lower layers; the placed one on top of these is another snapshot.
func TestRootTheSameLayerOnAnotherParentIsAnotherSnapshot(t *testing.T) {
	h := newHost(t)
	h.pull("a")
	_, err := h.Prepare(t.Context(), "b extract", "")
	check(t, err)
	check(t, h.Commit(t.Context(), "b base", "b extract"))
	_, err = h.Prepare(t.Context(), "b extract 2", "b base", snapshots.WithLabels(h.labels(1)))
	if !errdefs.IsAlreadyExists(err) {
		t.Fatalf("got %v", err)
	}
	top := h.target(h.labels(1)[snapshots.LabelSnapshotRef], "b base")
	mounts, err := h.Prepare(t.Context(), "container", top)
	check(t, err)
	if got, err := h.read(mounts, "weights"); got != "of the model" || err != nil {
		t.Errorf("weights: %q, %v", got, err)
	}
}

func TestRootWhatIsBuiltUponAnImageStandsOnItsMount(t *testing.T) {
	h := newHost(t)
	top, _ := h.pull("a")
	mounts, err := h.Prepare(t.Context(), "extract above", top, snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: "sha256:above"}))
	check(t, err)
	dir := t.TempDir()
	check(t, mount.All(mounts, dir))
	check(t, os.WriteFile(filepath.Join(dir, "more"), []byte("above"), 0o600))
	check(t, os.Remove(filepath.Join(dir, "weights")))
	check(t, mount.Unmount(dir, 0))
	check(t, h.Commit(t.Context(), "above", "extract above"))
	mounts, err = h.Prepare(t.Context(), "container", "above")
	check(t, err)
	if got, err := h.read(mounts, "more"); got != "above" || err != nil {
		t.Errorf("more: %q, %v", got, err)
	}
	if got, err := h.read(mounts, "weights"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("weights: %q, %v; want it gone", got, err)
	}
}

func TestRootLayersBelowTheMountAreUnpackedWhenNeeded(t *testing.T) {
	h := newHost(t)
	h.pull("a")
	base := h.target(h.labels(0)[snapshots.LabelSnapshotRef], "")
	mounts, err := h.View(t.Context(), "view", base)
	check(t, err)
	if got, err := h.read(mounts, "base"); got != "of the base" || err != nil {
		t.Errorf("base: %q, %v", got, err)
	}
	if h.layers("late") != 1 {
		t.Errorf("%d layers unpacked late, want 1", h.layers("late"))
	}
	_, err = h.View(t.Context(), "view 2", base)
	check(t, err)
	if n := h.reg.opened[h.reg.known.Layers[0].Digest]; n != 1 {
		t.Errorf("the layer was read %d times, want once", n)
	}
}

func TestRootALateLayerMustBeWhatTheConfigurationSays(t *testing.T) {
	h := newHost(t)
	labels := h.labels(0)
	labels[labelDiffID] = digest.FromString("another layer").String()
	if _, err := h.Prepare(t.Context(), "extract", "", snapshots.WithLabels(labels)); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("got %v", err)
	}
	_, err := h.View(t.Context(), "view", h.target(labels[snapshots.LabelSnapshotRef], ""))
	if err == nil || !strings.Contains(err.Error(), "the configuration says") {
		t.Errorf("got %v", err)
	}
	if _, err := h.Stat(t.Context(), "view"); !errdefs.IsNotFound(err) {
		t.Errorf("the view that failed stays: %v", err)
	}
}

func TestRootWithoutAMounterPlacedLayersAreUnpackedLate(t *testing.T) {
	h := newHost(t)
	top, _ := h.pull("a")
	for _, dir := range h.mounted() { // as after a reboot into another kernel
		check(t, mount.Unmount(dir, 0))
	}
	h.cfg.Mounter = nil
	mounts, err := h.Prepare(t.Context(), "container", top)
	check(t, err)
	for name, want := range map[string]string{"base": "of the base", "weights": "of the model"} {
		if got, err := h.read(mounts, name); got != want || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := h.read(mounts, "gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("gone: %v; want it removed by the second layer", err)
	}
}

func TestRootImagesWithoutAGoodBootstrapAreUnpacked(t *testing.T) {
	for name, spoil := range map[string]func(*testing.T, *registry){
		"no bootstrap in the layer": func(t *testing.T, r *registry) { r.known.Nydus[1] = r.bootstrapLayer(t, nil) },
		"hostile bootstrap": func(t *testing.T, r *registry) {
			r.known.Nydus[1] = r.bootstrapLayer(t, bytes.Repeat([]byte{0xe0}, 8192))
		},
		"no such layer": func(_ *testing.T, r *registry) {
			r.known.Nydus[1].Digest = digest.FromString("nowhere")
		},
		"a blob the manifest has not": func(_ *testing.T, r *registry) { r.known.Nydus = r.known.Nydus[1:] },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			spoil(t, h.reg)
			_, placed := h.pull("a")
			if strings.HasPrefix(name, "a blob") { // known with the last layer only
				placed--
			}
			if placed != 0 || len(h.mounted()) != 0 {
				t.Errorf("%d layers placed, mounts %v", placed, h.mounted())
			}
			if n := testutil.ToFloat64(h.metrics.fallbacks); n == 0 {
				t.Error("no fallback was counted")
			}
		})
	}
}

func TestRootLayersThatAreNotOfAKnownImageAreUnpacked(t *testing.T) {
	for name, change := range map[string]func(map[string]string){
		"no annotations":   func(l map[string]string) { delete(l, labelImage) },
		"another manifest": func(l map[string]string) { l[labelManifest] = digest.FromString("other").String() },
		"no digest":        func(l map[string]string) { l[labelManifest] = "../../etc" },
		"another layer":    func(l map[string]string) { l[labelLayer] = digest.FromString("other").String() },
		"another registry": func(l map[string]string) { l[labelImage] = "other.example/" + testRepository + ":1" },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			labels := h.labels(0)
			change(labels)
			_, err := h.Prepare(t.Context(), "extract", "", snapshots.WithLabels(labels))
			check(t, err)
			if h.layers("overlay") != 1 {
				t.Error("the layer was not counted as unpacked")
			}
		})
	}
}

// nydus makes the registry's image one of nydus-image: its manifest is the Nydus one.
func (h *host) nydus() (blob, boot map[string]string) {
	h.reg.known.Layers = h.reg.known.Nydus
	h.reg.known.Layers[0].MediaType = image.MediaTypeBlob
	h.reg.diffs = []digest.Digest{h.reg.known.Layers[0].Digest, h.reg.known.Layers[1].Digest}
	blob, boot = h.labels(0), h.labels(1)
	blob[labelBlob], boot[labelBootstrap] = "true", "true"
	return blob, boot
}

// unpackNydus pulls such an image; unpack fills the folder of the bootstrap layer.
func (h *host) unpackNydus(unpack func(dir string)) error {
	h.t.Helper()
	blob, boot := h.nydus()
	if _, err := h.Prepare(h.t.Context(), "extract 1", "", snapshots.WithLabels(blob)); !errdefs.IsAlreadyExists(err) {
		h.t.Fatalf("data blob: %v", err)
	}
	lower := h.target(blob[snapshots.LabelSnapshotRef], "")
	mounts, err := h.Prepare(h.t.Context(), "extract 2", lower, snapshots.WithLabels(boot))
	check(h.t, err)
	dir := h.t.TempDir()
	check(h.t, mount.All(mounts, dir))
	unpack(dir)
	check(h.t, mount.Unmount(dir, 0))
	return h.Commit(h.t.Context(), "top", "extract 2")
}

func TestRootNydusImageIsMountedFromItsUnpackedBootstrap(t *testing.T) {
	h := newHost(t)
	boot, _, err := h.bootstrapOf(t.Context(), h.reg.known, true)
	check(t, err)
	raw, err := os.ReadFile(boot)
	check(t, err)
	check(t, h.unpackNydus(func(dir string) {
		check(t, os.MkdirAll(filepath.Join(dir, "image"), 0o755))
		check(t, os.WriteFile(filepath.Join(dir, image.BootstrapName), raw, 0o644))
	}))
	mounts, err := h.Prepare(t.Context(), "container", "top")
	check(t, err)
	if got, err := h.read(mounts, "weights"); got != "of the model" || err != nil {
		t.Errorf("weights: %q, %v", got, err)
	}
	if got, err := h.read(mounts, image.BootstrapName); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the bootstrap shows in the container: %d bytes, %v", len(got), err)
	}
}

func TestRootNydusImageWithABadBootstrapIsRefused(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	check(t, os.WriteFile(secret, make([]byte, 4096), 0o600))
	for name, unpack := range map[string]func(dir string) error{
		"none": func(string) error { return nil },
		"hostile": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, image.BootstrapName), make([]byte, 8192), 0o644)
		},
		"a folder":       func(dir string) error { return os.Mkdir(filepath.Join(dir, image.BootstrapName), 0o755) },
		"a link outside": func(dir string) error { return os.Symlink(secret, filepath.Join(dir, image.BootstrapName)) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			err := h.unpackNydus(func(dir string) {
				check(t, os.MkdirAll(filepath.Join(dir, "image"), 0o755))
				check(t, unpack(dir))
			})
			if err == nil || !strings.Contains(err.Error(), testRef) {
				t.Errorf("got %v, want an error that names the image", err)
			}
			if len(h.mounted()) != 0 {
				t.Errorf("mounted %v", h.mounted())
			}
		})
	}
}

// A manifest can say of any layer that it is a data blob. Other images may have it as the archive it is.
func TestRootAnArchiveThatIsCalledADataBlobIsUnpacked(t *testing.T) {
	h := newHost(t)
	blob, _ := h.nydus()
	h.reg.known.Layers[0].MediaType = ocispec.MediaTypeImageLayerGzip
	_, err := h.Prepare(t.Context(), "extract", "", snapshots.WithLabels(blob))
	check(t, err)
	blob[labelManifest] = digest.FromString("unknown").String()
	if _, err = h.Prepare(t.Context(), "extract 2", "", snapshots.WithLabels(blob)); err == nil || !strings.Contains(err.Error(), "shoal mirror configure") {
		t.Errorf("got %v, want an error with the way out", err)
	}
}

func TestRootRemovedImagesLeaveNothing(t *testing.T) {
	h := newHost(t)
	top, _ := h.pull("a")
	base := h.target(h.labels(0)[snapshots.LabelSnapshotRef], "")
	if len(h.pins.Pins()) != 2 {
		t.Errorf("pins %v, want those of the blob and of the bootstrap layer", h.pins.Pins())
	}
	check(t, h.Remove(t.Context(), top))
	if len(h.mounted()) != 0 || len(h.pins.Pins()) != 0 || h.Mounted() != 0 {
		t.Errorf("mounts %v, pins %v", h.mounted(), h.pins.Pins())
	}
	check(t, h.Remove(t.Context(), base))
	entries, err := os.ReadDir(filepath.Join(h.root, "snapshots"))
	if err != nil || len(entries) != 0 {
		t.Errorf("left %v, %v", entries, err)
	}
}

// A pin would keep what keeps the image from being mounted, such as a blob of a wrong length.
func TestRootWhatCannotBeMountedIsNotPinned(t *testing.T) {
	h := newHost(t)
	h.pull("a")
	for _, dir := range h.mounted() {
		check(t, mount.Unmount(dir, 0))
	}
	check(t, h.Close())
	h.pins = newPins()
	check(t, os.Rename(h.reg.dir, h.reg.dir+" away"))
	h.start()
	if err := h.Restore(t.Context()); err == nil || len(h.pins.Pins()) != 0 {
		t.Errorf("error %v, pins %v", err, h.pins.Pins())
	}
	check(t, os.Rename(h.reg.dir+" away", h.reg.dir))
	check(t, h.Restore(t.Context()))
	if len(h.pins.Pins()) != 2 {
		t.Errorf("pins %v, want those of the blob and of the bootstrap layer", h.pins.Pins())
	}
}

func TestRootRestartFindsMountsAgainAndSweepsWhatNobodyHas(t *testing.T) {
	h := newHost(t)
	top, _ := h.pull("a")
	check(t, h.Close())
	for _, dir := range h.mounted() { // a reboot
		check(t, mount.Unmount(dir, 0))
	}
	orphan := filepath.Join(h.root, "snapshots", "new-1234")
	check(t, os.MkdirAll(filepath.Join(orphan, "fs"), 0o755))
	stray := filepath.Join(h.root, bootstrapsName, "of a pull that was broken off")
	check(t, os.WriteFile(stray, nil, 0o600))
	check(t, h.pins.Pin(digest.FromString("of one that is no more"), pinOwner+"99"))
	check(t, h.pins.Pin(digest.FromString("of somebody else"), "me"))
	h.start()
	check(t, h.Restore(t.Context()))
	if len(h.mounted()) != 1 {
		t.Errorf("mounted %v, want one image", h.mounted())
	}
	for _, path := range []string{orphan, stray} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	if n := len(h.pins.Pins()); n != 3 {
		t.Errorf("pins %v, want two of the image and one of somebody else", h.pins.Pins())
	}
	mounts, err := h.Prepare(t.Context(), "container", top)
	check(t, err)
	if got, err := h.read(mounts, "weights"); got != "of the model" || err != nil {
		t.Errorf("weights: %q, %v", got, err)
	}
}

func TestRootRestoreTellsWhatItCouldNotMount(t *testing.T) {
	h := newHost(t)
	top, _ := h.pull("a")
	check(t, h.Close())
	for _, dir := range h.mounted() {
		check(t, mount.Unmount(dir, 0))
	}
	blob := filepath.Join(h.reg.dir, h.reg.known.Nydus[0].Digest.Encoded())
	check(t, os.Rename(blob, blob+".away"))
	h.start()
	if err := h.Restore(t.Context()); err == nil || !strings.Contains(err.Error(), testRef) {
		t.Errorf("got %v, want an error that names the image", err)
	}
	if failed := h.Failed(); len(failed) != 1 || !strings.Contains(failed[0].Error(), testRef) || !strings.Contains(failed[0].Error(), blob) {
		t.Errorf("failed are %v, want the image with the reason", failed)
	}
	check(t, os.Rename(blob+".away", blob))
	check(t, h.Restore(t.Context()))
	if len(h.mounted()) != 1 || len(h.Failed()) > 0 {
		t.Errorf("mounted %v, failed %v, want one image", h.mounted(), h.Failed())
	}
	for _, dir := range h.mounted() {
		check(t, mount.Unmount(dir, 0))
		check(t, os.Truncate(filepath.Join(filepath.Dir(dir), "image.boot"), 1000))
	}
	if err := h.Restore(t.Context()); err == nil || len(h.Failed()) != 1 {
		t.Errorf("a damaged bootstrap: %v, failed %v", err, h.Failed())
	}
	check(t, h.Remove(t.Context(), top))
	if failed := h.Failed(); len(failed) > 0 {
		t.Errorf("failed are %v behind the image", failed)
	}
}

func TestListenReplacesADeadSocketAndNoLiveOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	first, err := Listen(t.Context(), path)
	check(t, err)
	if _, err := Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("beside a live one: %v", err)
	}
	check(t, first.listener.Close()) // as when the process is killed
	second, err := Listen(t.Context(), path)
	check(t, err)
	check(t, second.Close())
}

func TestRootAFolderIsForOneProcess(t *testing.T) {
	h := newHost(t)
	_, err := New(Config{Root: h.root})
	if want := fmt.Sprintf("process %d has it", os.Getpid()); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), h.root) {
		t.Errorf("error %v, want the folder and %q in it", err, want)
	}
	check(t, h.Close())
	h.start()
}

// Who mounts an image that is being removed, and who sweeps while one is mounted, leave no pin and take none away.
func TestRootPinsGoAndStayWithTheirSnapshots(t *testing.T) {
	h := newHost(t)
	top, _ := h.pull("a")
	id, _, err := h.find(t.Context(), top)
	check(t, err)
	n, err := h.readNote(id)
	check(t, err)
	kept := len(h.pins.Pins())
	check(t, h.sweepPins(t.Context(), map[string]note{})) // what it knows is from before the pull
	if now := len(h.pins.Pins()); now != kept {
		t.Errorf("%d of %d blobs are pinned after a sweep", now, kept)
	}
	check(t, h.Remove(t.Context(), top))
	if err := h.ensureMounted(t.Context(), id, n); !errdefs.IsNotFound(err) { // it came too late
		t.Errorf("mounted what was removed: %v", err)
	}
	if left := h.pins.Pins(); len(left) > 0 {
		t.Errorf("pins are left: %v", left)
	}
}

func TestRootPinsGoWithASnapshotWhoseNoteIsDamaged(t *testing.T) {
	h := newHost(t)
	top, _ := h.pull("a")
	id, _, err := h.find(t.Context(), top)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(h.dir(id), noteName), []byte("{"), 0o600))
	check(t, h.Remove(t.Context(), top))
	if left := h.pins.Pins(); len(left) > 0 {
		t.Errorf("pins are left: %v", left)
	}
}

// told notes what it is told of an image before it mounts it.
type told struct {
	eager

	decoded *bool
}

func (m told) Mount(ctx context.Context, image MountedImage, target string) error {
	*m.decoded = image.Decoded != nil
	return m.eager.Mount(ctx, image, target)
}

// What was decoded to check the bootstrap is what is mounted: with the first layer, and with the last.
func TestRootBootstrapIsDecodedOnceForAMount(t *testing.T) {
	h := newHost(t)
	decoded := false
	h.cfg.Mounter = told{eager{h.reg}, &decoded}
	h.pull("a")
	if !decoded {
		t.Error("the image has to be decoded once more to be mounted")
	}
	if h.decoded.img != nil {
		t.Error("it stays in memory")
	}
}

// A snapshot that is not to be had, since its name is taken, leaves no bootstrap behind.
func TestRootBootstrapsOfFailedSnapshotsGo(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	first, last := h.labels(0), h.labels(1)
	if _, err := h.Prepare(ctx, "extract", "", snapshots.WithLabels(first)); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("got %v, want a layer that is placed", err)
	}
	below := h.target(first[snapshots.LabelSnapshotRef], "")
	_, err := h.Prepare(ctx, "busy", "")
	check(t, err)
	for range 2 {
		if _, err := h.Prepare(ctx, "busy", below, snapshots.WithLabels(last)); !errdefs.IsAlreadyExists(err) {
			t.Errorf("got %v, want a name that is taken", err)
		}
	}
	left, err := os.ReadDir(filepath.Join(h.root, bootstrapsName))
	check(t, err)
	if len(left) > 0 {
		t.Errorf("%d bootstraps are left", len(left))
	}
}
