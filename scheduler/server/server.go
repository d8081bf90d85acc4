// Package server is the shell around the scheduler's state machine: it keeps the sessions of the hosts, turns what they say into
// events, lets time pass, and sends the commands. One mutex guards the machine, and nothing blocks under it: a host that
// does not read its commands loses its session.
package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/shoal-project/shoal/scheduler"
	"github.com/shoal-project/shoal/scheduler/api"
	"github.com/shoal-project/shoal/scheduler/policy"
	"github.com/shoal-project/shoal/tracing"
)

// Config configures a Server.
type Config struct {
	// Machine tunes the decisions.
	Machine scheduler.Config
	// Token admits hosts; empty admits everybody.
	Token string
	// Networks say where hosts stand that do not say so themselves.
	Networks policy.Networks
	// HostSilence is how long a host may say nothing before it counts as dead. Default 1.25 s: two beats that did not come. Time
	// that the server itself was not given by its machine does not count.
	HostSilence time.Duration
	// Log is where sessions are reported; nil discards.
	Log *slog.Logger
	// Registerer takes the metrics; nil keeps them private.
	Registerer prometheus.Registerer
	// Tracer records what is done for hosts that trace; nil does not.
	Tracer trace.Tracer
}

// Server is a scheduler. Handler and Run may be used concurrently; Run must be running for leases to move in time.
type Server struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	mu       sync.Mutex // guards all below
	machine  *scheduler.Machine
	sessions map[string]*session           // by session id
	byHost   map[scheduler.HostID]*session // the newest session of each host
	ticked   time.Time                     // the last tick
}

type session struct {
	id       string
	host     scheduler.HostID
	addr     string
	commands *api.Queue
	silent   time.Duration // since it was heard last, in ticks
	ended    bool
}

// New returns a server with an empty state.
func New(cfg Config) *Server {
	cfg.HostSilence = cmp.Or(cfg.HostSilence, 5*api.Beat/2)
	if cfg.Tracer == nil {
		cfg.Tracer = noop.Tracer{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, log: cfg.Log, sessions: map[string]*session{}, byHost: map[scheduler.HostID]*session{}}
	s.machine = scheduler.New(cfg.Machine, mathrand.New(mathrand.NewPCG(mathrand.Uint64(), mathrand.Uint64())))
	s.metrics = newMetrics(cfg.Registerer)
	return s
}

// Handler serves the hosts' API.
func (s *Server) Handler() http.Handler { return api.NewHandler(s, s.cfg.Token) }

// Run lets time pass until ctx ends, then ends all sessions.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(scheduler.NextTick)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			s.tick(now)
		case <-ctx.Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, ses := range s.sessions {
				s.endLocked(ses)
			}
			return nil
		}
	}
}

func (s *Server) tick(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	passed := min(now.Sub(s.ticked), 2*scheduler.NextTick) // a tick that came late says nothing of the hosts
	s.ticked = now
	for _, ses := range s.sessions {
		if ses.silent += passed; ses.silent > s.cfg.HostSilence {
			s.log.Warn("host silent", "host", ses.host, "for", ses.silent)
			s.dropLocked(now, ses)
		}
	}
	s.stepLocked(now, scheduler.Tick{})
	s.metrics.observe(s.machine.Snapshot())
}

// Zones returns the zone of each host, in the order of their names.
func (s *Server) Zones() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.machine.Snapshot().Zones
}

// Hosts implements api.Backend.
func (s *Server) Hosts() []api.Host {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fromHosts(s.machine.Snapshot().Hosts)
}

// SetOriginRate changes the rate at which all hosts together may read origins, in bytes a second; zero is no bound.
func (s *Server) SetOriginRate(rate int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stepLocked(time.Now(), scheduler.OriginRate{Rate: rate})
}

