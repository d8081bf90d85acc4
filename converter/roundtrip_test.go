package converter_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/snapshotter/readfs"
	"golang.org/x/sys/unix"
)

// debianBase is the image hack/base-image makes: a real Debian.
func debianBase(t *testing.T) v1.Image {
	t.Helper()
	cache := os.Getenv("SHOAL_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		check(t, err)
		cache = filepath.Join(home, ".cache/shoal")
	}
	path, err := layout.FromPath(filepath.Join(cache, "base"))
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") == "1" {
			t.Fatalf("no base image and REQUIRE_TOOLS=1: %v", err)
		}
		t.Skipf("SKIPPED: no base image; run hack/setup image: %v", err)
	}
	index, err := path.ImageIndex()
	check(t, err)
	manifest, err := index.IndexManifest()
	check(t, err)
	img, err := path.Image(manifest.Manifests[0].Digest)
	check(t, err)
	return img
}

// withLayers puts layers of plain tars on an image.
func withLayers(t *testing.T, img v1.Image, tars ...[]byte) v1.Image {
	t.Helper()
	for _, raw := range tars {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(gzipped(t, raw))), nil },
			tarball.WithMediaType(types.OCILayer))
		check(t, err)
		img, err = mutate.AppendLayers(img, l)
		check(t, err)
	}
	return img
}

