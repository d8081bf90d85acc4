// Package source reads what an image is made of: a folder with a model, and the base image with the framework.
package source

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"unicode/utf8"
)

// ErrModel is the class of model folders that cannot be converted. The error names the file.
var ErrModel = errors.New("model")

// whiteoutPrefix begins the names by which a layer's tar removes files of lower layers.
const whiteoutPrefix = ".wh."

// File is one name in a model folder.
type File struct {
	Path       string // slash-separated, relative to the folder
	Mode       fs.FileMode
	Executable bool   // by anyone
	Link       string // target of a symbolic link that is kept
	Size       int64  // of a regular file in bytes

	real string // where the content is
}

// Open returns the content of a regular file.
func (f *File) Open() (io.ReadCloser, error) { return os.Open(f.real) }

// Walk lists the folder with all below it, in byte order of the path, parents first. The folder itself is not listed.
//
// A symbolic link that is relative and stays in the folder is kept. One that leads out of it to a file, as in the caches of
// model hubs, is replaced by the file. Every regular file is opened once, so that one that cannot be read is known at once.
func Walk(dir string) ([]File, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("%w folder: %w", ErrModel, err)
	}
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("%w folder: %w", ErrModel, err)
	}
	if root, err = filepath.Abs(root); err != nil {
		return nil, fmt.Errorf("%w folder: %w", ErrModel, err)
	}
	if info, err := os.Stat(root); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("%w folder %s is no folder", ErrModel, dir)
	}
	var files []File
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("%w: %w", ErrModel, err)
		}
		if path == root {
			return nil
		}
		f, err := newFile(root, path, d)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrModel, err)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		return nil, err
	}
	sort.Slice(files, func(i, j int) bool { return less(files[i].Path, files[j].Path) })
	for i := range files {
		if files[i].Mode.IsRegular() {
			return files, nil
		}
	}
	return nil, fmt.Errorf("%w folder %s holds no file", ErrModel, dir)
}

// less orders paths so that a folder's content follows it at once.
func less(a, b string) bool {
	return strings.ReplaceAll(a, "/", "\x00") < strings.ReplaceAll(b, "/", "\x00")
}

func newFile(root, path string, d fs.DirEntry) (File, error) {
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return File{}, err
	}
	f := File{Path: filepath.ToSlash(rel), real: path}
	if !utf8.ValidString(f.Path) {
		return File{}, fmt.Errorf("%q: the name is not UTF-8; rename it", path)
	}
	if strings.HasPrefix(d.Name(), whiteoutPrefix) {
		return File{}, fmt.Errorf("%s: a name with %s hides files when the layer is unpacked; rename it", path, whiteoutPrefix)
	}
	info, err := d.Info()
	if err != nil {
		return File{}, err
	}
	if info.Mode().Type() == fs.ModeSymlink {
		kept, err := f.keepLink(root)
		if err != nil || kept {
			return f, err
		}
		if info, err = os.Stat(f.real); err != nil {
			return File{}, err
		}
		if info.IsDir() {
			return File{}, fmt.Errorf("%s: a symbolic link to the folder %s that is absolute or leads out of the model; "+
				"make it relative, or copy the folder into the model", path, f.real)
		}
	}
	f.Mode = info.Mode()
	switch {
	case info.IsDir():
		return f, nil
	case info.Mode().IsRegular():
		f.Size, f.Executable = info.Size(), info.Mode()&0o111 != 0
		return f, readable(f.real)
	}
	return File{}, fmt.Errorf("%s: neither file, folder nor symbolic link (%s); remove it", path, info.Mode().Type())
}

// keepLink decides whether the symbolic link at f.real stays one. If not, f.real is where it leads.
func (f *File) keepLink(root string) (bool, error) {
	link, err := os.Readlink(f.real)
	if err != nil {
		return false, err
	}
	target, err := filepath.EvalSymlinks(f.real)
	if err != nil {
		return false, fmt.Errorf("%s: symbolic link to %s: %w", f.real, link, err)
	}
	inside := target == root || strings.HasPrefix(target, root+string(filepath.Separator))
	if inside && !filepath.IsAbs(link) && f.staysBelow(filepath.ToSlash(link)) {
		f.Mode, f.Link = fs.ModeSymlink|0o777, filepath.ToSlash(link)
		return true, nil
	}
	f.real = target
	return false, nil
}

// staysBelow reports whether the way a link names never leaves the folder, whose own name the image may not have.
func (f *File) staysBelow(link string) bool {
	depth := strings.Count(f.Path, "/")
	for part := range strings.SplitSeq(link, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return false
			}
		default:
			depth++
		}
	}
	return true
}

func readable(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return file.Close()
}
