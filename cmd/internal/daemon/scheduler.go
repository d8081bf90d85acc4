package daemon

import (
	"context"
	"io"
	"net/http"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/peer/transfer"
	"github.com/shoal-project/shoal/scheduler/server"
)

// RunScheduler runs a scheduler until ctx ends. It logs to w.
func RunScheduler(ctx context.Context, cfg config.Scheduler, version string, w io.Writer) error {
	token, err := cfg.Cluster.Token()
	if err != nil {
		return err
	}
	log := cfg.Log.Logger(w)
	l, err := listen(ctx, "listen", cfg.Listen)
	if err != nil {
		return err
	}
	limitMemory(log)
	adm := newAdmin(version)
	s := server.New(server.Config{Token: token, Log: log.With("component", "scheduler"), Registerer: adm.registry})
	rate := &originRate{apply: s.SetOriginRate, log: log}
	if err := rate.set(cfg.Limits); err != nil {
		return err
	}
	mux := http.NewServeMux()
	adm.register(mux, false)
	mux.Handle("/v1/", s.Handler())
	mux.Handle(limitsPath, transfer.RequireToken(token, serveSettings(rate.get, rate.set)))
	log.Info("scheduler ready", "listen", l.Addr().String(), "version", version)
	adm.ready.Store(true)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Run(ctx) }) // ends the sessions, so that serve can drain
	group.Go(func() error { return serve(ctx, l, mux, log) })
	err = group.Wait()
	log.Info("scheduler stopped")
	return err
}
