package lazy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/snapshotter/erofs"
	"github.com/shoal-project/shoal/snapshotter/fanotify"
)

// maxOpening is how many blobs of an image are opened at once.
const maxOpening = 16

// A mount is an image at a target.
type mount struct {
	image   Image
	target  string
	devices []*device               // in the order of the device table
	gone    chan struct{}           // closed when it is unmounted
	places  func() (*places, error) // read from the bootstrap when they are first asked for

	// Guarded by Driver.mu:
	fuller    bool // a device has become whole since its record was written
	takenOver bool // from an earlier process: some reads were its

	// Guarded by Driver.mounting:
	supers []erofs.Super // what the kernel calls it, and what it was mounted as before; containers may use those still
	direct bool          // it is read past the page cache
}

// A layout is what has to be known of an image to mount it. It is less than what the bootstrap says.
type layout struct {
	blobs        []bootstrap.Blob
	chunks       [][]bootstrap.Chunk // by blob: those that have to be expanded
	whole        []bool              // by blob: it is a device as it is
	first, steps []step              // what is fetched ahead
}

func layoutOf(img *bootstrap.Image, p Prefetch) *layout {
	l := &layout{blobs: img.Blobs}
	l.chunks, l.whole = split(img)
	l.first, l.steps = plan(img, p)
	return l
}

// read returns the layout of an image. However many are mounted at once, as after a start, one at a time is in memory as a whole.
func (d *Driver) read(image *Image) (*layout, error) {
	d.reading.Lock()
	defer d.reading.Unlock()
	img, err := image.decode()
	if err != nil {
		return nil, err
	}
	image.tellAbsent(d.log, img)
	return layoutOf(img, image.Prefetch), nil
}

// placesIn returns what reads the places of a bootstrap's files once.
func (d *Driver) placesIn(path string) func() (*places, error) {
	return sync.OnceValues(func() (*places, error) {
		d.reading.Lock()
		defer d.reading.Unlock()
		img, err := readBootstrap(path)
		if err != nil {
			return nil, err
		}
		return placesOf(img), nil
	})
}

// alive reports whether it is mounted anywhere.
func (m *mount) alive() bool {
	if len(m.supers) == 0 { // it is not known what the kernel calls it
		return isMounted(m.target)
	}
	return slices.ContainsFunc(m.supers, erofs.Super.Alive)
}

// whole reports whether nothing of the image is missing.
func (m *mount) whole() bool {
	return !slices.ContainsFunc(m.devices, func(dev *device) bool { return !dev.whole.Load() })
}

// Mount makes the image readable at the folder target. It returns when files can be opened; their bytes come when they are read, and
// the whole image as image.Prefetch says. A target where an earlier process mounted the same image is taken over: after a start, call
// Mount for each image that should be there, then Settled. Mounting what is mounted does nothing.
//
// This process itself must not read files through its mounts: its reads are not held.
func (d *Driver) Mount(ctx context.Context, image Image, target string) error {
	target, err := filepath.Abs(target)
	if err != nil {
		return err
	}
	if done, err := d.mounted(image, target); done || err != nil {
		return err
	}
	l, err := d.read(&image)
	if err != nil {
		return fmt.Errorf("mount %s: %w", image.Name, err)
	}
	devices, err := d.openDevices(ctx, image, l)
	if err != nil {
		return fmt.Errorf("mount %s: %w", image.Name, err)
	}
	m := &mount{image: image, target: target, devices: devices, gone: make(chan struct{}), places: d.placesIn(image.Bootstrap)}
	d.mounting.Lock()
	defer d.mounting.Unlock()
	if done, err := d.mounted(image, target); done || err != nil {
		d.giveUp(devices)
		return err
	}
	if err := d.enter(m); err != nil {
		return fmt.Errorf("mount %s: %w", image.Name, err)
	}
	if err := d.attach(m); err != nil {
		d.drop(m)
		return fmt.Errorf("mount %s: %w", image.Name, err)
	}
	d.enqueue(job{m, l.first, l.steps})
	return nil
}

