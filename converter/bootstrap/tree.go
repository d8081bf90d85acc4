package bootstrap

import (
	"errors"
	"fmt"
	"strings"
)

// ErrPath is the class of names in a layer that lead out of the image or nowhere.
var ErrPath = errors.New("path")

// maxLinkHops bounds how many symbolic links one path may lead through, as the kernel does.
const maxLinkHops = 40

// Tree merges layers, lowest first, into the tree of an image, as a container runtime does that applies one layer after the
// other. Paths are slash-separated and begin at the root; a path's parents are followed through symbolic links, always
// within the tree. The zero Tree is not usable; see NewTree. It is not safe for concurrent use.
type Tree struct {
	Root  *Inode
	layer int32
	count int   // of names ever made
	bytes int64 // in them, and in what hangs on them
}

// What a Tree takes is bounded, whatever the compression of a layer pretends.
const (
	maxInodes    = 4 << 20
	maxTreeBytes = 1 << 30
)

// charge counts a name that is made, with the bytes that come with it.
func (t *Tree) charge(name string, n *Inode) error {
	t.count++
	t.bytes += int64(len(name) + len(n.Link))
	for key, value := range n.Xattrs {
		t.bytes += int64(len(key) + len(value))
	}
	if t.count > maxInodes || t.bytes > maxTreeBytes {
		return fmt.Errorf("more than %d entries or %d bytes of names and attributes: %w", maxInodes, maxTreeBytes, ErrUnsupported)
	}
	return nil
}

// NewTree returns a tree with an empty root directory.
func NewTree() *Tree {
	return &Tree{Root: &Inode{Mode: TypeDir | 0o755, Children: map[string]*Inode{}}}
}

// NextLayer begins a layer: whiteouts and opaque marks that follow hide what earlier layers brought.
func (t *Tree) NextLayer() { t.layer++ }

// Add puts n at path. It replaces what is there, except that a directory over a directory takes over its attributes and
// keeps the children. Missing parents are created with mode 0755.
func (t *Tree) Add(path string, n *Inode) error {
	if err := t.charge(path, n); err != nil {
		return err
	}
	n.layer = t.layer
	if n.IsDir() && n.Children == nil {
		n.Children = map[string]*Inode{}
	}
	parts, err := split(path)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if !n.IsDir() {
			return fmt.Errorf("%q: %w of the root itself", path, ErrPath)
		}
		n.Children, n.linked = t.Root.Children, t.Root.linked
		t.Root = n
		return nil
	}
	dir, name, err := t.parent(parts, true)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	if old := dir.Children[name]; old != nil && old.IsDir() && n.IsDir() {
		n.Children, n.linked = old.Children, old.linked
	}
	dir.Children[name] = n
	delete(dir.linked, name)
	return nil
}

// layerOf returns the layer that gave the directory the name.
func (n *Inode) layerOf(name string) int32 { return max(n.Children[name].layer, n.linked[name]) }

// Link gives the file at target a second name. The target must exist and be no directory.
func (t *Tree) Link(path, target string) error {
	parts, err := split(target)
	if err != nil {
		return fmt.Errorf("hard link %q to %w", path, err)
	}
	n := t.Root
	if len(parts) > 0 {
		dir, name, err := t.parent(parts, false)
		if err != nil {
			return fmt.Errorf("hard link %q to %q: %w", path, target, err)
		}
		n = dir.Children[name]
	}
	if err := t.charge(path, &Inode{}); err != nil {
		return err
	}
	if n == nil || n.IsDir() {
		return fmt.Errorf("hard link %q to %q, which is no file: %w", path, target, ErrPath)
	}
	if parts, err = split(path); err != nil {
		return err
	}
	if len(parts) == 0 {
		return fmt.Errorf("%q: %w of the root itself", path, ErrPath)
	}
	dir, name, err := t.parent(parts, true)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	dir.Children[name] = n
	if dir.linked == nil {
		dir.linked = map[string]int32{}
	}
	dir.linked[name] = t.layer
	return nil
}

