package lazy

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// job is what is fetched ahead for a mount.
type job struct {
	mount *mount
	first []step // beside the others, as somebody who waits for them
	steps []step
}

const (
	// retryAhead and maxRetryAhead are the first and the longest pause after a step failed.
	retryAhead    = time.Second
	maxRetryAhead = time.Minute
	// firstAtOnce is how many of the first steps are under way at a time: enough to hide the way to the origin, and few, as they have an order.
	firstAtOnce = 2
	// firstAlone is how long the others wait for them at the most.
	firstAlone = 300 * time.Millisecond
)

func (d *Driver) enqueue(j job) {
	d.mu.Lock()
	d.jobs = append(d.jobs, j)
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
	ctx, cancel := whileMounted(ctx, j.mount.gone)
	defer cancel()
	begin := time.Now()
	steps, pace := sync.WaitGroup{}, newPace(time.Now)
	headStart(&steps, func() { d.runFirst(ctx, j) })
	for i, s := range j.steps {
		dev := j.mount.devices[s.blob]
		if dev.whole.Load() {
			continue
		}
		if !pace.wait(ctx, together(j.steps[:i], s)) {
			break
		}
		progress := pace.begin(s.length)
		steps.Go(func() {
			d.runStep(ctx, j.mount, dev, s, progress)
			progress(s.length)
		})
	}
	steps.Wait()
	if ctx.Err() == nil {
		j.mount.image.tellFetched(d.log, j.steps, begin)
	}
}

// tellFetched logs that what the steps say is there, since begin. Of nothing it says nothing.
func (i Image) tellFetched(log *slog.Logger, steps []step, begin time.Time) {
	if len(steps) == 0 {
		return
	}
	var total int64
	for _, s := range steps {
		total += s.length
	}
	about := []any{"image", i.Name, "bytes", total, "seconds", time.Since(begin).Seconds()}
	if len(i.Prefetch.Files) > 0 {
		log.Info("image fetched as far as it was asked for", about...)
	} else {
		log.Info("image fetched", about...)
	}
}

// tellAbsent warns of what is to be fetched ahead and the image does not have.
func (i Image) tellAbsent(log *slog.Logger, img *bootstrap.Image) {
	var absent []string
	for _, name := range i.Prefetch.Files {
		if lookup(img, name) == nil {
			absent = append(absent, name)
		}
	}
	if len(absent) > 0 {
		log.Warn("the image does not have what is to be fetched first of it", "image", i.Name, "paths", absent)
	}
}

// together returns how many steps are always to be under way where s follows on others. Programs come in their order. Of data it is two: at the end of one,
// the nodes that are ahead would else take what seeds have to send of the next, and the others would have no use for it.
func together(before []step, s step) int {
	if n := len(before); n > 0 && before[n-1].data && s.data {
		return 2
	}
	return 1
}

// whileMounted returns a context that ends when gone is closed too.
func whileMounted(ctx context.Context, gone <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends with the context
		select {
		case <-gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// headStart has what is read first fetched beside the rest, which begins when this returns.
func headStart(running *sync.WaitGroup, first func()) {
	done := make(chan struct{})
	running.Go(func() {
		defer close(done)
		first()
	})
	select {
	case <-done:
	case <-time.After(firstAlone):
	}
}

// runFirst fetches what is read first.
func (d *Driver) runFirst(ctx context.Context, j job) {
	var steps errgroup.Group
	steps.SetLimit(firstAtOnce)
	for _, s := range j.first {
		dev := j.mount.devices[s.blob]
		if dev.whole.Load() {
			continue
		}
		steps.Go(func() error {
			d.runStep(ctx, j.mount, dev, s, func(int64) {})
			return nil
		})
	}
	_ = steps.Wait() // none fails
}

// runStep repeats a step until it succeeds.
func (d *Driver) runStep(ctx context.Context, m *mount, dev *device, s step, progress func(done int64)) {
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
			err = dev.filler.fetch(ctx, progress)
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
