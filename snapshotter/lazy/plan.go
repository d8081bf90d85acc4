package lazy

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// A step of a plan is a part of a device that is fetched ahead.
type step struct {
	blob        int
	off, length int64
	// all is set where the whole device is meant; length is the blob's then.
	all bool
	// data is set where nothing of the device is a program.
	data bool
}

// plan returns what is fetched ahead, in this order: of a whole image its blobs as they are needed, and what is read first beside them; of listed files
// their bytes.
func plan(img *bootstrap.Image, p Prefetch) (first, steps []step) {
	switch {
	case p.None:
		return nil, nil
	case len(p.Files) > 0:
		return nil, planFiles(img, p.Files)
	}
	return planFirst(img), planWhole(img)
}

// planWhole returns all blobs: as the prefetch table comes to them, and then by the names of files. A table that names no program lists what
// programs read, such as a model: before it come the blobs with the programs, and with the libraries beside them, without which nobody reads anything.
func planWhole(img *bootstrap.Image) []step {
	table, all := filesOf(img.Prefetch), filesOf([]*bootstrap.Inode{img.Root})
	var out []step
	seen := make([]bool, len(img.Blobs))
	visit := func(n *bootstrap.Inode) {
		for _, c := range n.Chunks {
			if b := int(img.Chunks[c].Blob); !seen[b] {
				seen[b] = true
				out = append(out, step{blob: b, length: img.Blobs[b].Size, all: true})
			}
		}
	}
	if !slices.ContainsFunc(table, isProgram) {
		for _, n := range all {
			if isProgram(n) {
				visit(n)
			}
		}
	}
	for _, n := range slices.Concat(table, all) {
		visit(n)
	}
	runs := make([]bool, len(img.Blobs))
	for _, n := range all {
		if !isProgram(n) {
			continue
		}
		for _, c := range n.Chunks {
			runs[img.Chunks[c].Blob] = true
		}
	}
	for i := range out {
		out[i].data = !runs[out[i].blob]
	}
	return out
}

// isProgram reports whether an inode is a file that can be run.
func isProgram(n *bootstrap.Inode) bool {
	return n.Type() == bootstrap.TypeRegular && n.Mode&0o111 != 0
}

// planFiles returns the chunks of the files in this order, those that lie together as one step.
func planFiles(img *bootstrap.Image, files []string) []step {
	b := builder{img: img, step: math.MaxInt64, seen: map[uint32]bool{}}
	var wanted []*bootstrap.Inode
	for _, name := range files {
		if n := lookup(img, name); n != nil {
			wanted = append(wanted, n)
		}
	}
	for _, n := range filesOf(wanted) {
		b.add(n, n.Size)
	}
	return b.out
}

// lookup returns the inode at a path of the image, without following links; nil if there is none.
func lookup(img *bootstrap.Image, name string) *bootstrap.Inode {
	n := img.Root
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." {
			continue
		}
		if n = n.Children[part]; n == nil {
			return nil
		}
	}
	return n
}

// filesOf returns the inodes that are no folders, and those below folders, by name. Each is there once, however many names it has and wherever
// it is asked for: a hostile image has many names for what is long, and folders in folders.
func filesOf(asked []*bootstrap.Inode) (files []*bootstrap.Inode) {
	seen := map[*bootstrap.Inode]bool{}
	var add func(n *bootstrap.Inode)
	add = func(n *bootstrap.Inode) {
		if seen[n] {
			return
		}
		seen[n] = true
		if !n.IsDir() {
			files = append(files, n)
			return
		}
		for _, name := range n.Names() {
			add(n.Children[name])
		}
	}
	for _, n := range asked {
		add(n)
	}
	return files
}

// readBootstrap decodes the bootstrap of an image, which must not have more blobs than a device table.
func readBootstrap(path string) (*bootstrap.Image, error) {
	img, err := bootstrap.DecodeFile(path, bootstrap.MountMemory)
	if err != nil {
		return nil, fmt.Errorf("bootstrap %s: %w", path, err)
	}
	return img, nil
}
