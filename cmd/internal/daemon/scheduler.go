package daemon

import (
	"context"
	"io"
	"net/http"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/peer/transfer"
	"github.com/shoal-project/shoal/scheduler"
	"github.com/shoal-project/shoal/scheduler/identity"
	"github.com/shoal-project/shoal/scheduler/server"
)

// RunScheduler runs a scheduler until ctx ends. It logs to w.
func RunScheduler(ctx context.Context, cfg config.Scheduler, version string, w io.Writer) error {
	token, err := cfg.Cluster.Token()
	if err != nil {
		return err
	}
	log := cfg.Log.Logger(w)
	id, err := cfg.Cluster.TLS.Identity(identity.Scheduler, log.With("component", "identity"))
	if err != nil {
		return err
	}
	l, err := listen(ctx, "listen", cfg.Listen)
	if err != nil {
		return err
	}
	limitMemory(log)
	adm := newAdmin(version)
	places, err := cfg.Places()
	if err != nil {
		return err
	}
	spans, err := newTracer(cfg.Tracing, "shoal-scheduler", l.Addr().String(), version, log.With("component", "tracing"))
	if err != nil {
		_ = l.Close() // nothing is served yet
		return err
	}
	defer spans.close()
	s := server.New(server.Config{Token: token, Tracer: spans.tracer(), Networks: places, Machine: scheduler.Config{Near: cfg.Near}, Log: log.With("component", "scheduler"), Registerer: adm.registry})
	rate := &originRate{apply: s.SetOriginRate, log: log}
	if err := rate.set(cfg.Limits); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	if cfg.Admin.Listen != "" {
		al, err := listen(ctx, "admin.listen", cfg.Admin.Listen)
		if err != nil {
			_ = l.Close() // nothing is served yet
			return err
		}
		own := http.NewServeMux()
		adm.register(own, false)
		group.Go(func() error { return serve(ctx, al, own, log) })
	}
	log.Info("scheduler ready", "listen", l.Addr().String(), "tls", id != nil, "version", version)
	adm.ready.Store(true)
	group.Go(func() error { return s.Run(ctx) }) // ends the sessions, so that serve can drain
	group.Go(func() error {
		return serve(ctx, serverTLS(l, id), schedulerHandler(s, adm, serveSettings(rate.get, rate.set), token, cfg.Admin.Listen == ""), log)
	})
	err = group.Wait()
	log.Info("scheduler stopped")
	return err
}

// schedulerHandler is what the scheduler's port serves: nothing but /healthz to whoever has not the token.
func schedulerHandler(s *server.Server, adm *admin, limits http.Handler, token string, administered bool) http.Handler {
	inner := http.NewServeMux()
	inner.Handle("/v1/", s.Handler())
	inner.Handle(limitsPath, limits)
	outer := http.NewServeMux()
	if administered {
		adm.register(inner, false)
		outer.HandleFunc("GET /healthz", adm.health)
	}
	outer.Handle("/", transfer.RequireToken(token, inner))
	return outer
}