// Open implements api.Backend.
func (s *Server) Open(_ context.Context, h api.Host) (string, *api.Queue, func(), error) {
	if h.ID == "" || h.Addr == "" {
		return "", nil, nil, errors.New("a host needs an id and an address")
	}
	ses := &session{id: rand.Text(), host: scheduler.HostID(h.ID), addr: h.Addr, commands: api.NewQueue()}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if old := s.byHost[ses.host]; old != nil {
		if old.addr != h.Addr {
			s.log.Warn("a host with the same name replaces another; give each node a name of its own", "host", h.ID,
				"addr", h.Addr, "before", old.addr)
			old.commands.Push(api.Command{Ended: &api.Ended{Why: fmt.Sprintf("another host, at %s, has the name %s too; give each node a name of its own", h.Addr, h.ID)}})
		}
		s.endLocked(old)
	}
	s.sessions[ses.id], s.byHost[ses.host] = ses, ses
	at := s.cfg.Networks.Complete(policy.Place{Locality: policy.Locality{Zone: h.Zone, Rack: h.Rack}, Group: h.Group}, h.Addr)
	s.stepLocked(now, scheduler.HostJoined{Host: scheduler.Host{ID: ses.host, Addr: h.Addr, Seed: h.Seed, Locality: at.Locality, Group: at.Group}})
	s.log.Info("host joined", "host", h.ID, "addr", h.Addr, "seed", h.Seed, "zone", at.Zone, "rack", at.Rack, "group", at.Group)
	return ses.id, ses.commands, func() { s.gone(ses) }, nil
}

func (s *Server) gone(ses *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !ses.ended {
		s.log.Info("host left", "host", ses.host)
		s.dropLocked(time.Now(), ses)
	}
}

// dropLocked ends a session and tells the machine that its host is gone.
func (s *Server) dropLocked(now time.Time, ses *session) {
	s.endLocked(ses)
	if s.byHost[ses.host] == ses {
		delete(s.byHost, ses.host)
		s.stepLocked(now, scheduler.HostLeft{Host: ses.host})
	}
}

func (s *Server) endLocked(ses *session) {
	if ses.ended {
		return
	}
	ses.ended = true
	delete(s.sessions, ses.id)
	ses.commands.End()
}

// Events implements api.Backend.
func (s *Server) Events(id string, events []api.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses := s.sessions[id]
	if ses == nil {
		return api.ErrNoSession
	}
	ses.silent = 0
	now := time.Now()
	for i, ev := range events {
		e, ok := toEvent(ses.host, ev)
		if !ok {
			return fmt.Errorf("event %d has no known content", i)
		}
		s.metrics.events.Inc()
		end := s.traceJoin(ses, ev)
		s.stepLocked(now, e)
		end()
	}
	return nil
}

// traceJoin begins the span of a host's joining, if it traces its task, and returns what ends it.
func (s *Server) traceJoin(ses *session, ev api.Event) (end func()) {
	if ev.Join == nil || ev.Join.Trace == "" {
		return func() {}
	}
	_, span := s.cfg.Tracer.Start(tracing.WithParent(context.Background(), ev.Join.Trace), "join", trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("shoal.blob", ev.Join.Task.ID), attribute.String("shoal.host", string(ses.host))))
	return func() { span.End() }
}

func (s *Server) stepLocked(now time.Time, ev scheduler.Event) {
	began := time.Now()
	commands := s.machine.Step(now, ev)
	s.metrics.step.Observe(time.Since(began).Seconds())
	for _, cmd := range commands {
		ses := s.byHost[cmd.To]
		if ses == nil || ses.ended {
			continue
		}
		s.metrics.commands.Inc()
		if !ses.commands.Push(toCommand(cmd.Body)) {
			s.log.Warn("host does not read its commands", "host", ses.host)
			s.endLocked(ses) // its stream ends, gone reports the rest
			delete(s.byHost, ses.host)
			defer s.stepLocked(now, scheduler.HostLeft{Host: ses.host})
		}
	}
}
