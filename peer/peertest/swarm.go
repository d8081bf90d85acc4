// Package peertest builds swarms for tests: real peers with real stores and the real wire over loopback, a real scheduler, and an
// origin in memory that counts what it serves and fails on demand.
package peertest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/limits"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/transfer"
	"github.com/shoal-project/shoal/scheduler"
	"github.com/shoal-project/shoal/scheduler/api"
	"github.com/shoal-project/shoal/scheduler/server"
)

// Origin is a registry in memory, and reads URLs as a host does. Its fields may be changed between reads under Lock.
type Origin struct {
	sync.Mutex
	web   *source.Source
	blobs map[digest.Digest][]byte
	// Served counts the bytes read of each blob.
	Served map[digest.Digest]int64
	// Err, when set, fails every fetch.
	Err error
	// Gate, when set, blocks every read until it is closed.
	Gate chan struct{}
	// Holds, when set, says of which blobs' bytes no read comes to an end.
	Holds func(d digest.Digest, off int64) bool
	// Pace, when set, is the time one read of up to 64 KiB takes.
	Pace time.Duration
	// Shown are the credentials of all reads: registry and repository, and what they were shown.
	Shown []string
	// Corrupt flips a bit of every byte served.
	Corrupt bool
}

// NewOrigin returns an origin that holds nothing.
func NewOrigin() *Origin {
	return &Origin{blobs: map[digest.Digest][]byte{}, Served: map[digest.Digest]int64{}}
}

// Random adds a blob of random bytes.
func (o *Origin) Random(size int, seed uint64) (peer.Blob, []byte) {
	data := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	_, _ = rng.Read(data) // never fails
	return o.Add(data), data
}

// Add adds a blob.
func (o *Origin) Add(data []byte) peer.Blob {
	d := digest.FromBytes(data)
	o.Lock()
	defer o.Unlock()
	o.blobs[d] = data
	return peer.Blob{Digest: d, Size: int64(len(data)), Origin: peer.Origin{Registry: "origin", Repository: "r"}}
}

// WithMap adds a bootstrap layer that holds the blob's chunk map, and returns the blob with its place.
func (o *Origin) WithMap(t testing.TB, b peer.Blob, data []byte) peer.Blob {
	t.Helper()
	cutter := chunkmap.NewCutter()
	if _, err := cutter.Write(data); err != nil {
		t.Fatal(err)
	}
	encoded := cutter.Map(b.Digest).Encode()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: chunkmap.FileName(b.Digest), Size: int64(len(encoded)), Mode: 0o444}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(encoded); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l := o.Add(layer.Bytes())
	b.Origin.Map = &peer.MapRef{Layer: l.Digest, Size: l.Size}
	return b
}

// Copies returns how many times over the blob was read.
func (o *Origin) Copies(b peer.Blob) float64 {
	o.Lock()
	defer o.Unlock()
	return float64(o.Served[b.Digest]) / float64(b.Size)
}

// Fetch implements peer.Source.
func (o *Origin) Fetch(ctx context.Context, b source.Blob, off, length int64, authorization string) (io.ReadCloser, error) {
	if b.Web != nil {
		return o.web.Fetch(ctx, b, off, length, authorization)
	}
	o.Lock()
	defer o.Unlock()
	o.Shown = append(o.Shown, b.Registry+"/"+b.Repository+" "+authorization)
	if o.Err != nil {
		return nil, o.Err
	}
	data, ok := o.blobs[b.Digest]
	if !ok {
		return nil, fmt.Errorf("%s: %w", b, piece.ErrAbsent)
	}
	return &stream{ctx: ctx, origin: o, blob: b.Digest, data: data[off : off+length], off: off}, nil
}

type stream struct {
	ctx    context.Context
	origin *Origin
	blob   digest.Digest
	data   []byte
	off    int64 // of data in the blob
}

