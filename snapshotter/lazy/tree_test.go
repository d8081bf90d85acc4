package lazy

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// manyFiles is what a large framework has.
const manyFiles = 70_000

// treeIn lists what can be known of all files below a folder without reading them.
func treeIn(t testing.TB, dir string) map[string]string {
	t.Helper()
	out, inodes := map[string]string{}, map[uint64]string{}
	check(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		first := inodes[st.Ino]
		if first == "" {
			inodes[st.Ino] = name
		}
		link, _ := os.Readlink(path) // of others there is none
		size := st.Size
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			size = 0 // a file system's own matter
		}
		out[name] = fmt.Sprintf("%o %d:%d links %d size %d mtime %d rdev %x same as %q link %q xattrs %q", st.Mode, st.Uid, st.Gid, st.Nlink, size,
			st.Mtim.Sec, st.Rdev, first, link, xattrs(t, path))
		return nil
	}))
	return out
}

func xattrs(t testing.TB, path string) (out []string) {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	check(t, err)
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 4096)
		m, err := unix.Lgetxattr(path, name, value)
		check(t, err)
		out = append(out, name+"="+string(value[:m]))
	}
	return out
}

// addMany adds a folder with many files, of which every hundredth is not empty: of a few bytes, of some chunks, or with zeros at its end.
func (w *world) addMany(t testing.TB) {
	t.Helper()
	var out bytes.Buffer
	p, err := bootstrap.NewPacker(&out, chunkSize, bootstrap.Zstd, nil)
	check(t, err)
	defer p.Close()
	many := &bootstrap.Inode{Mode: bootstrap.TypeDir | 0o755, Children: map[string]*bootstrap.Inode{}}
	for i := range manyFiles {
		n := &bootstrap.Inode{Mode: bootstrap.TypeRegular | 0o600, Mtime: int64(i)}
		name := fmt.Sprint("f", i)
		many.Children[name] = n
		if i%100 > 0 {
			continue
		}
		data := fmt.Appendf(nil, "file %d", i)
		switch i % 1000 {
		case 0:
			data = append(data, noise(uint64(i), i*3)...)
		case 500:
			data = append(data, make([]byte, 2*chunkSize)...)
		}
		n.Size = int64(len(data))
		check(t, p.Add(n, bytes.NewReader(data)))
		w.files["many/"+name] = data
	}
	packed, err := p.Finish()
	check(t, err)
	bootstrap.NewBuilder(w.img).Add(packed) // what was there before is not listed again
	check(t, os.WriteFile(w.origin.path(packed.Blob.Digest), out.Bytes(), 0o600))
	w.img.Root.Children["many"] = many
	raw, err := bootstrap.Encode(w.img)
	check(t, err)
	check(t, os.WriteFile(w.boot, raw, 0o600))
	w.addMaps(t)
}

func TestRootDriversShowTheSameTree(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 1<<20)
	w.addMany(t)
	trees := map[bool]map[string]string{}
	for _, w.fuse = range []bool{false, true} {
		n, err := w.start(t.Context(), w.noKeeper(), os.Stderr)
		check(t, err)
		check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
		trees[w.fuse] = treeIn(t, w.target)
		w.wantSums(t, "read", w.names("many/")...)
		check(t, n.Unmount(t.Context(), w.target))
		check(t, n.stop())
	}
	if len(trees[true]) < manyFiles+len(w.names("fw")) {
		t.Errorf("%d files", len(trees[true]))
	}
	if diff := cmp.Diff(trees[false], trees[true]); diff != "" {
		t.Errorf("-erofs +fuse:\n%.2000s", diff)
	}
}
