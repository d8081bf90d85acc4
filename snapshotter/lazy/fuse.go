package lazy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/snapshotter/readfs"
)

const (
	// fuseCache is how many bytes of expanded chunks a mount keeps in this process; the kernel keeps what was read besides.
	fuseCache = 32 << 20
	// fuseValid is how long the kernel may keep names and attributes: they never change.
	fuseValid = 24 * time.Hour
	// fuseEnds is how long a mount is waited for that was removed.
	fuseEnds = time.Second
	// fuseReadahead is how many bytes the kernel reads ahead.
	fuseReadahead = 1 << 20
)

// Fuse mounts images by FUSE, where Driver cannot: on older kernels and other file systems. It is slower, since all bytes pass through this
// process, and its mounts end with the process: who reads them then gets ENOTCONN, and the next Mount at the target mounts anew. Files are
// parts of blobs, so that the kernel can be handed none of them to read by itself.
//
// Its methods may be called concurrently, Run and Close once, Close behind Run.
type Fuse struct {
	log    *slog.Logger
	faults *faults
	wake   chan struct{}

	mounting sync.Mutex // one mount at a time

	mu        sync.Mutex // guards all
	mounts    map[string]*fuseMount
	lingering map[*fuseMount]bool // removed by somebody else; other mount namespaces and overlays may have them still
	ahead     []*fuseMount        // to be fetched ahead
}

// fuseMount is an image at a target.
type fuseMount struct {
	image  Image
	img    *bootstrap.Image
	files  *readfs.FS
	pools  []*readers
	server *fuse.Server
	dev    uint64 // of its files
	cancel context.CancelFunc
	gone   <-chan struct{}
}

// NewFuse returns a driver that starts nothing. Of cfg it uses Log and Registerer. The error says what the host has not.
func NewFuse(cfg Config) (*Fuse, error) {
	if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
		return nil, fmt.Errorf("lazy mounts by FUSE: /dev/fuse: %w; try modprobe fuse", err)
	}
	log := cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	return &Fuse{log: log, faults: newFaults(log, newMetrics(cfg.Registerer)), wake: make(chan struct{}, 1),
		mounts: map[string]*fuseMount{}, lingering: map[*fuseMount]bool{}}, nil
}

// Settled does nothing: there is nothing to take over.
func (d *Fuse) Settled() {}

// Mount makes the image readable at the folder target; see Driver.Mount. Reads are answered at once, fetching ahead begins with Run.
func (d *Fuse) Mount(ctx context.Context, image Image, target string) error {
	target, err := filepath.Abs(target)
	if err != nil {
		return err
	}
	d.mounting.Lock()
	defer d.mounting.Unlock()
	d.mu.Lock()
	known := d.mounts[target]
	d.mu.Unlock()
	if known != nil && !known.isAt(target) {
		d.log.Warn("lazy mount was removed by somebody else", "image", known.image.Name, "target", target)
		d.linger(known, target)
		known = nil
	}
	if known != nil {
		if known.image.Bootstrap != image.Bootstrap {
			return fmt.Errorf("mount %s: %s has image %s already; unmount it first", image.Name, target, known.image.Name)
		}
		return nil
	}
	m, err := d.mount(ctx, image, target)
	if err != nil {
		return fmt.Errorf("mount %s by FUSE: %w", image.Name, err)
	}
	d.mu.Lock()
	d.mounts[target] = m
	d.ahead = append(d.ahead, m)
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return nil
}

