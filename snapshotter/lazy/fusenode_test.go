package lazy

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// Many files in deep folders with long names take no more memory than others: their paths are made when they are needed.
func TestDeepTreesTakeLittleMemory(t *testing.T) {
	const depth, files, most = 500, 2000, 16 << 20
	folder := func() *bootstrap.Inode {
		return &bootstrap.Inode{Mode: bootstrap.TypeDir | 0o755, Children: map[string]*bootstrap.Inode{}}
	}
	img := &bootstrap.Image{ChunkSize: 4096, Blobs: make([]bootstrap.Blob, 1), Chunks: []bootstrap.Chunk{{Size: 4096}}, Root: folder()}
	name, at := strings.Repeat("n", 250), img.Root
	for range depth {
		at.Children[name] = folder()
		at = at.Children[name]
	}
	var last *bootstrap.Inode
	for i := range files {
		last = &bootstrap.Inode{Mode: bootstrap.TypeRegular, Size: 4096, Chunks: []uint32{0}}
		at.Children[fmt.Sprint(i)] = last
	}
	want := strings.Repeat(name+"/", depth) + fmt.Sprint(files-1)

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	tree, p := newTree(nil, &fuseMount{img: img}), placesOf(img)
	runtime.ReadMemStats(&after)
	if taken := after.TotalAlloc - before.TotalAlloc; taken > most {
		t.Errorf("%d bytes for %d files, want at most %d", taken, files, most)
	}
	if got := tree.path(last); got != want {
		t.Errorf("a path of %d bytes, want %d", len(got), len(want))
	}
	if got, _ := p.find(0, 7); got != strings.Repeat(name+"/", depth)+"0" {
		t.Errorf("found %d bytes of a path", len(got))
	}
}
