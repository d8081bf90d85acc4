package snapshotter

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// powered is a host on a disk of its own, which commits by itself so rarely that only what was synced has reached it.
type powered struct {
	*host

	image, dir string
}

func newPowered(t *testing.T) *powered {
	t.Helper()
	needRoot(t)
	_, err := exec.LookPath("mkfs.ext4")
	need(t, err)
	dir := t.TempDir()
	p := &powered{image: filepath.Join(dir, "disk"), dir: filepath.Join(dir, "mounted")}
	check(t, os.Mkdir(p.dir, 0o755))
	check(t, os.WriteFile(p.image, nil, 0o600))
	check(t, os.Truncate(p.image, 64<<20))
	p.host = &host{t: t, reg: newRegistry(t), pins: newPins(), root: filepath.Join(p.dir, "snapshots")}
	p.run("mkfs.ext4", "-q", p.image)
	p.plug(p.image)
	t.Cleanup(p.unplug)
	return p
}

func (p *powered) run(name string, args ...string) {
	p.t.Helper()
	if out, err := exec.CommandContext(p.t.Context(), name, args...).CombinedOutput(); err != nil {
		p.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (p *powered) plug(image string) {
	p.t.Helper()
	p.run("mount", "-o", "loop,commit=300", image, p.dir)
	p.start()
}

func (p *powered) unplug() {
	p.t.Helper()
	for _, dir := range p.mounted() {
		check(p.t, unix.Unmount(dir, 0))
	}
	check(p.t, p.Close())
	// Processes that others start just now have copies of the images' mounts for a moment, which hold the disk.
	eventually(p.t, "the disk is free", func() bool { return unix.Unmount(p.dir, 0) == nil })
}

// fail goes on from what was on the disk when it was called, as after a power failure.
func (p *powered) fail() {
	p.t.Helper()
	left := p.image + ".left"
	p.run("cp", p.image, left)
	p.unplug()
	p.plug(left)
	check(p.t, p.Restore(p.t.Context()))
}

// used has the metadata's file grown to what some images take, so that what comes next syncs no more than it has to.
func (p *powered) used() {
	p.t.Helper()
	const images = 30
	for i := range images {
		key := fmt.Sprint("key ", i)
		_, err := p.Prepare(p.t.Context(), key, "")
		check(p.t, err)
		check(p.t, p.Commit(p.t.Context(), fmt.Sprint("name ", i), key))
	}
	for i := range images {
		check(p.t, p.Remove(p.t.Context(), fmt.Sprint("name ", i)))
	}
	p.sync()
}

func (p *powered) sync() {
	p.t.Helper()
	p.run("sync", "-f", p.dir)
}

func TestRootAPulledImageSurvivesAPowerFailure(t *testing.T) {
	p := newPowered(t)
	p.used()
	top, placed := p.pull("a")
	if placed != 2 {
		t.Fatalf("%d layers placed, want 2", placed)
	}
	p.fail()
	mounts, err := p.Prepare(t.Context(), "container", top)
	check(t, err)
	if got, err := p.read(mounts, "weights"); got != "of the model" || err != nil {
		t.Errorf("weights: %q, %v", got, err)
	}
}

func TestRootALateUnpackedLayerSurvivesAPowerFailure(t *testing.T) {
	p := newPowered(t)
	p.pull("a")
	p.sync()
	base := p.target(p.labels(0)["containerd.io/snapshot.ref"], "")
	for _, view := range []string{"before", "after"} {
		mounts, err := p.View(t.Context(), view, base)
		check(t, err)
		if got, err := p.read(mounts, "base"); got != "of the base" || err != nil {
			t.Errorf("base %s the failure: %q, %v", view, got, err)
		}
		if view == "before" {
			p.run("sync", filepath.Join(p.root, "metadata.db")) // as whatever is done next does
			p.fail()
		}
	}
}
