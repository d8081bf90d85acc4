package lazy

import (
	"cmp"
	"errors"
	"path/filepath"
	"slices"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// maxAccesses bounds how many reads of a device are remembered: of 4 MiB each they are 256 GiB.
const maxAccesses = 1 << 16

// errNotMounted means that this driver has no mount at a target.
var errNotMounted = errors.New("no image is mounted there")

// An access is a read of a device that the kernel asked about.
type access struct {
	turn uint64 // among all reads
	off  int64
}

// remember notes a read.
func (d *Driver) remember(dev *device, off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turns++
	if len(dev.accesses) < maxAccesses {
		dev.accesses = append(dev.accesses, access{d.turns, off})
	}
}

// Accessed returns the files of the image at target in the order in which they were first read, since this process has had the mount and while the blobs
// they lie in were not complete: of a complete one the kernel does not ask. Another image with the same blob counts as this one.
func (d *Driver) Accessed(target string) ([]string, error) {
	target, err := filepath.Abs(target)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	m := d.mounts[target]
	var reads [][]access // by device
	if m != nil {
		for _, dev := range m.devices {
			reads = append(reads, slices.Clone(dev.accesses))
		}
	}
	d.mu.Unlock()
	if m == nil {
		return nil, errNotMounted
	}
	img, err := readBootstrap(m.image.Bootstrap)
	if err != nil {
		return nil, err
	}
	return firstReads(img, reads), nil
}

// firstReads names the files that were read, by the device of each read.
func firstReads(img *bootstrap.Image, reads [][]access) (files []string) {
	chunks, names := layout(img)
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
		of := chunks[r.device]
		at, found := slices.BinarySearchFunc(of, r.off, func(i uint32, off int64) int { return cmp.Compare(img.Chunks[i].DeviceOffset, off) })
		if !found {
			at--
		}
		if at < 0 {
			continue
		}
		if c := &img.Chunks[of[at]]; r.off >= c.DeviceOffset+int64(c.Size) {
			continue // between files
		}
		if name := names[of[at]]; name != "" && !seen[name] {
			seen[name] = true
			files = append(files, "/"+name)
		}
	}
	return files
}

// layout returns the chunks of each device in their order, and the first file with each chunk.
func layout(img *bootstrap.Image) (chunks [][]uint32, names []string) {
	chunks, names = make([][]uint32, len(img.Blobs)), make([]string, len(img.Chunks))
	for i := range img.Chunks {
		b := img.Chunks[i].Blob
		chunks[b] = append(chunks[b], uint32(i))
	}
	for _, of := range chunks {
		slices.SortFunc(of, func(a, b uint32) int { return cmp.Compare(img.Chunks[a].DeviceOffset, img.Chunks[b].DeviceOffset) })
	}
	_ = img.Walk(func(path string, n *bootstrap.Inode) error { // visit never fails
		for _, c := range n.Chunks {
			if names[c] == "" {
				names[c] = path
			}
		}
		return nil
	})
	return chunks, names
}
