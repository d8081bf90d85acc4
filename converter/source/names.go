package source

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sort"
	"strings"
	"unicode/utf8"
)

const (
	// whiteoutPrefix begins the names by which a layer's tar removes files of lower layers.
	whiteoutPrefix = ".wh."
	maxName        = 255  // bytes in one part of a path, of every file system we know
	maxPath        = 4000 // bytes in a path: what Linux takes, with room for where the model is
	maxLinks       = 40   // links followed for one name, as in Linux
)

// checkName refuses what cannot be a name in an image.
func checkName(name string) error {
	fault := ""
	switch {
	case name == "":
		fault = "a name is empty"
	case !utf8.ValidString(name):
		fault = "the name is not UTF-8"
	case strings.HasPrefix(name, "/"):
		fault = "the name is absolute"
	case strings.ContainsRune(name, 0):
		fault = "the name has a NUL byte"
	case len(name) > maxPath:
		return fmt.Errorf("%.60q...: the name has %d bytes, and %d can be mounted; rename it", name, len(name), maxPath)
	}
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case fault != "":
		case part == "..":
			fault = "the name leads out of the model"
		case part == "" || part == ".":
			fault = "the name has an empty part"
		case len(part) > maxName:
			fault = fmt.Sprintf("a part of the name is longer than %d bytes", maxName)
		case strings.HasPrefix(part, whiteoutPrefix):
			fault = "a name with " + whiteoutPrefix + " hides files when the layer is unpacked"
		}
	}
	if fault != "" {
		return fmt.Errorf("%q: %s; rename it, or leave it out with --exclude", name, fault)
	}
	return nil
}

// Less orders paths so that a folder's content follows it at once.
func Less(a, b string) bool {
	for i := range min(len(a), len(b)) {
		if x, y := a[i], b[i]; x != y {
			return x == '/' || y != '/' && x < y
		}
	}
	return len(a) < len(b)
}

// staysBelow reports whether the way a link names never leaves the model, whose own name the image may not have.
func staysBelow(name, link string) bool {
	depth := strings.Count(name, "/")
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

// collector makes a model of the names a source tells one by one: filtered, without contradictions, with the folders they
// are in.
type collector struct {
	ref    string
	filter *filter
	max    int

	kinds   map[string]fs.FileMode // type of each name that is wanted, with the folders it is in
	links   map[string]string
	dirs    []string        // that the source names
	full    map[string]bool // folders in which the source has something
	regular int
	dropped int // files and links that the filter left out
}

func (s *session) collector(ref string) *collector {
	return &collector{
		ref: ref, filter: s.filter, max: s.MaxFiles,
		kinds: map[string]fs.FileMode{}, links: map[string]string{}, full: map[string]bool{},
	}
}

// fault is an error of class ErrModel about one name.
func (c *collector) fault(err error) error { return fmt.Errorf("%w %s: %w", ErrModel, c.ref, err) }

// wants reports whether a file or link of the source is wanted. Its folders are no empty ones either way.
func (c *collector) wants(name string) bool {
	c.fills(name)
	if c.filter.wants(name, false) {
		return true
	}
	c.dropped++
	return false
}

func (c *collector) fills(name string) {
	for dir := path.Dir(name); dir != "." && dir != "/" && !c.full[dir]; dir = path.Dir(dir) {
		c.full[dir] = true
	}
}

// drops reports whether a folder is excluded with all below it.
func (c *collector) drops(dir string) bool {
	if !c.filter.drops(dir, true) {
		return false
	}
	c.fills(dir)
	return true
}

// addDir notes a folder of the source.
func (c *collector) addDir(name string) error {
	if len(c.dirs)+len(c.kinds) > c.max {
		return tooMany(c.ref, c.max)
	}
	c.dirs = append(c.dirs, name)
	return nil
}

// add takes a file or link that is wanted.
func (c *collector) add(f *File) error {
	if err := checkName(f.Path); err != nil {
		return c.fault(err)
	}
	if len(c.dirs)+len(c.kinds) >= c.max {
		return tooMany(c.ref, c.max)
	}
	if f.Mode.Type() == fs.ModeSymlink {
		if f.Link == "" || strings.HasPrefix(f.Link, "/") || strings.ContainsRune(f.Link, 0) || !staysBelow(f.Path, f.Link) {
			return c.fault(fmt.Errorf("%s: a symbolic link to %q that is absolute or leads out of the model; "+
				"make it relative, or put the file in its place", f.Path, f.Link))
		}
		c.links[f.Path] = f.Link
	} else {
		c.regular++
	}
	return c.put(f.Path, f.Mode.Type())
}

// put notes a name and the folders it is in.
func (c *collector) put(name string, kind fs.FileMode) error {
	if have, ok := c.kinds[name]; ok {
		if have == fs.ModeDir || kind == fs.ModeDir {
			return c.fault(fmt.Errorf("%s is both a folder and a file", name))
		}
		return c.fault(fmt.Errorf("%s is there twice", name))
	}
	c.kinds[name] = kind
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		switch have, ok := c.kinds[dir]; {
		case ok && have == fs.ModeDir:
			return nil
		case ok && have == fs.ModeSymlink:
			return c.fault(fmt.Errorf("%s lies below the symbolic link %s", name, dir))
		case ok:
			return c.fault(fmt.Errorf("%s is both a file and a folder", dir))
		}
		c.kinds[dir] = fs.ModeDir
	}
	return nil
}

