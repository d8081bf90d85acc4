package lazy

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// After a start many images are mounted at once. What their bootstraps take in memory is that of the largest, not of all.
func TestImagesThatAreMountedAtOnceAreReadOneByOne(t *testing.T) {
	const files, images = 60_000, 4
	root := &bootstrap.Inode{Mode: bootstrap.TypeDir | 0o755, Children: map[string]*bootstrap.Inode{}}
	for i := range files {
		root.Children[fmt.Sprintf("file-%06d", i)] = &bootstrap.Inode{Mode: bootstrap.TypeRegular | 0o644}
	}
	raw, err := bootstrap.Encode(&bootstrap.Image{ChunkSize: 1 << 20, Root: root})
	check(t, err)
	image := Image{Bootstrap: filepath.Join(t.TempDir(), "boot")}
	check(t, os.WriteFile(image.Bootstrap, raw, 0o600))
	defer debug.SetGCPercent(debug.SetGCPercent(10)) // what is let go counts little
	used := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	runtime.GC()
	none := used()
	img, err := image.decode()
	check(t, err)
	runtime.GC()
	one := used() - none
	runtime.KeepAlive(img)

	var mounting sync.WaitGroup
	d := &Driver{}
	for range images {
		mounting.Go(func() {
			image := image
			if _, err := d.read(&image); err != nil {
				t.Error(err)
			}
		})
	}
	done, most := make(chan struct{}), uint64(0)
	go func() { mounting.Wait(); close(done) }()
	for {
		select {
		case <-done:
			t.Logf("one image takes %d KiB, %d at once %d KiB", one>>10, images, most>>10)
			if most > 3*one {
				t.Errorf("%d images take %d KiB at once, one takes %d KiB", images, most>>10, one>>10)
			}
			return
		default:
			most = max(most, used()-min(none, used()))
		}
	}
}
