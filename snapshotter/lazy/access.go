package lazy

import (
	"errors"
	"path/filepath"
	"slices"
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
	p, err := m.places()
	if err != nil {
		return nil, err
	}
	return p.read(reads), nil
}
