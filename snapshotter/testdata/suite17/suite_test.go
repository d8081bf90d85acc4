// Package suite17 runs the suite of snapshotters of containerd 1.7, with that version's client, at sockets in the folder SNAPSHOTTERS. It is
// a module of its own so that nothing of containerd 1.7 is in the main one.
package suite17

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// TestSuite takes the next socket, 1.sock and so on, for each test of the suite: each wants an empty snapshotter.
func TestSuite(t *testing.T) {
	dir := os.Getenv("SNAPSHOTTERS")
	if dir == "" {
		t.Skip("SNAPSHOTTERS names no folder of sockets; the snapshotter's own tests run this one")
	}
	var taken atomic.Int64
	// By this name the suite leaves out what overlays cannot: renaming folders of lower layers.
	testsuite.SnapshotterSuite(t, "overlayfs", func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
		socket := filepath.Join(dir, fmt.Sprintf("%d.sock", taken.Add(1)))
		if _, err := os.Stat(socket); err != nil {
			return nil, nil, fmt.Errorf("the suite has more tests than there are snapshotters: %w", err)
		}
		conn, err := grpc.Dial("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, nil, err
		}
		return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "shoal"), conn.Close, nil
	})
}
