package lazy

import (
	"cmp"
	"slices"
	"strings"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// places tells which file of an image the bytes of a device are of.
type places struct {
	names   []named
	devices [][]place // each in the order of the device
}

// named is a file or folder; its path is made when it is asked for, since paths may be long where folders are deep.
type named struct {
	name   string
	parent int32 // in places.names; the root is its own
}

// place is the part of a device that a chunk is.
type place struct {
	off  int64 // of the device
	size uint32
	file int32 // in places.names: the first one by name that has it
	at   int64 // in the file
}

// placesOf walks over an image once.
func placesOf(img *bootstrap.Image) *places {
	p := &places{names: []named{{}}, devices: make([][]place, len(img.Blobs))}
	p.add(img, img.Root, 0, &visited{make([]bool, len(img.Chunks)), map[*bootstrap.Inode]bool{}})
	for i, of := range p.devices {
		slices.SortStableFunc(of, func(a, b place) int { return cmp.Compare(a.off, b.off) })
		p.devices[i] = slices.CompactFunc(of, func(a, b place) bool { return a.off == b.off })
	}
	return p
}

// visited is what a walk over an image has come to.
type visited struct {
	chunks []bool
	files  map[*bootstrap.Inode]bool
}

// add adds what is below the inode whose name is names[self].
func (p *places) add(img *bootstrap.Image, n *bootstrap.Inode, self int32, seen *visited) {
	for i, c := range n.Chunks {
		if chunk := &img.Chunks[c]; !seen.chunks[c] {
			seen.chunks[c] = true
			p.devices[chunk.Blob] = append(p.devices[chunk.Blob],
				place{off: chunk.DeviceOffset, size: chunk.Size, file: self, at: int64(i) * int64(img.ChunkSize)})
		}
	}
	if !n.IsDir() {
		return
	}
	for _, name := range n.Names() {
		child := n.Children[name]
		if !child.IsDir() {
			if len(child.Chunks) == 0 || seen.files[child] {
				continue
			}
			seen.files[child] = true
		}
		p.names = append(p.names, named{name, self})
		p.add(img, child, int32(len(p.names)-1), seen)
	}
}

// find returns the path of a file that has the byte at off of a device, without a slash before it, and where in the file that is. The path is empty if
// none has it.
func (p *places) find(device int, off int64) (path string, at int64) {
	of := p.devices[device]
	i, found := slices.BinarySearchFunc(of, off, func(x place, off int64) int { return cmp.Compare(x.off, off) })
	if !found {
		i--
	}
	if i < 0 || off >= of[i].off+int64(of[i].size) {
		return "", off
	}
	return p.path(of[i].file), of[i].at + off - of[i].off
}

func (p *places) path(i int32) string {
	var parts []string
	for ; i > 0; i = p.names[i].parent {
		parts = append(parts, p.names[i].name)
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

// read names the files that were read, in their order, by the reads of each device.
func (p *places) read(reads [][]access) (files []string) {
	type read struct {
		access
		device int
	}
	var all []read
	for device, list := range reads {
		for _, a := range list {
			all = append(all, read{a, device})
		}
	}
	slices.SortFunc(all, func(a, b read) int { return cmp.Compare(a.turn, b.turn) })
	seen := map[string]bool{}
	for _, r := range all {
		if name, _ := p.find(r.device, r.off); name != "" && !seen[name] {
			seen[name] = true
			files = append(files, "/"+name)
		}
	}
	return files
}