// oddFolder makes, by the system's own tools, what images hold seldom.
func oddFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	odd := filepath.Join(dir, "odd")
	check(t, os.MkdirAll(filepath.Join(odd, "deep/er"), 0o755))
	long := strings.Repeat("n", 255)
	for name, data := range map[string][]byte{
		"capable": []byte("#!/bin/sh\n"), "caf\xe9": []byte("no UTF-8"), long: []byte("long"), "deep/" + long: []byte("long"), "big": noise(7, 3<<20+1),
		"twin": noise(7, 3<<20+1), "zeros": make([]byte, 2<<20), "new\nline": []byte("x"), "deep/er/block": noise(8, 4096),
	} {
		check(t, os.WriteFile(filepath.Join(odd, name), data, 0o644))
	}
	run(t, nil, need(t, "setcap"), "cap_net_raw+ep", filepath.Join(odd, "capable"))
	for _, name := range []string{"first", "second", "deep/er/third"} {
		check(t, os.Link(filepath.Join(odd, "big"), filepath.Join(odd, name)))
	}
	sparse := filepath.Join(odd, "sparse")
	check(t, os.WriteFile(sparse, noise(9, 5000), 0o600))
	check(t, os.Truncate(sparse, 20<<20))
	f, err := os.OpenFile(sparse, os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteAt([]byte("in the middle"), 9<<20+77)
	check(t, err)
	check(t, f.Close())
	check(t, unix.Mknod(filepath.Join(odd, "tty"), unix.S_IFCHR|0o620, int(unix.Mkdev(5, 1))))
	check(t, unix.Mknod(filepath.Join(odd, "disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	check(t, unix.Mkfifo(filepath.Join(odd, "fifo"), 0o622))
	l, err := net.Listen("unix", filepath.Join(dir, "s")) // tar leaves sockets out
	check(t, err)
	t.Cleanup(func() { _ = l.Close() })
	check(t, os.Rename(filepath.Join(dir, "s"), filepath.Join(odd, "socket")))
	check(t, os.Symlink(strings.Repeat("t/", 2000), filepath.Join(odd, "far")))
	check(t, os.Symlink("\xff\xfe", filepath.Join(odd, "odd target")))
	check(t, unix.Setxattr(filepath.Join(odd, "deep"), "user.of a folder", []byte("yes"), 0))
	check(t, unix.Setxattr(filepath.Join(odd, "deep"), "trusted.note", []byte("t"), 0))
	check(t, os.Chown(filepath.Join(odd, "deep/er/block"), 12345, 54321))
	check(t, os.Chmod(filepath.Join(odd, "deep/er"), fs.ModeSetgid|fs.ModeSticky|0o751))
	when := time.Unix(1_600_000_000, 123_456_789)
	check(t, os.Chtimes(filepath.Join(odd, "zeros"), when, when))
	old := time.Unix(-12345, 0)
	check(t, os.Chtimes(filepath.Join(odd, "twin"), old, old))
	return dir
}

// oddLayers are the folder as a tar, once in each format, and layers that change it.
func oddLayers(t *testing.T) [][]byte {
	t.Helper()
	folder := oddFolder(t)
	out := func(args ...string) []byte {
		cmd := exec.CommandContext(t.Context(), need(t, "tar"), append([]string{"-C", folder, "-c"}, args...)...)
		data, err := cmd.Output() // it warns of the socket
		check(t, err)
		return data
	}
	lower := out("--xattrs", "--xattrs-include=*", "--format=pax", "--sparse", "odd")
	gnu := out("--format=gnu", "--transform=s,^odd,odd-gnu,", "odd/sparse", "odd/far", "odd/deep")
	changed := tarOf(t,
		file("odd/.wh.second", ""), link(tar.TypeLink, "odd/of lower", "odd/twin"), file("odd/.wh.twin", ""), // a link outlives its target
		dir("odd/deep"), link(tar.TypeLink, "odd/deep/kept", "odd/capable"), file("odd/deep/.wh..wh..opq", ""), file("odd/deep/fresh", "fresh"),
		file("odd/fifo", "a file now"), dir("odd/zeros"), file("odd/zeros/inside", "a folder now"),
		link(tar.TypeSymlink, "odd/way", "zeros"), file("odd/way/by link", "through a link"), link(tar.TypeLink, "odd/way/hard", "odd/way/by link"),
		file("odd-gnu", "a file now"), file("odd/first", "first, later"))
	again := tarOf(t,
		dir("odd-gnu"), file("odd-gnu/x", "a folder again"), file("odd/zeros/.wh.inside", ""), dir("odd/way"), file("odd/way/y", "no link any more"),
		file("odd/.wh.disk", ""), entry{tar.Header{Typeflag: tar.TypeChar, Name: "odd/disk", Mode: 0o600, Devmajor: 1, Devminor: 7}, ""},
		dir("odd/new"), file("odd/new/.wh..wh..opq", ""), dir("odd/new/sub"), file("odd/new/sub/.wh..wh..opq", ""), file("odd/new/sub/z", "z"))
	return [][]byte{lower, gnu, changed, again}
}

// TestRootEveryReaderShowsTheSameImage converts a real Debian with odd layers on it. What umoci unpacks of the plain variant, the
// kernel and nydusd mount and readfs reads of the Nydus variant must be the same in every attribute and byte.
func TestRootEveryReaderShowsTheSameImage(t *testing.T) {
	needRoot(t)
	j := &judged{registry: dockerRegistry(t)}
	j.target = j.registry + "/ml/tiny:v1"
	model := writeModel(t, time.Now(), 0o600)
	j.model = sums(t, model)
	var err error
	j.result, err = converter.Convert(t.Context(), converter.Config{
		Model: model, Base: writeLayout(t, withLayers(t, debianBase(t), oddLayers(t)...)), Target: j.target,
	})
	check(t, err)
	nydus := j.fetchNydus(t)
	kernel := tree(t, mountKernel(t, nydus))
	t.Logf("%d files", len(kernel))
	if kernel["odd/first"].Content == "" || kernel["odd/deep/kept"].Xattrs["security.capability"] == "" || kernel["odd/of lower"].Size != 3<<20+1 {
		t.Errorf("the odd layers are not there")
	}
	t.Run("umoci", func(t *testing.T) {
		dir := t.TempDir()
		run(t, nil, need(t, "skopeo"), "copy", "--quiet", "--src-tls-verify=false", "docker://"+j.target, "oci:"+dir+"/oci:v1")
		run(t, nil, need(t, "umoci"), "unpack", "--image", dir+"/oci:v1", dir+"/bundle")
		wantSameTree(t, "umoci", withoutFolderTimes(tree(t, dir+"/bundle/rootfs")), withoutFolderTimes(kernel))
	})
	t.Run("nydusd", func(t *testing.T) {
		mnt := j.mountNydusd(t, nydus, map[string]any{"type": "localfs", "config": map[string]any{"dir": nydus.blobs}})
		got := tree(t, mnt)
		got["."] = kernel["."] // of the mount point
		for path, n := range got {
			if kernel[path].Mtime == 0 { // in which place nydusd shows the time it was started
				n.Mtime = 0
				got[path] = n
			}
		}
		wantSameTree(t, "nydusd", got, kernel)
	})
	t.Run("readfs", func(t *testing.T) { wantSameTree(t, "readfs", treeOfReadFS(t, nydus), kernel) })
}

func wantSameTree(t *testing.T, who string, got, kernel map[string]node) {
	t.Helper()
	if diff := cmp.Diff(kernel, got); diff != "" {
		t.Errorf("the kernel's tree and that of %s (-kernel +%s):\n%.6000s", who, who, diff)
	}
}

// withoutFolderTimes leaves out what an unpacker gives folders it changed, and all of the root.
func withoutFolderTimes(nodes map[string]node) map[string]node {
	out := map[string]node{}
	for path, n := range nodes {
		if strings.HasPrefix(n.Mode, "4") {
			n.Mtime = 0
		}
		if path != "." {
			out[path] = n
		}
	}
	return out
}

// treeOfReadFS lists the Nydus variant as readfs shows it.
func treeOfReadFS(t *testing.T, v *nydusVariant) map[string]node {
	t.Helper()
	raw, err := os.ReadFile(v.bootstrap)
	check(t, err)
	img, err := bootstrap.Decode(bytes.NewReader(raw), int64(len(raw)))
	check(t, err)
	f, err := readfs.New(img, readfs.Config{Open: func(b *bootstrap.Blob) (io.ReaderAt, error) {
		return os.Open(filepath.Join(v.blobs, b.Digest.Encoded()))
	}})
	check(t, err)
	defer func() { check(t, f.Close()) }()
	out, names := map[string]node{}, map[*bootstrap.Inode]uint64{}
	check(t, img.Walk(func(path string, in *bootstrap.Inode) error {
		n := node{Mode: fmt.Sprintf("%o", in.Mode), UID: in.UID, GID: in.GID, Mtime: in.Mtime, Link: in.Link, Xattrs: in.Xattrs, Rdev: unix.Mkdev(in.Major, in.Minor)}
		if path == "" {
			path = "."
		}
		if in.Type() == bootstrap.TypeRegular {
			names[in]++
			data, err := fs.ReadFile(f, path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(data)
			n.Content, n.Size = hex.EncodeToString(sum[:]), in.Size
		}
		out[path] = n
		return nil
	}))
	check(t, img.Walk(func(path string, in *bootstrap.Inode) error {
		if in.Type() == bootstrap.TypeRegular {
			n := out[path]
			n.Nlink = names[in]
			out[path] = n
		}
		return nil
	}))
	return out
}
