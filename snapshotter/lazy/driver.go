package lazy

import (
	"context"
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
)

// Config configures a Driver.
type Config struct {
	// Dir is the driver's own folder: records of mounts, and blobs that have to be expanded. It must be on a file system that fanotify
	// can hold readers of (ext4, xfs, btrfs), as must the files of the blobs.
	Dir string
	// Log is where faults of reads are reported; nil discards.
	Log *slog.Logger
	// Registerer takes the metrics; nil keeps them private.
	Registerer prometheus.Registerer
}

// A Driver mounts images. Its methods may be called concurrently.
type Driver struct{}

// New returns a driver. It starts nothing: reads of mounts wait until Run runs.
func New(cfg Config) (*Driver, error) { return nil, errors.New("not there yet") }

// Run answers reads and fetches ahead until ctx ends. Mounts stay, and who reads what has not come yet waits for the next process that
// runs a driver over the same folder.
func (d *Driver) Run(ctx context.Context) error { return nil }

// Mount makes the image readable at the folder target. It returns when files can be opened; their bytes come when they are read, and
// the whole image as image.Prefetch says. A target where an earlier process mounted the same image is taken over: after a start, call
// Mount for each image that should be there, then Settled.
func (d *Driver) Mount(ctx context.Context, image Image, target string) error { return nil }

// Unmount removes the mount at target. A target where nothing is mounted is no error.
func (d *Driver) Unmount(ctx context.Context, target string) error { return nil }

// Settled says that Mount was called for every image that an earlier process had mounted and that is still wanted. Until then reads of
// what nobody claimed wait, from then on they fail.
func (d *Driver) Settled() {}
