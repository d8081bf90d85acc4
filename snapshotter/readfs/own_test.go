package readfs_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/snapshotter/erofs"
)

// ownImage packs files into one blob in the folder of i and writes its bootstrap. Files are made of few parts, so that chunks
// come again, in their own file, in others and in the dictionary.
func (i image) ownImage(t testing.TB, seed uint64, kind bootstrap.Compressor, dict *bootstrap.Dict) (*bootstrap.Image, map[string][]byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 5))
	parts := [][]byte{noise(11, 30*chunkSize), noise(12, chunkSize), bytes.Repeat([]byte("text"), chunkSize/4), make([]byte, chunkSize), noise(byte(seed), 10*chunkSize)}
	img := &bootstrap.Image{ChunkSize: chunkSize}
	b, tree := bootstrap.NewBuilder(img), bootstrap.NewTree()
	var out bytes.Buffer
	p, err := bootstrap.NewPacker(&out, chunkSize, kind, dict)
	check(t, err)
	for f := range 60 {
		var data []byte
		for range r.IntN(20) {
			data = append(data, parts[r.IntN(len(parts))]...)
		}
		data = append(data, noise(byte(r.IntN(3)), r.IntN(200))...)
		n := &bootstrap.Inode{Mode: bootstrap.TypeRegular | 0o644, Mtime: 1, Size: int64(len(data))}
		check(t, p.Add(n, bytes.NewReader(data)))
		check(t, tree.Add(fmt.Sprintf("dir/f%02d", f), n))
		if f%5 == 0 {
			img.Prefetch = append(img.Prefetch, n)
		}
	}
	tree.Root.Children["dir"].Mtime = 1
	packed, err := p.Finish()
	check(t, err)
	b.Add(packed)
	img.Root = tree.Root
	raw, err := bootstrap.Encode(img)
	check(t, err)
	check(t, os.WriteFile(i.boot, raw, 0o600))
	if len(packed.Chunks) > 0 {
		check(t, os.WriteFile(filepath.Join(i.blobs, packed.Blob.Digest.Encoded()), out.Bytes(), 0o600))
	}
	return img, b.Metas()
}

// mountKernel mounts an image by the kernel's EROFS, all its blobs expanded.
func (i image) mountKernel(t testing.TB, img *bootstrap.Image) string {
	t.Helper()
	var devices []string
	for n := range img.Blobs {
		blob, err := os.Open(filepath.Join(i.blobs, img.Blobs[n].Digest.Encoded()))
		check(t, err)
		device, err := os.Create(filepath.Join(t.TempDir(), "device"))
		check(t, err)
		check(t, bootstrap.Expand(device, blob, img, n))
		check(t, device.Truncate(img.Blobs[n].DeviceSize))
		check(t, device.Close())
		check(t, blob.Close())
		devices = append(devices, device.Name())
	}
	mnt := t.TempDir()
	check(t, erofs.Mount(i.boot, devices, mnt))
	t.Cleanup(func() { check(t, erofs.Unmount(mnt)) })
	return mnt
}

func TestRootOwnImagesReadAsKernelAndNydusdShowThem(t *testing.T) {
	needRoot(t)
	for _, kind := range []bootstrap.Compressor{bootstrap.None, bootstrap.LZ4, bootstrap.Zstd} {
		t.Run(fmt.Sprint("compressor ", kind), func(t *testing.T) {
			first := newImage(t)
			img, metas := first.ownImage(t, 1, kind, nil)
			run(t, need(t, "nydus-image"), "check", "--log-level", "error", first.boot)
			first.wantAsNydusd(t)
			_, f := openImage(t, first.boot, first.blobs)
			wantSame(t, "the kernel (-kernel +readfs)", treeIn(t, first.mountKernel(t, img)), treeOf(t, f))

			dict := bootstrap.NewDict(chunkSize, 9)
			check(t, dict.Add(img, metas))
			second := newImage(t)
			second.blobs = first.blobs
			img, metas = second.ownImage(t, 2, bootstrap.Zstd, dict)
			if len(img.Blobs) != 2 || len(metas) != 2 {
				t.Errorf("%d blobs", len(img.Blobs))
			}
			run(t, need(t, "nydus-image"), "check", "--log-level", "error", second.boot)
			second.wantAsNydusd(t)
			_, f = openImage(t, second.boot, second.blobs)
			wantSame(t, "the kernel (-kernel +readfs)", treeIn(t, second.mountKernel(t, img)), treeOf(t, f))
		})
	}
}

func TestRootACLsAreShownByKernelNydusdAndReadfs(t *testing.T) {
	needRoot(t)
	// Version 2; the owner rw, user 1000 r, group r, mask r, others r.
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	i, tree := newImage(t), bootstrap.NewTree()
	check(t, tree.Add("a", &bootstrap.Inode{Mode: bootstrap.TypeRegular | 0o644, Mtime: 1, Xattrs: map[string]string{"system.posix_acl_access": acl}}))
	check(t, tree.Add("d", &bootstrap.Inode{Mode: bootstrap.TypeDir | 0o755, Mtime: 1, Xattrs: map[string]string{"system.posix_acl_default": acl}}))
	check(t, tree.Add("d/b", &bootstrap.Inode{Mode: bootstrap.TypeRegular | 0o644, Mtime: 1}))
	check(t, tree.Add("d/c", &bootstrap.Inode{Mode: bootstrap.TypeRegular | 0o644, Mtime: 1}))
	img := &bootstrap.Image{ChunkSize: chunkSize, Root: tree.Root}
	raw, err := bootstrap.Encode(img)
	check(t, err)
	check(t, os.WriteFile(i.boot, raw, 0o600))
	i.wantAsNydusd(t)
	_, f := openImage(t, i.boot, i.blobs)
	wantSame(t, "the kernel (-kernel +readfs)", treeIn(t, i.mountKernel(t, img)), treeOf(t, f))
}
