package lazy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// registered opens blobs with the size that the manifest has, as the node does, until it is down.
type registered struct {
	sources

	img  *bootstrap.Image
	down atomic.Bool
}

func (s *registered) Open(ctx context.Context, b Blob) (Reader, error) {
	if s.down.Load() {
		return nil, errors.New("the registry is down")
	}
	for i := range s.img.Blobs {
		if s.img.Blobs[i].Digest == b.Digest {
			b.Size = s.img.Blobs[i].Size
		}
	}
	return s.sources.Open(ctx, b)
}

func (w *world) registered(n *node) *registered {
	return &registered{sources: sources{n.peer, w.maps}, img: w.img}
}

// hostile writes a bootstrap that has the first chunk of the world's last blob, in so many blobs of the same digest, each of so many bytes; 0: as many as
// it has.
func (w *world) hostile(t *testing.T, blobs int, size int64) string {
	t.Helper()
	last := len(w.img.Blobs) - 1
	blob, chunk := w.img.Blobs[last], bootstrap.Chunk{}
	for _, c := range w.img.Chunks {
		if int(c.Blob) == last && c.Index == 0 {
			chunk = c
		}
	}
	if blob.ChunkCount = 1; size > 0 {
		blob.Size, blob.TableOffset, blob.DeviceSize = size, 0, size
	}
	img := &bootstrap.Image{ChunkSize: w.img.ChunkSize, Root: &bootstrap.Inode{Mode: bootstrap.TypeDir | 0o755, Children: map[string]*bootstrap.Inode{}}}
	for i := range uint32(blobs) {
		chunk.Blob = i
		img.Blobs, img.Chunks = append(img.Blobs, blob), append(img.Chunks, chunk)
		img.Root.Children[fmt.Sprint(i)] = &bootstrap.Inode{Mode: bootstrap.TypeRegular | 0o644, Size: int64(chunk.Size), Chunks: []uint32{i}}
	}
	raw, err := bootstrap.Encode(img)
	check(t, err)
	name := filepath.Join(w.dir, "hostile.boot")
	check(t, os.WriteFile(name, raw, 0o600))
	return name
}

func (w *world) mountAt(t *testing.T, n *node, boot string, from Source, target string) {
	t.Helper()
	check(t, os.MkdirAll(target, 0o755))
	check(t, n.Mount(t.Context(), Image{Name: boot, Bootstrap: boot, Blobs: from, Prefetch: Prefetch{None: true}}, target))
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) }) // it may be gone
}

// An image that says a blob is shorter than it is must not keep the rest of it from another image's readers, who would see zeros.
func TestRootSizeThatOneImageSaysIsNotAnothers(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 8<<20)
	n := w.node(t, os.Stderr)
	w.mountAt(t, n, w.hostile(t, 1, chunkSize), w.registered(n), filepath.Join(w.dir, "hostile"))
	w.mountAt(t, n, w.boot, w.registered(n), w.target)
	w.wantSums(t, "read", "models/model.bin")
}

// An image that has a blob twice must not take away the mark of its file from another image.
func TestRootImageWithABlobTwiceHarmsNoOther(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 8<<20)
	n := w.node(t, os.Stderr)
	hostile := filepath.Join(w.dir, "hostile")
	w.mountAt(t, n, w.hostile(t, 2, 0), w.registered(n), hostile)
	w.mountAt(t, n, w.boot, w.registered(n), w.target)
	check(t, n.Unmount(t.Context(), hostile))
	w.wantSums(t, "read", "models/model.bin")
}

// A blob that two images have comes from where either may read it.
func TestRootBlobComesFromTheSourceOfEachImage(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 8<<20)
	n := w.node(t, os.Stderr)
	first := w.registered(n)
	w.mountAt(t, n, w.boot, first, filepath.Join(w.dir, "first"))
	second := filepath.Join(w.dir, "second.boot")
	raw, err := os.ReadFile(w.boot)
	check(t, err)
	check(t, os.WriteFile(second, raw, 0o600))
	w.mountAt(t, n, second, w.registered(n), w.target)
	first.down.Store(true)
	w.wantSums(t, "read", "models/model.bin")
}

func TestOriginsAreAskedInTurnAndLeaveWithTheirMounts(t *testing.T) {
	good, bad := &registered{}, &registered{}
	bad.down.Store(true)
	a, b := &mount{image: Image{Blobs: bad}}, &mount{image: Image{Blobs: good}}
	o := newOrigins(bad)
	for range 2 { // an image that has the blob twice
		o.join(a)
	}
	o.join(b)
	if got := o.list(); len(got) != 2 || got[0] != Source(bad) || got[1] != Source(good) {
		t.Fatalf("%d sources", len(got))
	}
	o.failed()
	if got := o.list(); got[0] != Source(good) {
		t.Error("the one that failed is asked first")
	}
	o.leave(a)
	o.leave(b) // the last one stays
	if got := o.list(); len(got) != 1 || got[0] != Source(good) {
		t.Errorf("%d sources are left", len(got))
	}
	if _, err := newOrigins(bad).Open(t.Context(), Blob{}); err == nil {
		t.Error("opened although the only source is down")
	}
}

// However many names a file has, and wherever it is asked for, it is looked at once.
func TestFilesAreVisitedOnce(t *testing.T) {
	long := &bootstrap.Inode{Mode: bootstrap.TypeRegular | 0o644}
	root := &bootstrap.Inode{Mode: bootstrap.TypeDir, Children: map[string]*bootstrap.Inode{}}
	asked, at := []*bootstrap.Inode{root}, root
	for range 50 {
		for i := range 10 {
			at.Children[fmt.Sprint(i)] = long
		}
		next := &bootstrap.Inode{Mode: bootstrap.TypeDir, Children: map[string]*bootstrap.Inode{}}
		at.Children["d"], at = next, next
		asked = append(asked, next)
	}
	if got := filesOf(asked); len(got) != 1 || got[0] != long {
		t.Errorf("%d files, want the one there is", len(got))
	}
}

// room counts what is reserved.
type room struct{ n int64 }

func (r *room) Reserve(n int64) error { r.n += n; return nil }
func (r *room) Count(n int64)         { r.n += n }

func TestWhatIsNotWrittenTakesNoRoom(t *testing.T) {
	var r room
	f, err := newShelf(t.TempDir(), &r).open("x", 1<<20)
	check(t, err)
	for range 100 { // as on a disk that takes nothing
		check(t, f.book(1<<20))
		f.unbook(1 << 20)
	}
	if r.n > bookStep {
		t.Errorf("%d bytes are reserved for a file of 1 MiB", r.n)
	}
	check(t, f.close(true))
	if r.n != 0 {
		t.Errorf("%d bytes are reserved for no file", r.n)
	}
}
