package lazy

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/snapshotter/erofs"
)

const benchSize = 512 << 20

// drain reads a file in a process of its own and discards it.
func drain(b *testing.B, name string) {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), "dd", "if="+name, "of=/dev/null", "bs=1M", "status=none").CombinedOutput()
	if err != nil {
		b.Fatalf("%v: %s", err, out)
	}
}

// forget drops a file from the page cache.
func forget(b *testing.B, name string) {
	b.Helper()
	f, err := os.Open(name)
	check(b, err)
	defer f.Close()
	check(b, unix.Fdatasync(int(f.Fd())))
	check(b, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// The first read of a model that comes from an origin on this machine, whose bytes are in memory.
func BenchmarkRootFirstFill(b *testing.B) {
	needKernel(b)
	for name, ahead := range map[string]Prefetch{"ahead": {}, "on demand": {None: true}} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, benchSize)
			b.SetBytes(benchSize)
			for b.Loop() {
				b.StopTimer()
				n, err := w.start(b.Context(), w.noKeeper(), io.Discard)
				check(b, err)
				b.StartTimer()
				check(b, n.Mount(b.Context(), w.image(n, ahead), w.target))
				drain(b, filepath.Join(w.target, "models/model.bin"))
				b.StopTimer()
				check(b, n.Unmount(b.Context(), w.target))
				check(b, n.stop())
				check(b, os.RemoveAll(filepath.Join(w.dir, "store")))
				b.StartTimer()
			}
		})
	}
}

// Reads of a complete model, cold and warm, beside those of a plain file on the same disk.
func BenchmarkRootCompleteFile(b *testing.B) {
	needKernel(b)
	w := newWorld(b, benchSize)
	n, err := w.start(b.Context(), w.noKeeper(), io.Discard)
	check(b, err)
	defer func() { check(b, n.stop()) }()
	first := filepath.Join(w.dir, "first")
	check(b, os.Mkdir(first, 0o755))
	check(b, n.Mount(b.Context(), w.image(n, Prefetch{}), first))
	drain(b, filepath.Join(first, "models/model.bin"))
	eventually(b, "all is there", n.allWhole)
	check(b, n.Mount(b.Context(), w.image(n, Prefetch{}), w.target)) // a second one reads past the cache
	stored := filepath.Join(w.dir, "store", "sha256-"+w.model().Encoded(), "data")
	plain := filepath.Join(w.dir, "plain")
	data, err := os.ReadFile(stored)
	check(b, err)
	check(b, os.WriteFile(plain, data, 0o600))
	for name, file := range map[string]string{"ext4": plain, "lazy": filepath.Join(first, "models/model.bin"), "lazy direct": filepath.Join(w.target, "models/model.bin")} {
		b.Run(name+"/cold", func(b *testing.B) {
			b.SetBytes(benchSize)
			for b.Loop() {
				b.StopTimer()
				forget(b, plain)
				forget(b, stored)
				check(b, erofs.DropCaches(first))
				check(b, erofs.DropCaches(w.target))
				b.StartTimer()
				drain(b, file)
			}
		})
		b.Run(name+"/warm", func(b *testing.B) {
			b.SetBytes(benchSize)
			drain(b, file)
			for b.Loop() {
				drain(b, file)
			}
		})
	}
	check(b, n.Unmount(b.Context(), first))
	check(b, n.Unmount(b.Context(), w.target))
}