func (s *stream) Read(p []byte) (int, error) {
	o := s.origin
	o.Lock()
	gate, pace, corrupt, err := o.Gate, o.Pace, o.Corrupt, o.Err
	held := o.Holds != nil && o.Holds(s.blob, s.off)
	o.Unlock()
	if held {
		<-s.ctx.Done()
		return 0, s.ctx.Err()
	}
	if gate != nil {
		select {
		case <-gate:
		case <-s.ctx.Done():
			return 0, s.ctx.Err()
		}
	}
	if err != nil {
		return 0, err
	}
	if pace > 0 {
		select {
		case <-time.After(pace):
		case <-s.ctx.Done():
			return 0, s.ctx.Err()
		}
	}
	if len(s.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 64<<10)], s.data)
	s.data, s.off = s.data[n:], s.off+int64(n)
	if corrupt {
		for i := range p[:n] {
			p[i] ^= 1
		}
	}
	o.Lock()
	o.Served[s.blob] += int64(n)
	o.Unlock()
	return n, nil
}

func (s *stream) Close() error { return nil }

// Swarm is a scheduler and the hosts around it.
type Swarm struct {
	t         testing.TB
	Origin    *Origin
	Scheduler *Process // nil without one
	Server    *server.Server
	url       string
	hosts     int
}

// Process is something that can be killed.
type Process struct{ kill func() }

// Kill ends it at once, as far as others can tell, and waits until it is gone.
func (p *Process) Kill() { p.kill() }

// NewSwarm starts a scheduler and an origin, both until the test ends.
func NewSwarm(t testing.TB) *Swarm {
	s := &Swarm{t: t, Origin: NewOrigin()}
	// Of the whole of source only URLs are read, at servers of the test.
	endpoints, err := source.NewEndpoints(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(endpoints.Close)
	s.Origin.web, err = source.New(source.Config{Patience: 2 * time.Second, Web: func(host string, _ bool) *http.Client { return endpoints.Web(host, false) }})
	if err != nil {
		t.Fatal(err)
	}
	srv := server.New(server.Config{Machine: scheduler.Config{Near: 10 * time.Millisecond}})
	s.Server = srv
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }() // ends with cancel, waited for in kill
	web := httptest.NewServer(srv.Handler())
	s.url = web.URL
	s.Scheduler = &Process{kill: sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("scheduler: %v", err)
		}
		web.CloseClientConnections()
		web.Close()
	})}
	t.Cleanup(s.Scheduler.Kill)
	return s
}

// Host is a running peer.
type Host struct {
	Process
	*peer.Peer
	Addr     string
	Store    *store.Store
	Dir      string
	registry *prometheus.Registry
}

// Option changes how a host is started.
type Option func(*hostConfig)

type hostConfig struct {
	peer  peer.Config
	lone  bool
	dir   string
	wrap  func(http.Handler) http.Handler
	quota int64
	on    net.Listener // nil for one of its own
	// scheduler is its URL; empty is the swarm's.
	scheduler string
}

// Seed makes the host a seed.
func Seed(c *hostConfig) { c.peer.Host.Seed = true }

// Zone puts the host into a zone.
func Zone(name string) Option { return func(c *hostConfig) { c.peer.Host.Zone = name } }

// Group pins the host to a group.
func Group(name string) Option { return func(c *hostConfig) { c.peer.Host.Group = name } }

// RoundTrip sets what the host measures as the way to others.
func RoundTrip(f func(ctx context.Context, addr string) (time.Duration, error)) Option {
	return func(c *hostConfig) { c.peer.RoundTrip = f }
}

// Lone starts the host without a scheduler.
func Lone(c *hostConfig) { c.lone = true }

// Listed starts hosts that know each other by a list, without a scheduler.
func (s *Swarm) Listed(n int, options ...Option) []*Host {
	s.t.Helper()
	var listeners []net.Listener
	var addrs []string
	for range n {
		l, err := new(net.ListenConfig).Listen(s.t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			s.t.Fatal(err)
		}
		listeners, addrs = append(listeners, l), append(addrs, l.Addr().String())
	}
	hosts := make([]*Host, 0, n)
	for _, l := range listeners {
		hosts = append(hosts, s.Host(append(slices.Clone(options), Lone, func(c *hostConfig) { c.on, c.peer.Peers = l, addrs })...))
	}
	return hosts
}

// Dir starts the host over an existing store.
func Dir(dir string) Option { return func(c *hostConfig) { c.dir = dir } }

// Quota bounds the host's store, in bytes.
func Quota(n int64) Option { return func(c *hostConfig) { c.quota = n } }

