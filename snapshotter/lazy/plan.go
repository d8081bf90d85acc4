package lazy

import (
	"fmt"
	"strings"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// A step of a plan is a part of a device that is fetched ahead.
type step struct {
	blob        int
	off, length int64
	// all is set where the whole device is meant; length is the blob's then.
	all bool
}

// plan returns what is fetched ahead, in this order: of a whole image its blobs as they are needed; of listed files their bytes.
func plan(img *bootstrap.Image, p Prefetch) []step {
	switch {
	case p.None:
		return nil
	case len(p.Files) > 0:
		return planFiles(img, p.Files)
	}
	return planWhole(img)
}

// planWhole returns all blobs: as the prefetch table comes to them, and then by the names of files. A table that names no program lists what
// programs read, such as a model: before it come the blobs with the programs, and with the libraries beside them, without which nobody reads anything.
func planWhole(img *bootstrap.Image) []step {
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
	programs := func(then func(*bootstrap.Inode)) func(*bootstrap.Inode) {
		return func(n *bootstrap.Inode) {
			if n.Type() == bootstrap.TypeRegular && n.Mode&0o111 != 0 {
				then(n)
			}
		}
	}
	named := false
	for _, n := range img.Prefetch {
		below(n, programs(func(*bootstrap.Inode) { named = true }))
	}
	if !named {
		below(img.Root, programs(visit))
	}
	for _, n := range img.Prefetch {
		below(n, visit)
	}
	below(img.Root, visit)
	return out
}

// planFiles returns the chunks of the files in this order, those that lie together as one step.
func planFiles(img *bootstrap.Image, files []string) []step {
	var out []step
	seen := make(map[uint32]bool)
	visit := func(n *bootstrap.Inode) {
		for _, i := range n.Chunks {
			c := &img.Chunks[i]
			if seen[i] {
				continue
			}
			seen[i] = true
			if last := len(out) - 1; last >= 0 && out[last].blob == int(c.Blob) && out[last].off+out[last].length == c.DeviceOffset {
				out[last].length += int64(c.Size)
				continue
			}
			out = append(out, step{blob: int(c.Blob), off: c.DeviceOffset, length: int64(c.Size)})
		}
	}
	for _, name := range files {
		if n := lookup(img, name); n != nil {
			below(n, visit)
		}
	}
	return out
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

// below visits n, or all regular files below it by name.
func below(n *bootstrap.Inode, visit func(*bootstrap.Inode)) {
	if !n.IsDir() {
		visit(n)
		return
	}
	for _, name := range n.Names() {
		below(n.Children[name], visit)
	}
}

// readBootstrap decodes the bootstrap of an image, which must not have more blobs than a device table.
func readBootstrap(path string) (*bootstrap.Image, error) {
	img, err := bootstrap.DecodeFile(path, bootstrap.MountMemory)
	if err != nil {
		return nil, fmt.Errorf("bootstrap %s: %w", path, err)
	}
	return img, nil
}