func (d *Fuse) mount(ctx context.Context, image Image, target string) (*fuseMount, error) {
	img, err := image.decode()
	if err != nil {
		return nil, err
	}
	if err := detachDead(target); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // of all reads
	image.tellAbsent(d.log, img)
	m := &fuseMount{image: image, img: img, cancel: cancel, gone: ctx.Done()}
	for i := range img.Blobs {
		m.pools = append(m.pools, &readers{source: newOrigins(image.Blobs), blob: Blob{img.Blobs[i].Digest, img.Blobs[i].Size}})
	}
	m.files, err = readfs.New(img, readfs.Config{CacheSize: fuseCache, Open: func(b *bootstrap.Blob) (io.ReaderAt, error) {
		for i := range img.Blobs {
			if &img.Blobs[i] == b {
				return poolReader(func(p []byte, off int64) error { return m.pools[i].read(ctx, p, off) }), nil
			}
		}
		return nil, fmt.Errorf("blob %s is not of the image", b.Digest)
	}})
	if err != nil {
		cancel()
		return nil, err
	}
	root := &fuseNode{tree: newTree(d, m), inode: img.Root}
	valid := fuseValid
	m.server, err = fs.Mount(target, root, &fs.Options{EntryTimeout: &valid, AttrTimeout: &valid, NegativeTimeout: &valid,
		RootStableAttr: &fs.StableAttr{Mode: bootstrap.TypeDir, Ino: root.tree.number(img.Root)},
		MountOptions: fuse.MountOptions{AllowOther: true, FsName: "shoal", Name: "shoal", Options: []string{"ro", "default_permissions"},
			MaxReadAhead: fuseReadahead, MaxWrite: fuseReadahead, DisableSplice: true, // answers are in memory, never files
			DirectMountStrict: true, DirectMountFlags: unix.MS_RDONLY | unix.MS_NODEV}})
	if err != nil {
		m.close()
		return nil, err
	}
	if m.dev, err = deviceOf(target); err != nil {
		err = errors.Join(err, detach(target))
		m.close()
		return nil, err
	}
	return m, nil
}

// isAt reports whether it is what is mounted at the target, and answers there.
func (m *fuseMount) isAt(target string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return false
	}
	dev, err := deviceOf(target)
	return err == nil && dev == m.dev
}

// deviceOf returns the number of the file system at the target.
func deviceOf(target string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(target, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: target, Err: err}
	}
	return uint64(st.Dev), nil
}

// linger lets go of a mount that is not at its target any more. Who has it still, as a container's overlay, is answered until nobody has.
func (d *Fuse) linger(m *fuseMount, target string) {
	d.mu.Lock()
	delete(d.mounts, target)
	d.lingering[m] = true
	d.mu.Unlock()
	go func() { // ends when no mount namespace has it any more
		m.server.Wait()
		m.close()
		d.mu.Lock()
		delete(d.lingering, m)
		d.mu.Unlock()
	}()
}

// detachDead removes what earlier processes left at the target. Names and attributes the kernel still knows; this it has to ask.
func detachDead(target string) error {
	for {
		var st unix.Statfs_t
		if err := unix.Statfs(target, &st); !errors.Is(err, unix.ENOTCONN) {
			return nil
		}
		if err := detach(target); err != nil {
			return err
		}
	}
}

// close gives up what a mount had that is not mounted.
func (m *fuseMount) close() {
	m.cancel()
	_ = m.files.Close() // its blobs are not to be closed
	for _, p := range m.pools {
		p.close()
	}
}

// Unmount removes the mount at target, which must not be in use. A target where nothing is mounted is no error.
func (d *Fuse) Unmount(_ context.Context, target string) error {
	target, err := filepath.Abs(target)
	if err != nil {
		return err
	}
	d.mounting.Lock()
	defer d.mounting.Unlock()
	d.mu.Lock()
	m := d.mounts[target]
	d.mu.Unlock()
	if m == nil {
		return detachDead(target)
	}
	if err := unix.Unmount(target, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	d.mu.Lock()
	delete(d.mounts, target)
	d.mu.Unlock()
	m.cancel() // reads of other mount namespaces fail from now on, with what is behind them
	ended := make(chan struct{})
	go func() { // ends when no mount namespace has it any more
		m.server.Wait()
		m.close()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(fuseEnds):
		d.log.Warn("another mount namespace has the image still", "image", m.image.Name, "target", target)
	}
	return nil
}

// Run fetches ahead until ctx ends.
func (d *Fuse) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	for {
		d.mu.Lock()
		mounts := d.ahead
		d.ahead = nil
		d.mu.Unlock()
		for _, m := range mounts {
			tasks.Go(func() error {
				d.fetch(ctx, m)
				return nil
			})
		}
		select {
		case <-ctx.Done():
			return tasks.Wait()
		case <-d.wake:
		}
	}
}

