package readfs

import (
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// maxLinkHops bounds how many symbolic links one path may lead through, as the kernel does.
const maxLinkHops = 40

// Lookup returns the inode at a path of io/fs's form, which here need not be UTF-8. Symbolic links on the way are followed
// as if the tree's root were the system's; one in the last place is followed if follow is set.
func (f *FS) Lookup(name string, follow bool) (*bootstrap.Inode, error) {
	pending, err := components(name)
	if err != nil {
		return nil, err
	}
	stack, hops := []*bootstrap.Inode{f.img.Root}, 0
	for len(pending) > 0 {
		part := pending[0]
		pending = pending[1:]
		here := stack[len(stack)-1]
		switch {
		case part == "" || part == ".":
			continue
		case !here.IsDir():
			return nil, syscall.ENOTDIR
		case part == "..":
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		next := here.Children[part]
		if next == nil {
			return nil, fs.ErrNotExist
		}
		if next.Type() == bootstrap.TypeSymlink && (follow || len(pending) > 0) {
			if hops++; hops > maxLinkHops {
				return nil, syscall.ELOOP
			}
			if strings.HasPrefix(next.Link, "/") {
				stack = stack[:1]
			}
			pending = append(strings.Split(next.Link, "/"), pending...)
			continue
		}
		stack = append(stack, next)
	}
	return stack[len(stack)-1], nil
}

// components splits a valid path. fs.ValidPath refuses names that are no UTF-8, which files may have.
func components(name string) ([]string, error) {
	if name == "." {
		return nil, nil
	}
	parts := strings.Split(name, "/")
	for _, part := range parts {
		if part == "" || part == "." || part == ".." {
			return nil, fs.ErrInvalid
		}
	}
	return parts, nil
}

func (f *FS) lookup(op, name string, follow bool) (*bootstrap.Inode, error) {
	n, err := f.Lookup(name, follow)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return n, nil
}

// Open opens a file of any type; only regular ones can be read, as io.ReaderAt and io.Seeker too.
func (f *FS) Open(name string) (fs.File, error) {
	n, err := f.lookup("open", name, true)
	if err != nil {
		return nil, err
	}
	if n.IsDir() {
		return &dir{file: file{fs: f, n: n, name: name}}, nil
	}
	return &file{fs: f, n: n, name: name}, nil
}

// ReadDir lists a directory in the order of names.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := f.lookup("readdir", name, true)
	if err != nil {
		return nil, err
	}
	if !n.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	return entries(n), nil
}

// ReadLink returns the target of a symbolic link.
func (f *FS) ReadLink(name string) (string, error) {
	n, err := f.lookup("readlink", name, false)
	if err != nil {
		return "", err
	}
	if n.Type() != bootstrap.TypeSymlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return n.Link, nil
}

// Stat describes a file; Sys of the result is its *bootstrap.Inode.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	n, err := f.lookup("stat", name, true)
	if err != nil {
		return nil, err
	}
	return info{path.Base(name), n}, nil
}

// Lstat is as Stat, but describes a symbolic link itself.
func (f *FS) Lstat(name string) (fs.FileInfo, error) {
	n, err := f.lookup("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return info{path.Base(name), n}, nil
}

var (
	_ fs.ReadDirFS  = (*FS)(nil)
	_ fs.StatFS     = (*FS)(nil)
	_ fs.ReadLinkFS = (*FS)(nil)
)