// mounted reports whether the image is at the target already. Another one there is an error. What somebody else has unmounted there is let go.
func (d *Driver) mounted(image Image, target string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.mounts[target]
	if m != nil && !isMounted(target) {
		d.log.Warn("lazy mount was removed by somebody else", "image", m.image.Name, "target", target)
		d.linger(m)
		return false, nil
	}
	if m != nil && m.image.Bootstrap != image.Bootstrap {
		return false, fmt.Errorf("mount %s: %s has image %s already; unmount it first", image.Name, target, m.image.Name)
	}
	return m != nil, nil
}

// drop gives a mount up that did not come to be. What there was before it may be in use: its readers are held on.
func (d *Driver) drop(m *mount) {
	if !m.alive() {
		d.release(m, true)
		return
	}
	m.supers = slices.DeleteFunc(m.supers, func(s erofs.Super) bool { return !s.Alive() })
	d.mu.Lock()
	held := slices.ContainsFunc(d.lingering, func(l *mount) bool { // by a try before
		return l.target == m.target && slices.Equal(l.devices, m.devices) && slices.Equal(l.supers, m.supers)
	})
	if !held {
		d.linger(m)
	}
	d.mu.Unlock()
	if held {
		d.release(m, false)
	}
}

// linger ends a mount here; other mount namespaces may have it still. mu is held.
func (d *Driver) linger(m *mount) {
	delete(d.mounts, m.target)
	d.lingering = append(d.lingering, m)
	close(m.gone)
}

// openDevices opens the blobs of an image, in the order of the device table.
func (d *Driver) openDevices(ctx context.Context, image Image, l *layout) ([]*device, error) {
	devices := make([]*device, len(l.blobs))
	opening, ctx := errgroup.WithContext(ctx)
	opening.SetLimit(maxOpening)
	for i := range devices {
		opening.Go(func() (err error) {
			b, from := &l.blobs[i], newOrigins(image.Blobs)
			var f filler
			var file *os.File
			if l.whole[i] {
				f, file, err = openShared(ctx, from, Blob{b.Digest, b.Size})
			} else {
				f, file, err = openExpanded(d.shelf, from, b, l.chunks[i])
			}
			devices[i], err = newDevice(b, from, f, file, err)
			return err
		})
	}
	if err := opening.Wait(); err != nil {
		d.giveUp(devices)
		return nil, err
	}
	return devices, nil
}

// giveUp closes devices that did not come into use. What was expanded before is kept as long as another mount may be to come that has it.
func (d *Driver) giveUp(devices []*device) {
	discard := false
	select {
	case <-d.settled:
		discard = true
	default:
	}
	for _, dev := range devices {
		if dev != nil {
			_ = dev.filler.close(discard) // nothing was written
		}
	}
}

// enter makes the mount's devices known. Those that are known already are used in place of the mount's own; new ones are marked, before the
// kernel opens them, unless nothing of them is missing. On an error the mount's own are closed.
func (d *Driver) enter(m *mount) error {
	was := readRecord(d.recordDir(), m.target)
	trusted := was.Group == d.groupID && isMounted(m.target)
	d.mu.Lock()
	defer d.mu.Unlock()
	var fresh []*device
	for i, dev := range m.devices {
		known := d.devices[dev.key]
		if twice := slices.IndexFunc(m.devices[:i], func(o *device) bool { return o.key == dev.key }); twice >= 0 {
			known = m.devices[twice]
		}
		if known != nil {
			_ = dev.filler.close(false) // nothing was written
			m.devices[i] = known
			continue
		}
		fresh = append(fresh, dev)
	}
	for _, dev := range fresh {
		if trusted && slices.Contains(was.Whole, dev.key) {
			dev.whole.Store(true) // the kernel reads it unasked since an earlier process had verified it
		}
		if dev.whole.Load() {
			continue
		}
		if err := d.group.Mark(dev.file); err != nil {
			d.giveUp(fresh)
			return err
		}
	}
	for _, dev := range fresh {
		d.devices[dev.key] = dev
	}
	for _, dev := range m.devices {
		dev.refs++
		dev.users = append(dev.users, m)
		dev.origins.join(m)
	}
	d.mounts[m.target] = m
	close(d.claimed)
	d.claimed = make(chan struct{})
	return nil
}

