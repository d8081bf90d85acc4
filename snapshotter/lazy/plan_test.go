package lazy

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/snapshotter/erofs"
	"github.com/shoal-project/shoal/snapshotter/fanotify"
)

// small is an image with files in three blobs; the last one is wanted first.
func small() *bootstrap.Image {
	file := func(chunks ...uint32) *bootstrap.Inode {
		return &bootstrap.Inode{Mode: bootstrap.TypeRegular, Chunks: chunks, Size: int64(len(chunks)) * 4096}
	}
	img := &bootstrap.Image{ChunkSize: 4096, Blobs: make([]bootstrap.Blob, 3)}
	for blob := range uint32(3) {
		for i := range uint32(2) {
			img.Chunks = append(img.Chunks, bootstrap.Chunk{Blob: blob, Index: i, Offset: int64(i) * 100, Length: 100, Size: 4096, DeviceOffset: int64(i) * 4096})
		}
	}
	weights := file(4, 5)
	img.Root = &bootstrap.Inode{Mode: bootstrap.TypeDir, Children: map[string]*bootstrap.Inode{
		"a": file(2, 3), "dir": {Mode: bootstrap.TypeDir, Children: map[string]*bootstrap.Inode{"b": file(0), "c": file(1, 3)}}, "weights": weights,
	}}
	img.Prefetch = []*bootstrap.Inode{weights}
	return img
}

