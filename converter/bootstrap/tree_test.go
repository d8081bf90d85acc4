package bootstrap

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// list names what is in a tree: "dir/", "file", "link -> target".
func list(tree *Tree) []string {
	var out []string
	img := Image{Root: tree.Root}
	_ = img.Walk(func(path string, n *Inode) error {
		switch {
		case path == "":
		case n.IsDir():
			out = append(out, path+"/")
		case n.Link != "":
			out = append(out, path+" -> "+n.Link)
		default:
			out = append(out, path)
		}
		return nil
	})
	sort.Strings(out)
	return out
}

// apply runs a script on a tree, one step a line: "layer", "dir P", "file P", "ln P TARGET", "hard P TARGET", "wh P", "opq P".
func apply(tree *Tree, script string) error {
	for line := range strings.Lines(script) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		var err error
		switch f[0] {
		case "layer":
			tree.NextLayer()
		case "dir":
			err = tree.Add(f[1], &Inode{Mode: TypeDir | 0o755})
		case "file":
			err = tree.Add(f[1], &Inode{Mode: TypeRegular | 0o644})
		case "ln":
			err = tree.Add(f[1], &Inode{Mode: TypeSymlink | 0o777, Link: f[2]})
		case "hard":
			err = tree.Link(f[1], f[2])
		case "wh":
			err = tree.Whiteout(f[1])
		case "opq":
			err = tree.Opaque(f[1])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func TestTreeMergesLayers(t *testing.T) {
	for _, tc := range []struct{ name, script, want string }{
		{"later files replace", "file a\n layer\n file a", "a"},
		{"missing parents appear", "file a/b/c", "a/ a/b/ a/b/c"},
		{"a folder keeps its children", "file a/b\n layer\n dir a\n file a/c", "a/ a/b a/c"},
		{"a file replaces a folder", "file a/b\n layer\n file a", "a"},
		{"a folder replaces a file", "file a\n layer\n file a/b", "a/ a/b"},
		{"whiteout of a file", "file a/b\n file a/c\n layer\n wh a/b", "a/ a/c"},
		{"whiteout of a folder", "file a/b/c\n layer\n wh a", ""},
		{"whiteout of nothing", "file a\n layer\n wh x/y/z", "a"},
		{"whiteout leaves the layer's own", "file a\n layer\n file a\n wh a", "a"},
		{"whiteout of a folder that comes again", "file a/b\n layer\n dir a\n wh a\n file a/c", "a/ a/c"},
		{"opaque folder", "file a/b\n file a/c/d\n layer\n dir a\n opq a\n file a/e", "a/ a/e"},
		{"opaque mark after the content", "file a/b\n layer\n dir a\n file a/e\n opq a", "a/ a/e"},
		{"opaque reaches below", "file a/s/old\n layer\n dir a\n dir a/s\n file a/s/new\n opq a", "a/ a/s/ a/s/new"},
		{"opaque root", "file a\n layer\n file b\n opq .", "b"},
		{"parents lead through links", "dir usr/lib\n ln lib usr/lib\n layer\n file lib/x", "lib -> usr/lib|usr/ usr/lib/ usr/lib/x"},
		{"absolute links stay inside", "dir usr\n ln u /usr\n file u/x", "u -> /usr|usr/ usr/x"},
		{"dots of links stop at the root", "dir etc\n ln etc/up ../../../..\n file etc/up/x", "etc/ etc/up -> ../../../..|x"},
		{"hard link through a link", "dir usr\n ln u usr\n file usr/a\n hard b u/a", "b u -> usr|usr/ usr/a"},
		{"absolute names begin at the root", "dir /a\n file /a/b\n hard /c /a/b", "a/ a/b c"},
		{"opaque mark after the content of a folder not listed", "file a/s/old\n layer\n file a/s/new\n opq a", "a/ a/s/ a/s/new"},
		{"whiteout of a folder that got content before", "file a/s/old\n layer\n file a/s/new\n wh a/s", "a/ a/s/ a/s/new"},
		{"opaque mark after a link to a lower file", "file a\n layer\n hard d/b a\n opq d", "a d/ d/b"},
		{"whiteout after a link to a lower file", "file a\n layer\n hard b a\n wh b", "a b"},
		{"a link outlives its target", "file a\n layer\n hard b a\n wh a", "b"},
		{"a link is hidden by a later layer", "file a\n layer\n hard b a\n layer\n wh b", "a"},
		{"folder, file, folder again", "file a/b\n layer\n file a\n layer\n dir a\n file a/c", "a/ a/c"},
		{"a folder replaces a link to a folder", "dir d\n ln l d\n file l/x\n layer\n dir l", "d/ d/x l/"},
		{"opaque mark through a link", "file d/x\n ln l d\n layer\n opq l", "d/ l -> d"},
		{"whiteout through a link", "file d/x\n ln l d\n layer\n wh l/x", "d/ l -> d"},
		{"whiteout of a link leaves its target", "file d/x\n ln l d\n layer\n wh l", "d/ d/x"},
		{"odd spellings", "file ./a//b/./c", "a/ a/b/ a/b/c"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tree := NewTree()
			check(t, apply(tree, tc.script))
			var want []string
			for part := range strings.SplitSeq(tc.want, "|") { // a link is followed by |
				if head, target, ok := strings.Cut(part, " -> "); ok {
					names := strings.Fields(head)
					want = append(append(want, names[:len(names)-1]...), names[len(names)-1]+" -> "+target)
					continue
				}
				want = append(want, strings.Fields(part)...)
			}
			sort.Strings(want)
			if diff := cmp.Diff(want, list(tree)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTreeRefusesHostilePaths(t *testing.T) {
	for _, tc := range []struct{ name, script string }{
		{"up", "file ../x"},
		{"up later", "file a/../../x"},
		{"link loop", "ln a b\n ln b a\n file a/x"},
		{"hard link up", "file a\n hard b ../a"},
		{"hard link to nothing", "hard b a"},
		{"hard link to a folder", "dir a\n hard b a"},
		{"hard link over the root", "file a\n hard . a"},
		{"whiteout of the root", "wh ."},
		{"whiteout up", "wh ../x"},
		{"file as the root", "file ."},
		{"long component", "file " + strings.Repeat("x", 256)},
		{"zero byte", "file a\x00b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := apply(NewTree(), tc.script); !errors.Is(err, ErrPath) {
				t.Errorf("want ErrPath, got %v", err)
			}
		})
	}
	if err := apply(NewTree(), "file "+strings.Repeat("d/", maxDepth+1)+"x"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("endless depth: %v", err)
	}
}

func TestRootTakesOverAttributes(t *testing.T) {
	tree := NewTree()
	check(t, tree.Add("a", &Inode{Mode: TypeRegular}))
	check(t, tree.Add("./", &Inode{Mode: TypeDir | 0o700, UID: 7}))
	if tree.Root.UID != 7 || tree.Lookup("a") == nil || tree.Lookup("") != tree.Root || tree.Lookup("../a") != nil {
		t.Errorf("root %+v", tree.Root)
	}
}

func TestTreeBoundsWhatALayerCanMakeItHold(t *testing.T) {
	deep := strings.Repeat("d/", 1000)
	for name, step := range map[string]func(*Tree, int) error{
		"hard links":       func(tree *Tree, i int) error { return tree.Link(fmt.Sprint("l", i), "a") },
		"parents":          func(tree *Tree, i int) error { return tree.Add(fmt.Sprint(i, "/", deep), &Inode{Mode: TypeRegular}) },
		"attributes":       func(tree *Tree, i int) error { return tree.Add("x", &Inode{Xattrs: map[string]string{"user.x": deep}}) },
		"symbolic targets": func(tree *Tree, i int) error { return tree.Add("x", &Inode{Mode: TypeSymlink, Link: deep}) },
	} {
		t.Run(name, func(t *testing.T) {
			tree := NewTree()
			check(t, tree.Add("a", &Inode{Mode: TypeRegular}))
			tree.count, tree.bytes = maxInodes-5000, maxTreeBytes-1<<16
			var err error
			for i := 0; i < 6000 && err == nil; i++ {
				err = step(tree, i)
			}
			if !errors.Is(err, ErrUnsupported) {
				t.Errorf("want ErrUnsupported, got %v", err)
			}
		})
	}
}
