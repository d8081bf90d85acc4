package lazy

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
)

// maxAccesses bounds how many reads of a device are remembered: of 4 MiB each they are 256 GiB.
const maxAccesses = 1 << 16

var (
	// errNotMounted means that this driver has no mount at a target.
	errNotMounted = errors.New("no image is mounted there")
	// errEarlierReads means that an earlier process had the mount: what was read then is in the kernel's cache, and is not asked about again.
	errEarlierReads = errors.New("this node was restarted after it had mounted the image, and does not know what was read before; " +
		"pull the image on a node that does not have it, run its container there, and ask that node before it is restarted")
)

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

// Accessed returns the files of the image at target in the order in which they were first read, while the blobs they lie in were not complete: of a
// complete one the kernel does not ask. Another image with the same blob counts as this one. Of a mount that was taken over the order is not known.
func (d *Driver) Accessed(target string) ([]string, error) {
	target, err := filepath.Abs(target)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	m := d.mounts[target]
	var reads [][]access // by device
	late := false
	if m != nil {
		late = m.takenOver
		for _, dev := range m.devices {
			reads = append(reads, slices.Clone(dev.accesses))
		}
	}
	d.mu.Unlock()
	if m == nil {
		return nil, errNotMounted
	}
	if late {
		return nil, fmt.Errorf("image %s: %w", m.image.Name, errEarlierReads)
	}
	p, err := m.places()
	if err != nil {
		return nil, err
	}
	return p.read(reads), nil
}