// Whiteout hides what earlier layers have at path. It is no error if they have nothing.
func (t *Tree) Whiteout(path string) error {
	parts, err := split(path)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return fmt.Errorf("%q: whiteout of the root: %w", path, ErrPath)
	}
	dir, name, err := t.parent(parts, false)
	if err != nil {
		if errors.Is(err, ErrPath) {
			return nil
		}
		return fmt.Errorf("%q: %w", path, err)
	}
	if n := dir.Children[name]; n != nil && dir.layerOf(name) < t.layer {
		delete(dir.Children, name)
	} else if n != nil && n.IsDir() {
		t.hide(n)
	}
	return nil
}

// Opaque hides all that earlier layers have below the directory at path.
func (t *Tree) Opaque(path string) error {
	parts, err := split(path)
	if err != nil {
		return err
	}
	dir := t.Root
	if len(parts) > 0 {
		// One more component makes path itself the parent, so that links are followed.
		if dir, _, err = t.parent(append(parts, "x"), true); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
	}
	t.hide(dir)
	return nil
}

// hide removes what earlier layers brought below dir.
func (t *Tree) hide(dir *Inode) {
	for name, n := range dir.Children {
		if dir.layerOf(name) < t.layer {
			delete(dir.Children, name)
		} else if n.IsDir() {
			t.hide(n)
		}
	}
}

// Lookup returns the inode at path without following a symbolic link in its last component, and nil if there is none.
func (t *Tree) Lookup(path string) *Inode {
	parts, err := split(path)
	if err != nil {
		return nil
	}
	if len(parts) == 0 {
		return t.Root
	}
	dir, name, err := t.parent(parts, false)
	if err != nil {
		return nil
	}
	return dir.Children[name]
}

// parent walks to the directory that holds the last part. Symbolic links on the way are followed as if the tree's root
// were that of the system, so ".." in a link's target ends at the root.
func (t *Tree) parent(parts []string, create bool) (dir *Inode, name string, err error) {
	stack := []*Inode{t.Root}
	pending := append([]string(nil), parts[:len(parts)-1]...)
	hops := 0
	for len(pending) > 0 {
		part := pending[0]
		pending = pending[1:]
		if part == ".." {
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		here := stack[len(stack)-1]
		next := here.Children[part]
		switch {
		case create && (next == nil || !next.IsDir() && next.Type() != TypeSymlink):
			next = &Inode{Mode: TypeDir | 0o755, Children: map[string]*Inode{}, layer: t.layer}
			if err := t.charge(part, next); err != nil {
				return nil, "", err
			}
			here.Children[part] = next
		case next == nil:
			return nil, "", fmt.Errorf("%s does not exist: %w", part, ErrPath)
		case next.Type() == TypeSymlink:
			if hops++; hops > maxLinkHops {
				return nil, "", fmt.Errorf("more than %d symbolic links: %w", maxLinkHops, ErrPath)
			}
			if strings.HasPrefix(next.Link, "/") {
				stack = stack[:1]
			}
			pending = append(components(next.Link), pending...)
			continue
		case !next.IsDir():
			return nil, "", fmt.Errorf("%s is no directory: %w", part, ErrPath)
		case create:
			next.layer = t.layer // it holds something of this layer now, which no mark of this layer hides
		}
		if stack = append(stack, next); len(stack) > maxDepth {
			return nil, "", fmt.Errorf("more than %d levels of directories: %w", maxDepth, ErrUnsupported)
		}
	}
	return stack[len(stack)-1], parts[len(parts)-1], nil
}

// split takes a path of a layer apart. Absolute ones begin at the image's root, as for every runtime: some tools write them.
// Those with ".." are refused: no tool writes them in good faith.
func split(path string) ([]string, error) {
	if len(path) > 1<<16 {
		return nil, fmt.Errorf("%.100q: endless: %w", path, ErrPath)
	}
	parts := components(path)
	for _, part := range parts {
		if part == ".." || len(part) > maxName || strings.ContainsRune(part, 0) {
			return nil, fmt.Errorf("%.100q leads out of the image or has a component too long: %w", path, ErrPath)
		}
	}
	return parts, nil
}

// components returns the parts of a path without empty ones and dots.
func components(path string) []string {
	var out []string
	for part := range strings.SplitSeq(path, "/") {
		if part != "" && part != "." {
			out = append(out, part)
		}
	}
	return out
}
