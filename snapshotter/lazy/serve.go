package lazy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/shoal-project/shoal/snapshotter/fanotify"
)

// errUnclaimed is the answer to reads of files that no mount has any more.
var errUnclaimed = errors.New("no image that is mounted has this file")

// handle brings what a reader waits for.
func (d *Driver) handle(ctx context.Context, e fanotify.Event) error {
	begin := time.Now()
	devices, err := d.claim(ctx, e.File)
	if err != nil {
		if ctx.Err() == nil {
			d.faults.tell(err, func() []any { return []any{"offset", e.Off} })
		}
		return err
	}
	for _, dev := range devices {
		d.remember(dev, e.Off)
		if fault := d.fill(ctx, dev, e); fault != nil {
			if ctx.Err() == nil {
				d.report(dev, e.Off, fault)
			}
			err = errors.Join(err, fault)
		}
		d.finish(dev)
		d.letGo(dev)
	}
	if err == nil {
		d.metrics.waited.Observe(time.Since(begin).Seconds())
	}
	return err
}

// secondTry is how long after a read failed it is tried once more. A peer that stops, stops before this process is told, or just after.
const secondTry = 250 * time.Millisecond

// fill brings a range, with a try by each source, and one more.
func (d *Driver) fill(ctx context.Context, dev *device, e fanotify.Event) (err error) {
	for range dev.origins.list() {
		if err = dev.filler.fill(ctx, e.Off, e.Len); err == nil || errors.Is(err, errReplaced) {
			return err
		}
	}
	select {
	case <-time.After(secondTry):
		return dev.filler.fill(ctx, e.Off, e.Len)
	case <-ctx.Done():
		return err
	}
}

// claim returns the device that is this file, as soon as somebody has it, with a reference; of an event without a file, all it may be about.
func (d *Driver) claim(ctx context.Context, file fanotify.File) ([]*device, error) {
	for last := false; ; {
		d.mu.Lock()
		var out []*device
		if dev := d.devices[file]; dev != nil {
			out = append(out, dev)
		} else if last && file == (fanotify.File{}) {
			for _, dev := range d.devices {
				if !dev.whole.Load() {
					out = append(out, dev)
				}
			}
		}
		for _, dev := range out {
			dev.refs++
		}
		claimed := d.claimed
		d.mu.Unlock()
		if len(out) > 0 {
			return out, nil
		}
		if last {
			return nil, errUnclaimed
		}
		select {
		case <-claimed:
		case <-d.settled:
			last = true
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// finish lets go all readers of a device of which nothing is missing any more.
func (d *Driver) finish(dev *device) {
	if dev.whole.Load() || !dev.filler.whole() || dev.whole.Swap(true) {
		return
	}
	if err := d.group.Unmark(dev.file); err != nil {
		d.log.Warn("mark stays on a complete file", "error", err)
	}
	d.mu.Lock()
	for _, m := range dev.users {
		m.fuller = true
	}
	d.mu.Unlock()
	select {
	case d.fuller <- struct{}{}:
	default:
	}
}

// keepRecords writes down which mounts have more devices that need no marks, and has the kernel read what is complete from the disk. Readers do not wait
// for that: a record comes to the disk behind all that was written before it, which may be the whole image.
func (d *Driver) keepRecords(ctx context.Context) {
	d.mu.Lock()
	var fuller []*mount
	for _, m := range d.mounts {
		if m.fuller {
			m.fuller = false
			fuller = append(fuller, m)
		}
	}
	d.mu.Unlock()
	for _, m := range fuller {
		if m.whole() {
			m.sync(ctx, d.log)
		}
		d.keepRecord(m)
	}
}

// sync waits until all of a mount's bytes are on the disk, where reads past the page cache would make readers wait for it.
func (m *mount) sync(ctx context.Context, log *slog.Logger) {
	for _, dev := range m.devices {
		if ctx.Err() != nil {
			return // there is no time for it
		}
		if err := dev.file.Sync(); err != nil {
			log.Warn("blob is not brought to the disk", "file", dev.file.Name(), "error", err)
		}
	}
}

// keepRecord writes the record of a mount anew, if it still is one.
func (d *Driver) keepRecord(m *mount) {
	d.mounting.Lock()
	defer d.mounting.Unlock()
	d.mu.Lock()
	there := d.mounts[m.target] == m
	d.mu.Unlock()
	if !there {
		return
	}
	d.renew(m)
	if err := d.recordOf(m).write(d.recordDir()); err != nil {
		d.log.Warn("record is not kept", "error", err) // the next process verifies once more
	}
}

// descriptorPath names an open file for the kernel, whatever its own name is by now.
func descriptorPath(f *os.File) (string, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return "", err
	}
	var path string
	err = conn.Control(func(fd uintptr) { path = fmt.Sprintf("/proc/self/fd/%d", fd) })
	return path, err
}
