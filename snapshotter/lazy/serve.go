package lazy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

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

// fill brings a range, with a second try.
func (d *Driver) fill(ctx context.Context, dev *device, e fanotify.Event) error {
	err := dev.filler.fill(ctx, e.Off, e.Len)
	if err == nil || errors.Is(err, errReplaced) {
		return err
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
	users := append([]*mount(nil), dev.users...)
	d.mu.Unlock()
	for _, m := range users {
		d.keepRecord(m)
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

// job is what is fetched ahead for a mount.
type job struct {
	mount *mount
	steps []step
}

const (
	// maxAhead is how many steps of a plan are under way at once.
	maxAhead = 3
	// retryAhead and maxRetryAhead are the first and the longest pause after a step failed.
	retryAhead    = time.Second
	maxRetryAhead = time.Minute
)

func (d *Driver) enqueue(m *mount, steps []step) {
	d.mu.Lock()
	d.jobs = append(d.jobs, job{m, steps})
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// fetchAhead runs the jobs as they come.
func (d *Driver) fetchAhead(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	for {
		select {
		case <-ctx.Done():
			return tasks.Wait()
		case <-d.wake:
		}
		d.mu.Lock()
		jobs := d.jobs
		d.jobs = nil
		d.mu.Unlock()
		for _, j := range jobs {
			tasks.Go(func() error {
				d.runJob(ctx, j)
				return nil
			})
		}
	}
}

// runJob fetches what a plan says, in its order as far as it goes.
func (d *Driver) runJob(ctx context.Context, j job) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begin := time.Now()
	steps := new(errgroup.Group)
	steps.SetLimit(maxAhead)
	unmounted := make(chan struct{})
	defer close(unmounted)
	go func() { // ends with the job
		select {
		case <-j.mount.gone:
			cancel()
		case <-unmounted:
		}
	}()
	for _, s := range j.steps {
		dev := j.mount.devices[s.blob]
		if dev.whole.Load() {
			continue
		}
		steps.Go(func() error {
			d.runStep(ctx, j.mount, dev, s)
			return nil
		})
	}
	_ = steps.Wait() // none fails
	if ctx.Err() == nil {
		d.log.Info("image fetched", "image", j.mount.image.Name, "target", j.mount.target, "seconds", time.Since(begin).Seconds())
	}
}

// runStep repeats a step until it succeeds.
func (d *Driver) runStep(ctx context.Context, m *mount, dev *device, s step) {
	d.mu.Lock()
	if dev.refs == 0 {
		d.mu.Unlock()
		return
	}
	dev.refs++
	d.mu.Unlock()
	defer d.letGo(dev)
	for pause := retryAhead; ctx.Err() == nil; pause = min(2*pause, maxRetryAhead) {
		var err error
		if s.all {
			err = dev.filler.fetch(ctx)
		} else {
			err = dev.filler.fill(ctx, s.off, s.length)
		}
		if err == nil {
			d.finish(dev)
			if !s.all || dev.whole.Load() {
				return
			} // what came first has to be verified again: it took long
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			d.log.Warn("fetching ahead fails, it is tried again", "image", m.image.Name, "error", err, "pause", pause)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
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