// attach has the kernel mount it, or takes over what an earlier process mounted. Whatever was mounted there before may be in use still.
func (d *Driver) attach(m *mount) error {
	was, now := readRecord(d.recordDir(), m.target), d.recordOf(m)
	m.supers = was.alive()
	if isMounted(m.target) {
		if len(m.supers) == 0 { // one of all there are; it counts as mounted for as long as they are
			m.supers, _ = erofs.Supers() // none known: as long as something is at the target
		}
		if was.Group == now.Group && slices.Equal(was.Devices, now.Devices) && was.Bootstrap == now.Bootstrap {
			m.direct = was.Direct
			d.mu.Lock()
			m.takenOver = true
			d.mu.Unlock()
			d.log.Info("lazy mount taken over", "image", m.image.Name, "target", m.target)
			d.renew(m)
			if err := d.recordOf(m).write(d.recordDir()); err != nil {
				d.log.Warn("record is not kept", "error", err) // the one that is there will do
			}
			return nil
		}
		if err := d.discard(m, was); err != nil {
			return err
		}
	}
	if err := d.mountEROFS(m); err != nil {
		return err
	}
	if err := d.recordOf(m).write(d.recordDir()); err != nil {
		return errors.Join(err, erofs.Unmount(m.target))
	}
	return nil
}

// discard removes a mount that lost its marks, because this daemon and its keeper were both gone, or whose files are others now. What it has in
// memory is forgotten, for those who keep it in use.
func (d *Driver) discard(m *mount, was record) error {
	if was.Group == d.groupID {
		d.log.Warn("lazy mount has other files now, its containers have to be restarted", "image", m.image.Name, "target", m.target)
	} else if was.Group != (fanotify.File{}) {
		d.log.Error("lazy mount was without daemon and keeper for a time; what was read meanwhile for the first time may be zeros: restart its containers",
			"image", m.image.Name, "target", m.target)
	}
	if err := erofs.DropCaches(m.target); err != nil {
		d.log.Warn("cached pages of a lost mount stay", "target", m.target, "error", err)
	}
	return detach(m.target)
}

// mountEROFS mounts, and raises readahead.
func (d *Driver) mountEROFS(m *mount) error {
	err := errors.ErrUnsupported
	if m.whole() {
		err = d.mountBy(m, erofs.Mount, erofs.Direct)
		m.direct = err == nil
	}
	if err != nil {
		err = d.mountBy(m, erofs.Mount)
	}
	return err
}

// renew has an image of which nothing is missing any more read past the page cache, by those who open it from now on: its bytes are in memory
// once then, and are read as fast as those of any file.
func (d *Driver) renew(m *mount) {
	if m.direct || !m.whole() {
		return
	}
	if err := d.mountBy(m, erofs.Replace, erofs.Direct); err != nil {
		d.log.Info("a complete image stays mounted as it was filled", "image", m.image.Name, "error", err)
		return
	}
	m.direct = true
}

// mountBy mounts in one of the ways of package erofs.
func (d *Driver) mountBy(m *mount, mount func(string, []string, string, ...erofs.Option) error, options ...erofs.Option) error {
	before, listed := erofs.Supers()
	var paths []string
	for _, dev := range m.devices {
		path, err := descriptorPath(dev.file)
		if err != nil {
			return err
		}
		paths = append(paths, path)
	}
	if err := mount(m.image.Bootstrap, paths, m.target, options...); err != nil {
		return err
	}
	after, err := erofs.Supers()
	if err := errors.Join(listed, err); err != nil {
		d.log.Warn("readahead is not raised", "image", m.image.Name, "error", err)
		return nil
	}
	for _, s := range after {
		if slices.Contains(before, s) {
			continue
		}
		m.supers = append(m.supers, s) // and those of others that came just then: it counts as mounted for as long as they are
		if err := s.SetReadahead(d.cfg.Readahead); err != nil {
			d.log.Warn("readahead is not raised", "image", m.image.Name, "error", err)
		}
	}
	return nil
}