// Limits hold the host back.
func Limits(l *limits.Limits) Option { return func(c *hostConfig) { c.peer.Limits = l } }

// ScheduledBy has the host ask the scheduler at a URL instead of the swarm's.
func ScheduledBy(url string) Option { return func(c *hostConfig) { c.scheduler = url } }

// SelfAfter sets how long the host's tasks may stand still before they read the origin themselves.
func SelfAfter(d time.Duration) Option { return func(c *hostConfig) { c.peer.SelfAfter = d } }

// Wrap puts a handler around what the host serves to others.
func Wrap(f func(http.Handler) http.Handler) Option { return func(c *hostConfig) { c.wrap = f } }

// place settles the host's id and address, and returns the latter.
func (c *hostConfig) place(web *httptest.Server, id string) string {
	if c.on != nil {
		_ = web.Listener.Close() // unused
		web.Listener = c.on
	}
	addr := web.Listener.Addr().String()
	if len(c.peer.Peers) > 0 {
		id = addr
	}
	c.peer.Host.ID, c.peer.Host.Addr = id, addr
	return addr
}

// Host starts a peer and waits until it has a session.
func (s *Swarm) Host(options ...Option) *Host {
	s.t.Helper()
	s.hosts++
	c := hostConfig{dir: s.t.TempDir(), wrap: func(h http.Handler) http.Handler { return h }}
	for _, o := range options {
		o(&c)
	}
	h := &Host{Dir: c.dir, registry: prometheus.NewRegistry()}
	must := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	var err error
	h.Store, err = store.Open(c.dir, store.Config{MaxBytes: c.quota, Registerer: h.registry})
	must(err)
	if c.peer.Limits == nil {
		c.peer.Limits = limits.None()
	}
	wire, err := transfer.NewClient(transfer.ClientConfig{Pacer: c.peer.Limits.FromPeer()})
	must(err)
	handler := http.NotFoundHandler()
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	h.Addr = c.place(web, fmt.Sprint("host-", s.hosts))
	c.peer.Registerer = h.registry
	if c.peer.RoundTrip == nil { // loopback on a busy machine may be anything
		c.peer.RoundTrip = func(context.Context, string) (time.Duration, error) { return time.Millisecond, nil }
	}
	var schedulers peer.Schedulers
	if !c.lone {
		schedulers = Fixed{api.NewClient(cmp.Or(c.scheduler, s.url), "")}
	}
	h.Peer, err = peer.New(c.peer, h.Store, wire, s.Origin, schedulers)
	must(err)
	inner, err := transfer.NewHandler(transfer.Config{Pacer: c.peer.Limits.Upload(), Registerer: h.registry}, h.Served())
	must(err)
	handler = c.wrap(inner)
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	web.Config.BaseContext = nil
	web.Start()
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }() // ends with cancel, waited for in kill
	h.kill = sync.OnceFunc(func() {
		web.CloseClientConnections()
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("peer: %v", err)
		}
		wire.Close()
		web.CloseClientConnections()
		web.Close()
		_ = h.Store.Close() // the test is over or the host is dead
	})
	s.t.Cleanup(h.Kill)
	if !c.lone {
		s.await(h)
	}
	return h
}

func (s *Swarm) await(h *Host) {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !h.Connected(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatal("host has no session with the scheduler after 10 s")
		}
	}
}

// Read opens the blob and returns all of it.
func (h *Host) Read(ctx context.Context, b peer.Blob) ([]byte, error) {
	r, err := h.Open(ctx, b, "")
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r.Section(ctx))
}

// Counter returns the value of a counter, summed over the given label values.
func (h *Host) Counter(t testing.TB, name, label string) float64 {
	t.Helper()
	families, err := h.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" || hasLabel(m, label) {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func hasLabel(m *dto.Metric, value string) bool {
	for _, l := range m.GetLabel() {
		if l.GetValue() == value {
			return true
		}
	}
	return false
}

// Fixed is a list of schedulers that never changes.
type Fixed []*api.Client

// Watch implements peer.Schedulers.
func (f Fixed) Watch(ctx context.Context, set func([]*api.Client)) error {
	set(f)
	<-ctx.Done()
	return nil
}