// finish adds the folders that are empty in the source and wanted, and returns them; a folder that only the filter emptied
// is gone. Then it checks what can be checked when all names are known.
func (c *collector) finish() ([]string, error) {
	var empty []string
	for _, dir := range c.dirs {
		if c.full[dir] || !c.filter.wants(dir, true) || c.kinds[dir] == fs.ModeDir {
			continue
		}
		if err := checkName(dir); err != nil {
			return nil, c.fault(err)
		}
		if err := c.put(dir, fs.ModeDir); err != nil {
			return nil, err
		}
		empty = append(empty, dir)
	}
	for name, link := range c.links {
		if err := c.resolve(name); err != nil {
			return nil, c.fault(fmt.Errorf("%s: symbolic link to %s: %w", name, link, err))
		}
	}
	if c.regular == 0 {
		if c.dropped > 0 {
			return nil, fmt.Errorf("%w %s: the filters leave none of its %d files; see --include and --exclude", ErrModel, c.ref, c.dropped)
		}
		return nil, fmt.Errorf("%w %s holds no file", ErrModel, c.ref)
	}
	sort.Slice(empty, func(i, j int) bool { return Less(empty[i], empty[j]) })
	return empty, nil
}

// resolve follows a link to something that is in the model.
func (c *collector) resolve(name string) error {
	at, rest, followed := "", name, 0
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			if at == "" {
				return errors.New("it leads out of the model")
			}
			at = strings.TrimPrefix(path.Dir("/"+at), "/")
			continue
		}
		at = path.Join(at, part)
		kind, ok := c.kinds[at]
		switch {
		case !ok:
			return errors.New("what it leads to is not in the model, or left out by a filter; leave out the link too")
		case kind == fs.ModeSymlink:
			if followed++; followed > maxLinks {
				return errors.New("too many links to follow")
			}
			rest = c.links[at] + "/" + rest
			at = strings.TrimPrefix(path.Dir("/"+at), "/")
		case kind != fs.ModeDir && strings.Trim(rest, "/.") != "":
			return fmt.Errorf("%s is no folder", at)
		}
	}
	return nil
}

// listed returns the complete listing of a model whose files are known.
func (c *collector) listed(files []File) ([]File, error) {
	if _, err := c.finish(); err != nil {
		return nil, err
	}
	for name, kind := range c.kinds {
		if kind == fs.ModeDir {
			files = append(files, dirFile(name))
		}
	}
	sort.Slice(files, func(i, j int) bool { return Less(files[i].Path, files[j].Path) })
	return files, nil
}

func dirFile(name string) File { return File{Path: name, Mode: fs.ModeDir | 0o755} }
