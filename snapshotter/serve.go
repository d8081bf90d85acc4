package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"google.golang.org/grpc"
)

// stopWithin is how long calls under way may take when the server stops.
const stopWithin = 3 * time.Second

// Listen takes the socket that containerd asks at, of which only its owner may make use. A socket that another process has left is replaced;
// one at which a process listens is an error.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if conn, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		_ = conn.Close() // only a question
		return nil, fmt.Errorf("%s: another process serves there; stop it or choose another address", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Serve answers containerd until ctx ends, and closes the listener.
func (s *Snapshotter) Serve(ctx context.Context, l net.Listener) error {
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(s))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }() // ends with Stop
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	last := time.AfterFunc(stopWithin, server.Stop)
	defer last.Stop()
	server.GracefulStop()
	if err := <-served; !errors.Is(err, grpc.ErrServerStopped) { // it came before the server had begun
		return err
	}
	return nil
}