// Unmount removes the mount at target, which must not be in use. A target where nothing is mounted is no error. Where other mount
// namespaces still have it, its reads are answered until they do not.
func (d *Driver) Unmount(_ context.Context, target string) error {
	target, err := filepath.Abs(target)
	if err != nil {
		return err
	}
	d.mounting.Lock()
	defer d.mounting.Unlock()
	if err := erofs.Unmount(target); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	d.mu.Lock()
	m := d.mounts[target]
	if m != nil {
		d.linger(m)
	}
	d.mu.Unlock()
	d.releaseDead()
	return d.forget(target)
}

// forget removes the record of a target where nothing is mounted, unless what was is in use elsewhere: the next process has to know.
func (d *Driver) forget(target string) error {
	if readRecord(d.recordDir(), target).inUse() {
		return nil
	}
	return removeRecord(d.recordDir(), target)
}

// releaseDead releases what was unmounted here and is mounted nowhere else.
func (d *Driver) releaseDead() {
	d.mu.Lock()
	var dead []*mount
	d.lingering = slices.DeleteFunc(d.lingering, func(m *mount) bool {
		if m.alive() {
			return false
		}
		dead = append(dead, m)
		return true
	})
	d.mu.Unlock()
	for _, m := range dead {
		d.release(m, true)
		if err := d.forget(m.target); err != nil {
			d.log.Warn("record stays of what was unmounted", "target", m.target, "error", err)
		}
	}
}

// release gives up a mount's devices. Those that nobody else uses are discarded, if that is wanted.
func (d *Driver) release(m *mount, discard bool) {
	d.mu.Lock()
	if d.mounts[m.target] == m {
		delete(d.mounts, m.target)
	}
	d.mu.Unlock()
	for _, dev := range m.devices {
		d.leave(m, dev, discard)
		d.letGo(dev)
	}
}

// leave takes a device away from a mount. The mark of one that nobody has any more goes before anybody else can mark the file.
func (d *Driver) leave(m *mount, dev *device, discard bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dev.origins.leave(m)
	dev.users = slices.DeleteFunc(dev.users, func(u *mount) bool { return u == m })
	if len(dev.users) > 0 || d.devices[dev.key] != dev {
		return
	}
	delete(d.devices, dev.key)
	if dev.discard = discard; discard && !dev.whole.Load() {
		if err := d.group.Unmark(dev.file); err != nil {
			d.log.Warn("mark stays", "error", err)
		}
	}
}

// letGo gives up a reference to a device; the last one closes it.
func (d *Driver) letGo(dev *device) {
	d.mu.Lock()
	dev.refs--
	last := dev.refs == 0
	d.mu.Unlock()
	if !last {
		return
	}
	if err := dev.filler.close(dev.discard); err != nil {
		d.log.Warn("device is not closed in order", "error", err)
	}
}

// recordOf returns what is to be known of the mount later. Driver.mounting is held, so that nothing of it changes but what is whole.
func (d *Driver) recordOf(m *mount) record {
	r := record{Target: m.target, Image: m.image.Name, Bootstrap: m.image.Bootstrap, Supers: m.supers, Direct: m.direct, Group: d.groupID}
	for _, dev := range m.devices {
		r.Devices = append(r.Devices, dev.key)
		if dev.whole.Load() {
			r.Whole = append(r.Whole, dev.key)
		}
	}
	return r
}

// isMounted reports whether an EROFS is mounted at target.
func isMounted(target string) bool {
	var st unix.Statfs_t
	return unix.Statfs(target, &st) == nil && uint32(st.Type) == unix.EROFS_SUPER_MAGIC_V1
}

// detach removes the mount at target even while it is in use.
func detach(target string) error {
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("detach %s: %w", target, err)
	}
	return nil
}