// fetch has the peer fetch what the plan says while the mount lasts: what is read first beside the blobs, which come one after the other.
func (d *Fuse) fetch(ctx context.Context, m *fuseMount) {
	ctx, cancel := whileMounted(ctx, m.gone)
	defer cancel()
	begin := time.Now()
	first, steps := plan(m.img, m.image.Prefetch)
	chunks := byDevice(m.img)
	var beside sync.WaitGroup
	headStart(&beside, func() { d.fetchSteps(ctx, m, chunks, first) })
	d.fetchSteps(ctx, m, chunks, steps)
	beside.Wait()
	if ctx.Err() == nil {
		m.image.tellFetched(d.log, steps, begin)
	}
}

// fetchSteps fetches steps in their order. Those that fail are tried again when it is through, until none does.
func (d *Fuse) fetchSteps(ctx context.Context, m *fuseMount, chunks [][]uint32, steps []step) {
	for pause := retryAhead; ; pause = min(2*pause, maxRetryAhead) {
		var failed []step
		for _, s := range steps {
			err := m.fetchStep(ctx, chunks[s.blob], s)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				d.log.Warn("fetching ahead fails, it is tried again", "image", m.image.Name, "error", err, "pause", pause)
				failed = append(failed, s)
			}
		}
		if steps = failed; len(steps) == 0 {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// fetchStep fetches a step of a blob with the chunks, which are in the order of its device.
func (m *fuseMount) fetchStep(ctx context.Context, chunks []uint32, s step) error {
	return m.pools[s.blob].use(ctx, func(r Reader) error {
		if s.all {
			r.Prefetch()
			return awaitAll(ctx, r, 0, m.img.Blobs[s.blob].Size)
		}
		first, _ := slices.BinarySearchFunc(chunks, s.off, func(i uint32, off int64) int { return cmp.Compare(m.img.Chunks[i].DeviceOffset, off) })
		for _, i := range chunks[first:] {
			c := &m.img.Chunks[i]
			if c.DeviceOffset >= s.off+s.length {
				break
			}
			if err := awaitAll(ctx, r, c.Offset, int64(c.Length)); err != nil {
				return err
			}
		}
		return nil
	})
}

// byDevice returns the chunks of each blob in the order of its device.
func byDevice(img *bootstrap.Image) [][]uint32 {
	out := make([][]uint32, len(img.Blobs))
	for i := range img.Chunks {
		b := img.Chunks[i].Blob
		out[b] = append(out[b], uint32(i))
	}
	for _, of := range out {
		slices.SortFunc(of, func(a, b uint32) int { return cmp.Compare(img.Chunks[a].DeviceOffset, img.Chunks[b].DeviceOffset) })
	}
	return out
}

// Close unmounts everything, in use or not.
func (d *Fuse) Close() error {
	d.mu.Lock()
	mounts := d.mounts
	d.mounts = map[string]*fuseMount{}
	for m := range d.lingering {
		m.cancel()
	}
	d.mu.Unlock()
	var errs []error
	for target, m := range mounts {
		m.cancel()
		errs = append(errs, detach(target))
	}
	return errors.Join(errs...)
}

// poolReader is an io.ReaderAt that has all or nothing.
type poolReader func(p []byte, off int64) error

func (f poolReader) ReadAt(p []byte, off int64) (int, error) {
	if err := f(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// read reads the blob as it comes, with a second try.
func (p *readers) read(ctx context.Context, buf []byte, off int64) error {
	once := func() error {
		return p.use(ctx, func(r Reader) error {
			_, err := blobReader{ctx, r}.ReadAt(buf, off)
			return err
		})
	}
	if err := once(); err == nil || ctx.Err() != nil {
		return err
	}
	select {
	case <-time.After(secondTry):
	case <-ctx.Done():
	}
	return once()
}
