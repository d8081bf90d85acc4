package readfs

import (
	"io"
	"io/fs"
	"path"
	"syscall"
	"time"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// file is an open file. Its methods other than ReadAt are not safe for concurrent use.
type file struct {
	fs   *FS
	n    *bootstrap.Inode
	name string
	off  int64
}

func (f *file) Stat() (fs.FileInfo, error) { return info{path.Base(f.name), f.n}, nil }

func (f *file) Close() error { return nil }

func (f *file) ReadAt(p []byte, off int64) (int, error) { return f.fs.ReadAt(f.n, f.name, p, off) }

func (f *file) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.off)
	f.off += int64(n)
	if n > 0 { // the same error comes again
		err = nil
	}
	return n, err
}

func (f *file) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += f.off
	case io.SeekEnd:
		off += f.n.Size
	}
	if off < 0 || whence < io.SeekStart || whence > io.SeekEnd {
		return 0, &fs.PathError{Op: "seek", Path: f.name, Err: fs.ErrInvalid}
	}
	f.off = off
	return off, nil
}

// dir is an open directory.
type dir struct {
	file
	list []fs.DirEntry
	read bool
}

func (d *dir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: syscall.EISDIR}
}

func (d *dir) ReadDir(n int) ([]fs.DirEntry, error) {
	if !d.read {
		d.list, d.read = entries(d.n), true
	}
	count := len(d.list)
	if n > 0 {
		if count == 0 {
			return nil, io.EOF
		}
		count = min(n, count)
	}
	out := d.list[:count:count]
	d.list = d.list[count:]
	return out, nil
}

func entries(n *bootstrap.Inode) []fs.DirEntry {
	names := n.Names()
	out := make([]fs.DirEntry, len(names))
	for i, name := range names {
		out[i] = fs.FileInfoToDirEntry(info{name, n.Children[name]})
	}
	return out
}

// info describes a file under one of its names.
type info struct {
	name string
	n    *bootstrap.Inode
}

func (i info) Name() string { return i.name }

// Size is the length of a regular file and of a link's target; that of a directory says nothing.
func (i info) Size() int64 {
	if i.n.Type() == bootstrap.TypeSymlink {
		return int64(len(i.n.Link))
	}
	return i.n.Size
}

func (i info) ModTime() time.Time { return time.Unix(i.n.Mtime, int64(i.n.MtimeNsec)) }
func (i info) IsDir() bool        { return i.n.IsDir() }
func (i info) Sys() any           { return i.n }

func (i info) Mode() fs.FileMode {
	mode := fs.FileMode(i.n.Mode & 0o777)
	for _, bit := range []struct {
		unix uint32
		mode fs.FileMode
	}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}} {
		if i.n.Mode&bit.unix != 0 {
			mode |= bit.mode
		}
	}
	switch i.n.Type() {
	case bootstrap.TypeDir:
		mode |= fs.ModeDir
	case bootstrap.TypeSymlink:
		mode |= fs.ModeSymlink
	case bootstrap.TypeFIFO:
		mode |= fs.ModeNamedPipe
	case bootstrap.TypeSocket:
		mode |= fs.ModeSocket
	case bootstrap.TypeBlock:
		mode |= fs.ModeDevice
	case bootstrap.TypeChar:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	}
	return mode
}