func TestPlanFollowsThePolicy(t *testing.T) {
	for name, tc := range map[string]struct {
		policy Prefetch
		want   []step
	}{
		"whole": {Prefetch{}, []step{{blob: 2, all: true, data: true}, {blob: 1, all: true, data: true}, {blob: 0, all: true, data: true}}},
		"none":  {Prefetch{None: true, Files: []string{"a"}}, nil},
		"listed, each chunk once, what lies together at once": {Prefetch{Files: []string{"/dir/", "missing", "./a", "dir/b/below"}},
			[]step{{blob: 0, length: 8192}, {blob: 1, off: 4096, length: 4096}, {blob: 1, length: 4096}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, steps := plan(small(), tc.policy)
			if diff := cmp.Diff(tc.want, steps, cmp.AllowUnexported(step{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// Nobody reads a model before the program and its libraries are there; a table that names a program knows better.
func TestProgramsComeBeforeWhatTheyRead(t *testing.T) {
	order := func(img *bootstrap.Image) (blobs []int) {
		_, steps := plan(img, Prefetch{})
		for _, s := range steps {
			blobs = append(blobs, s.blob)
		}
		return blobs
	}
	img := small()
	program := img.Root.Children["dir"].Children["b"]
	program.Mode |= 0o755
	if diff := cmp.Diff([]int{0, 2, 1}, order(img)); diff != "" {
		t.Errorf("a table of the model: -want +got:\n%s", diff)
	}
	img.Prefetch = append(img.Prefetch, program)
	if diff := cmp.Diff([]int{2, 0, 1}, order(img)); diff != "" {
		t.Errorf("a table with the program: -want +got:\n%s", diff)
	}
}

// Data comes two blobs at a time, programs and what follows on them do not.
func TestOnlyDataComesTogether(t *testing.T) {
	img := small()
	img.Root.Children["dir"].Children["b"].Mode |= 0o755 // blob 0 comes first
	_, steps := plan(img, Prefetch{})
	var got []int
	for i, s := range steps {
		got = append(got, together(steps[:i], s))
	}
	if diff := cmp.Diff([]int{1, 1, 2}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A container begins with its loader and its libraries, which lie somewhere in blobs of gigabytes, and a reader of a model with its head.
func TestWhatContainersReadFirstComesFirst(t *testing.T) {
	const long = 20 << 20
	img := &bootstrap.Image{ChunkSize: long, Blobs: make([]bootstrap.Blob, 1)}
	file := func(mode uint32, size int64) *bootstrap.Inode {
		i := uint32(len(img.Chunks))
		img.Chunks = append(img.Chunks, bootstrap.Chunk{Index: i, Size: uint32(size), Length: uint32(size), DeviceOffset: int64(i) * 2 * long})
		return &bootstrap.Inode{Mode: bootstrap.TypeRegular | mode, Size: size, Chunks: []uint32{i}}
	}
	dir := func(children map[string]*bootstrap.Inode) *bootstrap.Inode {
		return &bootstrap.Inode{Mode: bootstrap.TypeDir, Children: children}
	}
	shard, model := file(0o644, long), file(0o644, long)
	program, python, libc, loader, accounts := file(0o755, 100<<10), file(0o755, 7<<20), file(0o644, 2<<20), file(0o755, 200<<10), file(0o644, 500)
	img.Root = dir(map[string]*bootstrap.Inode{
		"bin": dir(map[string]*bootstrap.Inode{"dash": program, "server": file(0o755, 5000), "python3.11": python}),
		"etc": dir(map[string]*bootstrap.Inode{"passwd": accounts}),
		"lib": dir(map[string]*bootstrap.Inode{"ld-linux-x86-64.so.2": loader, "libc.so.6": libc, "libother.so": file(0o755, 5000)}),
		"usr": dir(map[string]*bootstrap.Inode{"passwd": file(0o644, 5000), "bash": file(0o644, 5000)}), // of other kinds
		"m":   dir(map[string]*bootstrap.Inode{"1": shard, "2": model}),
	})
	img.Prefetch = []*bootstrap.Inode{shard, model}
	of := func(nodes ...*bootstrap.Inode) (want []step) {
		for _, n := range nodes {
			want = append(want, step{off: img.Chunks[n.Chunks[0]].DeviceOffset, length: min(n.Size, max(firstHead, n.Size%long))})
		}
		return want
	}
	first, _ := plan(img, Prefetch{})
	if diff := cmp.Diff(of(accounts, loader, libc, program, shard, model, python), first, cmp.AllowUnexported(step{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	img.Prefetch = []*bootstrap.Inode{libc, program, shard} // as somebody has seen it run
	first, _ = plan(img, Prefetch{})
	if diff := cmp.Diff(of(libc, program, shard), first, cmp.AllowUnexported(step{})); diff != "" {
		t.Errorf("a table with a program: -want +got:\n%s", diff)
	}
	img.Prefetch = nil
	for range 12 {
		img.Prefetch = append(img.Prefetch, file(0o755, 3<<20))
	}
	if first, _ = plan(img, Prefetch{}); len(first) != firstTotal/(3<<20) {
		t.Errorf("%d files of 3 MiB come first, want as many as %d bytes hold", len(first), firstTotal)
	}
}

// A hostile image has files without end that are called as what containers read first, and names without end for what is long.
func TestWhatComesFirstIsBounded(t *testing.T) {
	const many = 20_000
	img := &bootstrap.Image{Blobs: make([]bootstrap.Blob, 1)}
	etc, lib := map[string]*bootstrap.Inode{}, map[string]*bootstrap.Inode{}
	for i := range many {
		img.Chunks = append(img.Chunks, bootstrap.Chunk{Index: uint32(i), Size: 1, DeviceOffset: int64(i) * 4096})
		etc[fmt.Sprintf("python3.%d", i)] = &bootstrap.Inode{Mode: bootstrap.TypeRegular, Size: 1, Chunks: []uint32{uint32(i)}}
	}
	long := &bootstrap.Inode{Mode: bootstrap.TypeRegular | 0o755, Size: 4096, Chunks: []uint32{0}}
	for i := range many {
		lib[fmt.Sprintf("libz.so.1.%d", i)] = long
	}
	lib["libc.so.6"] = long
	img.Root = &bootstrap.Inode{Mode: bootstrap.TypeDir, Children: map[string]*bootstrap.Inode{
		"etc": {Mode: bootstrap.TypeDir, Children: etc}, "lib": {Mode: bootstrap.TypeDir, Children: lib}}}
	if first, _ := plan(img, Prefetch{}); len(first) > firstTotal/4096 {
		t.Errorf("%d steps come first, want %d at the most", len(first), firstTotal/4096)
	}
	if found := calledAs(img, []string{"libz.so.1*", "libc.so.6"})[0]; len(found) != 1 {
		t.Errorf("a file with %d names is found %d times", many+1, len(found))
	}
}

func TestFaultsAreLocatedInAFile(t *testing.T) {
	p := placesOf(small())
	if name, at := p.find(1, 4096+5); name != "a" || at != 4096+5 {
		t.Errorf("got %q at %d", name, at)
	}
	if name, at := p.find(0, 4096+7); name != "dir/c" || at != 7 {
		t.Errorf("got %q at %d", name, at)
	}
	if name, _ := p.find(0, 1<<30); name != "" {
		t.Errorf("got %q behind the end", name)
	}
}

func TestOverlappingChunksAreRefused(t *testing.T) {
	a, b := bootstrap.Chunk{DeviceOffset: 0, Size: 5000, Length: 1}, bootstrap.Chunk{DeviceOffset: 4096, Size: 10, Length: 1}
	if _, err := ordered([]bootstrap.Chunk{b, a}); !errors.Is(err, bootstrap.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	other := a
	other.Digest[0] = 1
	if _, err := ordered([]bootstrap.Chunk{a, other}); !errors.Is(err, bootstrap.ErrInvalid) {
		t.Errorf("two contents in one place: got %v", err)
	}
	b.DeviceOffset = 8192
	got, err := ordered([]bootstrap.Chunk{b, a, a})
	check(t, err)
	if diff := cmp.Diff([]bootstrap.Chunk{a, b}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// What one image says of a blob must not decide what another one reads.
func TestEachViewOfABlobHasAFileOfItsOwn(t *testing.T) {
	blob := bootstrap.Blob{Digest: digest.FromString("blob"), DeviceSize: 8192}
	chunk := bootstrap.Chunk{Length: 10, Size: 100}
	names := map[string]bool{viewName(&blob, []bootstrap.Chunk{chunk}): true}
	for _, change := range []func(b *bootstrap.Blob, c *bootstrap.Chunk){
		func(*bootstrap.Blob, *bootstrap.Chunk) {},
		func(b *bootstrap.Blob, _ *bootstrap.Chunk) { b.Digest = digest.FromString("other") },
		func(b *bootstrap.Blob, _ *bootstrap.Chunk) { b.DeviceSize = 4096 },
		func(b *bootstrap.Blob, _ *bootstrap.Chunk) { b.Compressor = bootstrap.Zstd },
		func(_ *bootstrap.Blob, c *bootstrap.Chunk) { c.Digest[5] = 1 },
		func(_ *bootstrap.Blob, c *bootstrap.Chunk) { c.DeviceOffset = 4096 },
		func(_ *bootstrap.Blob, c *bootstrap.Chunk) { c.Offset = 1 },
	} {
		b, c := blob, chunk
		change(&b, &c)
		names[viewName(&b, []bootstrap.Chunk{c})] = true
	}
	if len(names) != 7 {
		t.Errorf("%d names for 7 views", len(names))
	}
}

func TestRecordsAreFoundByTheirTargetOnly(t *testing.T) {
	dir := t.TempDir()
	want := record{Target: "/a", Image: "i", Bootstrap: "/b", Devices: []fanotify.File{{Dev: 1, Ino: 2}}, Supers: []erofs.Super{"erofs-3"}, Group: fanotify.File{Ino: 9}}
	check(t, want.write(dir))
	if diff := cmp.Diff(want, readRecord(dir, "/a")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff(record{}, readRecord(dir, "/b")); diff != "" {
		t.Errorf("another target: -want +got:\n%s", diff)
	}
	check(t, removeRecord(dir, "/a"))
	check(t, removeRecord(dir, "/a"))
	if diff := cmp.Diff(record{}, readRecord(dir, "/a")); diff != "" {
		t.Errorf("removed: -want +got:\n%s", diff)
	}
}

func TestUnknownKindsAreRefused(t *testing.T) {
	if _, _, err := Open(t.Context(), "loop", Config{Dir: t.TempDir()}); err == nil {
		t.Error("opened a driver nobody has")
	}
}

func TestWhatIsFetchedAheadIsParsed(t *testing.T) {
	for text, want := range map[string]Prefetch{
		"": {}, "whole": {}, "none": {None: true}, "/a": {Files: []string{"/a"}}, "/a/b,/c": {Files: []string{"/a/b", "/c"}},
	} {
		if got, err := ParsePrefetch(text); err != nil || got.None != want.None || !slices.Equal(got.Files, want.Files) {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"all", "/a,", "/a, /b", ","} {
		if _, err := ParsePrefetch(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
