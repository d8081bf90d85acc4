package bootstrap

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// plainTree is the rules of layers in their plainest form: a list of paths, each with the layer that made it or something
// below it. It knows no symbolic links.
type plainTree struct {
	paths map[string]plainEntry
	layer int
}

type plainEntry struct {
	id    int // of the inode; directories have none
	layer int
}

func (p *plainTree) remove(path string, before int) {
	for name, e := range p.paths {
		if (name == path || strings.HasPrefix(name, path+"/")) && e.layer < before {
			delete(p.paths, name)
		}
	}
}

// folder makes path and what is above it directories of this layer.
func (p *plainTree) folder(path string) {
	if path == "" {
		return
	}
	up, _, _ := cutLast(path)
	p.folder(up)
	if e, ok := p.paths[path]; ok && e.id != 0 {
		p.remove(path, p.layer+1)
	}
	p.paths[path] = plainEntry{0, p.layer}
}

func cutLast(path string) (up, name string, ok bool) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:], true
	}
	return "", path, false
}

func (p *plainTree) file(path string, id int) {
	up, _, _ := cutLast(path)
	p.folder(up)
	p.remove(path, p.layer+1)
	p.paths[path] = plainEntry{id, p.layer}
}

func (p *plainTree) list() []string {
	var out []string
	for path, e := range p.paths {
		out = append(out, fmt.Sprint(path, " ", e.id))
	}
	sort.Strings(out)
	return out
}

// TestTreeMergesAsThePlainRulesSay runs scripts of layers on the Tree and on the rules.
func TestTreeMergesAsThePlainRulesSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tree, model := NewTree(), &plainTree{paths: map[string]plainEntry{}, layer: 1}
		tree.NextLayer()
		ids, script := map[*Inode]int{}, []string{}
		path := rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 3).Draw(t, "parts"), "/")
		})
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			op, where := rapid.SampledFrom([]string{"layer", "dir", "file", "file", "wh", "opq", "hard"}).Draw(t, "op"), path.Draw(t, "path")
			script = append(script, op+" "+where)
			var err error
			switch op {
			case "layer":
				tree.NextLayer()
				model.layer++
			case "dir":
				err = tree.Add(where, &Inode{Mode: TypeDir | 0o755})
				model.folder(where)
			case "file":
				n := &Inode{Mode: TypeRegular}
				ids[n] = len(ids) + 1
				err = tree.Add(where, n)
				model.file(where, ids[n])
			case "wh":
				err = tree.Whiteout(where)
				model.remove(where, model.layer)
			case "opq":
				err = tree.Opaque(where)
				model.folder(where)
				model.remove(where, model.layer) // which where itself now belongs to
			case "hard":
				target := path.Draw(t, "target")
				script[len(script)-1] += " " + target
				e, ok := model.paths[target]
				err = tree.Link(where, target)
				if !ok || e.id == 0 {
					if !errors.Is(err, ErrPath) {
						t.Fatalf("%s: link to no file: %v", script, err)
					}
					return
				}
				model.file(where, e.id)
			}
			if err != nil {
				t.Fatalf("%s: %v", script, err)
			}
			got := []string(nil)
			img := &Image{Root: tree.Root}
			_ = img.Walk(func(path string, n *Inode) error {
				if path != "" {
					got = append(got, fmt.Sprint(path, " ", ids[n]))
				}
				return nil
			})
			sort.Strings(got)
			if diff := cmp.Diff(model.list(), got); diff != "" {
				t.Fatalf("%s (-rules +tree):\n%s", strings.Join(script, "\n"), diff)
			}
		}
	})
}
