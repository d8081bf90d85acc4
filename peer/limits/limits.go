// Package limits holds streams back so that they stay within rates: what a host sends to other peers, what it receives, what it reads
// from origins, and what it writes to disk, in total and for each task.
//
//	Limits ──▶ Upload, FromPeer, FromOrigin, Copy: a chain of buckets each
//	                    │
//	Pace(task, n) ──▶ bucket ──▶ line: who waits, by task; pure
//
// A stream asks Step how many bytes to move at a time, and Pace before or after each such step. Bytes come in the order of
// their tasks' turns, not of their streams: of two tasks that both want more than there is, each gets half, whatever number of
// streams it has, and no task waits while another gets two steps more. Within a task the first who asked comes first.
//
// Rates may be changed at any time; who waits is looked at anew.
//
// A bucket holds at most a fifth of a second's bytes, so that over five seconds a rate is exceeded by at most four per cent, and a busy machine loses little.
// It starts no goroutine: the next turn is a timer, which runs only while somebody waits.
package limits

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
)

// MinRate is the lowest rate that may be set, in bytes a second. Below it streams would be silent for so long that their
// other ends gave them up.
const MinRate Rate = 1 << 20

// Rates are all limits of a host, in bytes a second; zero is no limit. Bytes from an origin count as download too.
type Rates struct {
	Upload          Rate `yaml:"upload" json:"upload"`                       // to other peers
	UploadPerTask   Rate `yaml:"upload_per_task" json:"upload_per_task"`     //
	Download        Rate `yaml:"download" json:"download"`                   // from other peers and origins
	DownloadPerTask Rate `yaml:"download_per_task" json:"download_per_task"` //
	Source          Rate `yaml:"source" json:"source"`                       // from origins
	SourcePerTask   Rate `yaml:"source_per_task" json:"source_per_task"`     //
	DiskWrite       Rate `yaml:"disk_write" json:"disk_write"`               // to the store, counted when the bytes arrive
}

// Validate reports all faults at once.
func (r Rates) Validate() error {
	var errs []error
	for _, f := range []struct {
		name string
		rate Rate
	}{
		{"upload", r.Upload}, {"upload_per_task", r.UploadPerTask}, {"download", r.Download},
		{"download_per_task", r.DownloadPerTask}, {"source", r.Source}, {"source_per_task", r.SourcePerTask},
		{"disk_write", r.DiskWrite},
	} {
		if f.rate != 0 && f.rate < MinRate {
			errs = append(errs, fmt.Errorf("limits.%s: %s a second is too little, streams would stall; set at least %s, or 0 for no limit",
				f.name, f.rate, MinRate))
		}
	}
	return errors.Join(errs...)
}

// Limits are the buckets of a host. It is safe for concurrent use.
type Limits struct {
	upload, download, source, disk *bucket

	mu     sync.Mutex // guards the fields below
	rates  Rates
	shares map[string]Rate // of what each scheduler lets this host read from origins
}

// None returns limits that hold nothing back yet.
func None() *Limits {
	return &Limits{upload: newBucket(), download: newBucket(), source: newBucket(), disk: newBucket(), shares: map[string]Rate{}}
}

// New returns limits with the given rates.
func New(r Rates) (*Limits, error) {
	l := None()
	return l, l.Set(r)
}

// Set replaces all rates, for those who wait already too. On an error nothing changes.
func (l *Limits) Set(r Rates) error {
	if err := r.Validate(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rates = r
	l.upload.set(r.Upload, r.UploadPerTask)
	l.download.set(r.Download, r.DownloadPerTask)
	l.disk.set(r.DiskWrite, 0)
	l.setSourceLocked()
	return nil
}

// Rates returns what was set.
func (l *Limits) Rates() Rates {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rates
}

// ShareSource takes the share of the cluster's origin rate that a scheduler gives this host; zero is no bound from it. The
// shares of several schedulers add up, since each speaks of its own tasks, and the host's own limit holds besides.
func (l *Limits) ShareSource(scheduler string, share Rate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shares[scheduler] == share {
		return
	}
	l.shares[scheduler] = share
	l.setSourceLocked()
}

// SourceShare returns the sum of the shares, zero when there is none.
func (l *Limits) SourceShare() Rate {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shareLocked()
}

func (l *Limits) shareLocked() Rate {
	var sum Rate
	for _, s := range l.shares {
		sum += s
	}
	return sum
}

func (l *Limits) setSourceLocked() {
	l.source.set(lower(l.rates.Source, l.shareLocked()), l.rates.SourcePerTask)
}

// lower returns the lower of two rates, where zero is none.
func lower(a, b Rate) Rate {
	if a > 0 && b > 0 {
		return min(a, b)
	}
	return cmp.Or(a, b)
}

// Upload paces what is sent to other peers.
func (l *Limits) Upload() Chain { return Chain{l.upload} }

// FromPeer paces what is received from other peers and stored.
func (l *Limits) FromPeer() Chain { return Chain{l.download, l.disk} }

// FromOrigin paces what is read from origins and stored.
func (l *Limits) FromOrigin() Chain { return Chain{l.source, l.download, l.disk} }

// Copy paces what is copied on the disk.
func (l *Limits) Copy() Chain { return Chain{l.disk} }

// Chain is buckets that all have to let a stream's bytes pass. The zero Chain never holds anything back.
type Chain []*bucket

// Pace waits until n more bytes of the task may pass. Only the end of ctx is an error.
func (c Chain) Pace(ctx context.Context, task string, n int) error {
	for _, b := range c {
		if err := b.pace(ctx, task, n); err != nil {
			return err
		}
	}
	return nil
}

// Step returns how many bytes a stream should move between two calls of Pace, so that it flows evenly.
func (c Chain) Step() int {
	step := freeStep
	for _, b := range c {
		step = min(step, b.step())
	}
	return step
}
