package source

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// openLocal reads a folder, an archive or a single file.
func (s *session) openLocal(ref string) (*Model, error) {
	info, err := os.Stat(ref)
	if advice := spelling(ref); err != nil && advice != "" {
		return nil, fmt.Errorf("%w %s: %s", ErrModel, printable(ref), advice)
	}
	switch {
	case err != nil && hubName.MatchString(ref):
		return nil, fmt.Errorf("%w folder: %w; if it is on the hub, write hf://%s", ErrModel, err, ref)
	case err != nil:
		return nil, fmt.Errorf("%w folder: %w", ErrModel, err)
	case info.IsDir():
		files, err := s.walk(ref)
		if err != nil {
			return nil, err
		}
		return &Model{Name: folderName(ref), Local: true, Files: files}, nil
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w %s: neither file nor folder (%s)", ErrModel, ref, info.Mode().Type())
	}
	if err := readable(ref); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrModel, err)
	}
	base := filepath.Base(ref)
	switch kind, stem := archiveOf(base); kind {
	case tarArchive:
		return s.openLocalTar(ref, stem)
	case zipArchive:
		return s.openLocalZip(ref, stem)
	}
	f := File{Path: base, Mode: info.Mode(), Executable: info.Mode()&0o111 != 0, Size: info.Size(), real: ref, seen: stampOf(info)}
	files, err := s.single(ref, f)
	if err != nil {
		return nil, err
	}
	return &Model{Name: stem(base), Local: true, Files: files}, nil
}

var hubName = regexp.MustCompile(`^[A-Za-z0-9][\w.-]*/[\w.-]+$`)

// folderName is a folder's own name, whatever way leads to it.
func folderName(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return filepath.Base(dir)
}

// single is the listing of a model of one file.
func (s *session) single(ref string, f File) ([]File, error) {
	c := s.collector(ref)
	var files []File
	if c.wants(f.Path) {
		if err := c.add(&f); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return c.listed(files)
}

// walk lists the folder with all below it, in byte order of the path, parents first. The folder itself is not listed.
//
// A symbolic link that is relative and stays in the folder is kept. One that leads out of it to a file, as in the caches of
// model hubs, is replaced by the file. Whether files can be read is asked at once, without opening them.
func (s *session) walk(dir string) ([]File, error) {
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
	c := s.collector("folder " + dir)
	var files []File
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(filepath.ToSlash(strings.TrimPrefix(path, root)), "/")
		switch {
		case name == "" && err == nil:
			return nil
		case d != nil && d.IsDir() && c.drops(name):
			return fs.SkipDir
		case err != nil:
			return fmt.Errorf("%w: %w", ErrModel, err)
		case !d.IsDir() && !c.wants(name):
			return nil
		}
		f, err := newFile(root, path, d)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrModel, err)
		}
		if f.Mode.IsDir() {
			return c.addDir(name)
		}
		files = append(files, f)
		return c.add(&f)
	})
	if err != nil {
		return nil, err
	}
	return c.listed(files)
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
		f.Size, f.Executable, f.seen = info.Size(), info.Mode()&0o111 != 0, stampOf(info)
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
	if inside && !filepath.IsAbs(link) && staysBelow(f.Path, filepath.ToSlash(link)) {
		f.Mode, f.Link = fs.ModeSymlink|0o777, filepath.ToSlash(link)
		return true, nil
	}
	f.real = target
	return false, nil
}

// readable asks whether this process may read a file. In a model of many files that is cheaper than to open them.
func readable(path string) error {
	if err := unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return nil
}
