package readfs_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/snapshotter/erofs"
)

// A bootstrap with any bit flipped is refused, by us or by the kernel, or the kernel shows what was decoded.
func TestRootTheKernelShowsWhatWasDecoded(t *testing.T) {
	needRoot(t)
	const mutants, metaBlock = 400, 1024 + 40
	i := newImage(t)
	img, _ := i.ownImage(t, 1, bootstrap.None, nil)
	device := filepath.Join(t.TempDir(), "device")
	data, err := os.ReadFile(filepath.Join(i.blobs, img.Blobs[0].Digest.Encoded()))
	check(t, err)
	data = append(data, make([]byte, max(0, img.Blobs[0].DeviceSize-int64(len(data))))...)
	check(t, os.WriteFile(device, data, 0o600))
	raw, err := os.ReadFile(i.boot)
	check(t, err)
	inodes, r, mounted := int(binary.LittleEndian.Uint32(raw[metaBlock:]))*4096, rand.New(rand.NewPCG(7, 7)), 0
	for range mutants {
		bad, at := bytes.Clone(raw), r.IntN(len(raw))
		switch r.IntN(4) {
		case 0: // the superblock
			at = 1024 + r.IntN(128)
		case 1, 2: // of the inodes what is no zero
			for at < inodes || raw[at] == 0 {
				at = r.IntN(len(raw))
			}
		}
		bad[at] ^= 1 << r.IntN(8)
		img, err := bootstrap.Decode(bytes.NewReader(bad), int64(len(bad)))
		if err != nil {
			continue
		}
		check(t, os.WriteFile(i.boot, bad, 0o600))
		t.Run(fmt.Sprintf("byte %d %#x is %#x", at, raw[at], bad[at]), func(t *testing.T) {
			mnt := t.TempDir()
			if erofs.Mount(i.boot, []string{device}, mnt) != nil {
				return
			}
			defer func() { check(t, erofs.Unmount(mnt)) }()
			mounted++
			if diff := cmp.Diff(treeIn(t, mnt), treeOn(t, img, data), cmpopts.IgnoreFields(node{}, "Nlink")); diff != "" {
				t.Errorf("-kernel +decoded:\n%.2000s", diff)
			}
		})
	}
	if mounted < mutants/10 {
		t.Errorf("%d of %d were mounted: it proves little", mounted, mutants)
	}
}

// treeOn lists all files of an image of one device, as treeIn does; how many names they have is not compared.
func treeOn(t *testing.T, img *bootstrap.Image, device []byte) map[string]node {
	t.Helper()
	out := map[string]node{}
	check(t, img.Walk(func(path string, in *bootstrap.Inode) error {
		n := node{Mode: fmt.Sprintf("%o", in.Mode), UID: in.UID, GID: in.GID, Mtime: in.Mtime, Nsec: int64(in.MtimeNsec), Link: in.Link, Xattrs: in.Xattrs}
		switch in.Type() {
		case bootstrap.TypeRegular:
			content := sha256.New()
			for _, at := range in.Chunks {
				c := &img.Chunks[at]
				content.Write(device[c.DeviceOffset:][:c.Size])
			}
			n.Content, n.Size = hex.EncodeToString(content.Sum(nil)), in.Size
		case bootstrap.TypeChar, bootstrap.TypeBlock:
			n.Rdev = unix.Mkdev(in.Major, in.Minor)
		}
		if path == "" {
			path = "."
		}
		out[path] = n
		return nil
	}))
	return out
}
