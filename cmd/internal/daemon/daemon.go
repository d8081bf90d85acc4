// Package daemon wires the parts of Shoal into the daemons: listeners, health, metrics, and an ordered shutdown.
//
// Shutdown goes in order: first the mirror stops accepting and its streams drain, then the peer stops its downloads, then the
// store closes. Each daemon serves /healthz, which is 200 once it is ready, and /metrics.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/shoal-project/shoal/peer/transfer"
)

// drainTime is how long streams may go on after a daemon was told to stop.
const drainTime = 10 * time.Second

// admin answers /healthz and /metrics.
type admin struct {
	ready    atomic.Bool
	registry *prometheus.Registry
}

func newAdmin(version string) *admin {
	a := &admin{registry: prometheus.NewRegistry()}
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "shoal_build_info", Help: "The version that runs; always 1.",
		ConstLabels: prometheus.Labels{"version": version}})
	info.Set(1)
	a.registry.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return a
}

// register adds the administrative routes; profiles only where the listener is for administrators alone.
func (a *admin) register(mux *http.ServeMux, profiles bool) {
	mux.HandleFunc("GET /healthz", a.health)
	if profiles {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{Registry: a.registry}))
}

// health answers whether the daemon is ready.
func (a *admin) health(w http.ResponseWriter, _ *http.Request) {
	if !a.ready.Load() {
		http.Error(w, "not ready", http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ok\n")) // the caller may have left
}

// listen opens a TCP listener; the error names the configuration key that would change it.
func listen(ctx context.Context, key, addr string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: %s is in use by another process; stop that one or set another address", key, addr)
	}
	if errors.Is(err, syscall.EACCES) {
		return nil, fmt.Errorf("%s: not allowed to listen on %s; choose a port above 1023 or run as root", key, addr)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return l, nil
}

// serve serves on l until ctx ends, lets streams drain, and returns when all connections are gone.
func serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	return serveUnder(ctx, context.WithoutCancel(ctx), l, h, log)
}

// serveEndless is serve for a handler with streams that only end with their request's context: it ends with ctx.
func serveEndless(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	return serveUnder(ctx, ctx, l, h, log)
}

// serveUnder is serve with requests whose contexts are below base.
func serveUnder(ctx, base context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	base, stop := context.WithCancel(base)
	defer stop()
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return base }, ConnContext: transfer.ConnContext, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }() // ends with Shutdown or Close below
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	err := server.Shutdown(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		log.Warn("streams cut at shutdown", "after", drainTime)
		err = server.Close()
	}
	if servedErr := <-ended; err == nil && !errors.Is(servedErr, http.ErrServerClosed) {
		return servedErr
	}
	return err
}
