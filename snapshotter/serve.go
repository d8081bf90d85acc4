package snapshotter

import (
	"context"
	"errors"
	"net"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

const (
	// stopWithin is how long calls under way may take when the server stops.
	stopWithin = 3 * time.Second
	// lookEvery is how often it is looked whether containerd still finds the socket.
	lookEvery = time.Second
)

// Serve answers containerd until ctx ends, and closes the socket. When the socket is removed, or taken by somebody who leaves, it is made again.
func (s *Snapshotter) Serve(ctx context.Context, socket *Socket) error {
	server := grpc.NewServer(grpc.Creds(callers{s}))
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(s))
	tasks, ctx := errgroup.WithContext(ctx)
	serve := func(l net.Listener) {
		tasks.Go(func() error {
			err := server.Serve(l) // ends with Stop, or when the listener was replaced
			if errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		})
	}
	if socket.listener != nil {
		serve(socket.listener)
	}
	tasks.Go(func() error {
		s.watch(ctx, socket, serve)
		last := time.AfterFunc(stopWithin, server.Stop)
		defer last.Stop()
		server.GracefulStop()
		return socket.Close()
	})
	return tasks.Wait()
}

// watch looks after the socket and the folder until ctx ends.
func (s *Snapshotter) watch(ctx context.Context, socket *Socket, serve func(net.Listener)) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		l, news := socket.recover(ctx)
		if news != nil && ctx.Err() == nil {
			s.log.Error("socket is lost, it is tried again", "error", news)
		}
		if l != nil {
			s.log.Warn("socket was lost, and is there again", "address", socket.path)
			serve(l)
		}
		s.look()
	}
}

// look notes whether the folder of snapshots is there, and says when that changes.
func (s *Snapshotter) look() {
	was, now := load(s.fault.Load()), s.usedElsewhere()
	switch {
	case now != nil && was == nil:
		s.log.Error("snapshotter does not work", "error", now)
	case now == nil && was != nil:
		s.log.Warn("snapshotter works again", "root", s.cfg.Root)
	}
	s.fault.Store(&now)
}

// Fault returns what keeps the snapshotter from its work just now, or nil.
func (s *Snapshotter) Fault() error { return errors.Join(load(s.fault.Load()), load(s.blind.Load())) }
