package lazy

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

const (
	// fuseBlock is the unit in bytes in which the size of a mount is told.
	fuseBlock = 4096
	// fuseName is how many bytes a name may have. An overlay takes none that is longer than its layers say.
	fuseName = 255
)

// tree is what all nodes of a mount share.
type tree struct {
	driver *Fuse
	mount  *fuseMount
	facts  map[*bootstrap.Inode]fact
}

// fact is what the image does not say of an inode.
type fact struct {
	number uint64
	links  uint32
	// name is one of them, in the folder parent; the path is made when it is needed, since those of deep folders are long.
	name   string
	parent *bootstrap.Inode
}

func newTree(d *Fuse, m *fuseMount) *tree {
	t := &tree{driver: d, mount: m, facts: map[*bootstrap.Inode]fact{}}
	t.add(m.img.Root, nil, "")
	return t
}

// add notes a name of an inode, and all that is below it.
func (t *tree) add(n, parent *bootstrap.Inode, name string) {
	f, known := t.facts[n]
	if !known {
		f = fact{number: uint64(len(t.facts)) + 1, name: name, parent: parent}
		if n.IsDir() {
			f.links = 1
		}
	}
	f.links++
	t.facts[n] = f
	if !n.IsDir() {
		return
	}
	for _, name := range n.Names() {
		c := n.Children[name]
		if c.IsDir() {
			f.links++
		}
		t.add(c, n, name)
	}
	t.facts[n] = f
}

// path returns a path of an inode within the image, without a slash before it.
func (t *tree) path(n *bootstrap.Inode) string {
	var parts []string
	for f := t.facts[n]; f.parent != nil; f = t.facts[f.parent] {
		parts = append(parts, f.name)
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

func (t *tree) number(n *bootstrap.Inode) uint64 { return t.facts[n].number }

// fuseNode is a file of a mount.
type fuseNode struct {
	fs.Inode
	tree  *tree
	inode *bootstrap.Inode
}

var (
	_ fs.NodeLookuper    = (*fuseNode)(nil)
	_ fs.NodeReaddirer   = (*fuseNode)(nil)
	_ fs.NodeGetattrer   = (*fuseNode)(nil)
	_ fs.NodeStatfser    = (*fuseNode)(nil)
	_ fs.NodeReadlinker  = (*fuseNode)(nil)
	_ fs.NodeGetxattrer  = (*fuseNode)(nil)
	_ fs.NodeListxattrer = (*fuseNode)(nil)
	_ fs.NodeOpener      = (*fuseNode)(nil)
	_ fs.NodeReader      = (*fuseNode)(nil)
)

func (n *fuseNode) stable(c *bootstrap.Inode) fs.StableAttr {
	return fs.StableAttr{Mode: c.Type(), Ino: n.tree.number(c)}
}

// Lookup implements fs.NodeLookuper.
func (n *fuseNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	c := n.inode.Children[name]
	if c == nil {
		return nil, syscall.ENOENT
	}
	child := &fuseNode{tree: n.tree, inode: c}
	child.attr(&out.Attr)
	return n.NewInode(ctx, child, n.stable(c)), 0
}

// Readdir implements fs.NodeReaddirer.
func (n *fuseNode) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	names := n.inode.Names()
	list := make([]fuse.DirEntry, 0, len(names))
	for _, name := range names {
		at := n.stable(n.inode.Children[name])
		list = append(list, fuse.DirEntry{Name: name, Mode: at.Mode, Ino: at.Ino})
	}
	return fs.NewListDirStream(list), 0
}

// Getattr implements fs.NodeGetattrer.
func (n *fuseNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	return 0
}

func (n *fuseNode) attr(out *fuse.Attr) {
	i, f := n.inode, n.tree.facts[n.inode]
	*out = fuse.Attr{Ino: f.number, Mode: i.Mode, Nlink: f.links, Owner: fuse.Owner{Uid: i.UID, Gid: i.GID}, Blksize: fuseBlock,
		Rdev: uint32(unix.Mkdev(i.Major, i.Minor)), Mtime: uint64(i.Mtime), Mtimensec: i.MtimeNsec, Ctime: uint64(i.Mtime), Ctimensec: i.MtimeNsec,
		Atime: uint64(i.Mtime), Atimensec: i.MtimeNsec}
	switch i.Type() {
	case bootstrap.TypeRegular:
		out.Size = uint64(i.Size)
	case bootstrap.TypeSymlink:
		out.Size = uint64(len(i.Link))
	}
	out.Blocks = (out.Size + 511) / 512
}

// Statfs implements fs.NodeStatfser: the image's devices are all there is, and there is no room.
func (n *fuseNode) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	*out = fuse.StatfsOut{Bsize: fuseBlock, Frsize: fuseBlock, NameLen: fuseName, Files: uint64(len(n.tree.facts))}
	for i := range n.tree.mount.img.Blobs {
		out.Blocks += uint64(n.tree.mount.img.Blobs[i].DeviceSize) / fuseBlock
	}
	return 0
}

// Readlink implements fs.NodeReadlinker.
func (n *fuseNode) Readlink(context.Context) ([]byte, syscall.Errno) { return []byte(n.inode.Link), 0 }

// Getxattr implements fs.NodeGetxattrer.
func (n *fuseNode) Getxattr(_ context.Context, name string, dest []byte) (uint32, syscall.Errno) {
	value, ok := n.inode.Xattrs[name]
	if !ok {
		return 0, fs.ENOATTR
	}
	return fit(dest, value)
}

// Listxattr implements fs.NodeListxattrer.
func (n *fuseNode) Listxattr(_ context.Context, dest []byte) (uint32, syscall.Errno) {
	var names []string
	for name := range n.inode.Xattrs {
		names = append(names, name+"\x00")
	}
	slices.Sort(names)
	return fit(dest, strings.Join(names, ""))
}

// fit copies an answer of any length, as getxattr(2) wants it.
func fit(dest []byte, value string) (uint32, syscall.Errno) {
	if len(dest) < len(value) {
		return uint32(len(value)), syscall.ERANGE
	}
	return uint32(copy(dest, value)), 0
}

// Open implements fs.NodeOpener. What the kernel has read of a file stays right.
func (n *fuseNode) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&(unix.O_WRONLY|unix.O_RDWR) != 0 {
		return nil, 0, syscall.EROFS
	}
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

// Read implements fs.NodeReader.
func (n *fuseNode) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	got, err := n.tree.mount.files.ReadAt(n.inode, n.tree.facts[n.inode].name, dest, off)
	if err != nil && !errors.Is(err, io.EOF) {
		n.tree.driver.faults.tell(err, func() []any {
			return []any{"image", n.tree.mount.image.Name, "file", n.tree.path(n.inode), "offset", off}
		})
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dest[:got]), 0
}
