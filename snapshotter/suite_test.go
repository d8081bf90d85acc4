package snapshotter

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// What containerd asks of a snapshotter, over the socket, as it asks.
func TestRootPassesContainerdsOwnSuite(t *testing.T) {
	needRoot(t)
	// By this name the suite leaves out what overlays cannot: renaming folders of lower layers.
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := New(Config{Root: root})
		if err != nil {
			return nil, nil, err
		}
		address := filepath.Join(root, "s.sock")
		client := serve(t, s, address)
		return client, s.Close, nil
	})
}

// serve answers at the socket until the test ends and returns what containerd would ask with.
func serve(t *testing.T, s *Snapshotter, address string) snapshots.Snapshotter {
	t.Helper()
	l, err := Listen(t.Context(), address)
	check(t, err)
	return connect(t, s, l)
}

func connect(t *testing.T, s *Snapshotter, l *Socket) snapshots.Snapshotter {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	conn, err := grpc.NewClient("unix://"+l.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	t.Cleanup(func() {
		check(t, conn.Close())
		stop()
		check(t, <-done)
	})
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "shoal")
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
