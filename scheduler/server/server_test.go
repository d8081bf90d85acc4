package server

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/scheduler"
	"github.com/shoal-project/shoal/scheduler/api"
	"github.com/shoal-project/shoal/scheduler/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hostFake is a host that records what it is told.
type hostFake struct {
	opened   chan *api.Session
	commands chan api.Command
}

func (h *hostFake) Opened(s *api.Session)                 { h.opened <- s }
func (h *hostFake) Command(_ *api.Session, c api.Command) { h.commands <- c }

func newHost() *hostFake {
	return &hostFake{opened: make(chan *api.Session, 4), commands: make(chan api.Command, 64)}
}

// start runs a server and returns its URL.
func start(t *testing.T, cfg Config) string {
	t.Helper()
	s := New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	web := httptest.NewServer(s.Handler())
	t.Cleanup(func() {
		cancel()
		<-done
		web.Close()
	})
	return web.URL
}

// connect runs a session until the test ends or stop is called.
func connect(t *testing.T, url, token string, host api.Host) (h *hostFake, stop func() error) {
	t.Helper()
	h = newHost()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- api.NewClient(url, token).Run(ctx, host, h) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { _ = stop() })
	return h, stop
}

func await[T any](t *testing.T, c <-chan T, what string, ok func(T) bool) T {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case v := <-c:
			if ok(v) {
				return v
			}
		case <-deadline:
			t.Fatalf("no %s within 10 s", what)
		}
	}
}

func whatever[T any](T) bool { return true }

func task() api.Task {
	return api.Task{ID: "sha256:x", Pieces: 4, PieceSize: 256 << 10, Origin: []byte(`{"a":1}`)}
}

func TestSeedIsLeasedWhatAPeerWants(t *testing.T) {
	url := start(t, Config{Token: "secret"})
	seed, stopSeed := connect(t, url, "secret", api.Host{ID: "seed", Addr: "seed:1", Seed: true})
	await(t, seed.opened, "session of the seed", whatever)
	peer, _ := connect(t, url, "secret", api.Host{ID: "peer", Addr: "peer:1"})
	session := await(t, peer.opened, "session of the peer", whatever)
	session.Send(api.Event{Join: &api.Join{Task: task(), Wants: true}})

	lease := await(t, seed.commands, "lease", func(c api.Command) bool { return c.Lease != nil }).Lease
	if lease.Run != (api.Run{0, 4}) || string(lease.Task.Origin) != `{"a":1}` {
		t.Errorf("lease %+v", lease)
	}
	await(t, peer.commands, "neighbour", func(c api.Command) bool {
		return c.Neighbours != nil && len(c.Neighbours.Hosts) == 1 && c.Neighbours.Hosts[0].Addr == "seed:1"
	})
	_ = stopSeed() // the seed dies: the peer itself reads
	await(t, peer.commands, "lease after the seed's death", func(c api.Command) bool { return c.Lease != nil })
}

func TestSilentHostLosesItsSession(t *testing.T) {
	s := New(Config{HostSilence: time.Second})
	_, commands, closed, err := s.Open(t.Context(), api.Host{ID: "h", Addr: "h:1"})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s.tick(now)
	if said, ended := commands.Take(); len(said) != 1 || said[0].Seeds == nil || ended {
		t.Errorf("said %v, ended %v; want the list of seeds", said, ended)
	}
	s.tick(now.Add(time.Minute))
	if _, ended := commands.Take(); ended {
		t.Error("a minute without a tick was taken for one in which the host was silent")
	}
	for i := range 10 {
		s.tick(now.Add(time.Minute + time.Duration(i)*scheduler.NextTick))
	}
	if _, ended := commands.Take(); !ended {
		t.Error("the session of a silent host is still open")
	}
	closed()
	if hosts := s.machine.Snapshot().Hosts; len(hosts) != 0 {
		t.Errorf("hosts %v", hosts)
	}
}

func TestWrongTokenIsNamed(t *testing.T) {
	url := start(t, Config{Token: "secret"})
	err := api.NewClient(url, "other").Run(t.Context(), api.Host{ID: "h", Addr: "h:1"}, newHost())
	if err == nil || !strings.Contains(err.Error(), "token_file") {
		t.Errorf("error %v does not name the way out", err)
	}
}

func TestRestartedHostReplacesItsOldSession(t *testing.T) {
	url := start(t, Config{})
	first, stopFirst := connect(t, url, "", api.Host{ID: "h", Addr: "h:1"})
	await(t, first.opened, "first session", whatever)
	second, _ := connect(t, url, "", api.Host{ID: "h", Addr: "h:2"})
	session := await(t, second.opened, "second session", whatever)
	_ = stopFirst()
	session.Send(api.Event{Join: &api.Join{Task: task(), Wants: true}})
	await(t, second.commands, "lease in the second session", func(c api.Command) bool { return c.Lease != nil })
}

func TestHostWhoseNameAnotherTakesIsTold(t *testing.T) {
	url := start(t, Config{})
	first, ended := newHost(), make(chan error, 1)
	go func() { ended <- api.NewClient(url, "").Run(t.Context(), api.Host{ID: "h", Addr: "h:1"}, first) }()
	await(t, first.opened, "first session", whatever)
	connect(t, url, "", api.Host{ID: "h", Addr: "h:2"})
	if err := await(t, ended, "the first session's end", func(error) bool { return true }); err == nil || !strings.Contains(err.Error(), "at h:2, has the name h too") {
		t.Errorf("the first host's session ended with %v", err)
	}
}

func TestSecondHostOfTheSameNameIsReported(t *testing.T) {
	var log bytes.Buffer
	s := New(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	for _, addr := range []string{"h:1", "h:1", "h:2"} {
		if strings.Contains(log.String(), "same name") {
			t.Error("a restarted host was taken for another one")
		}
		if _, _, _, err := s.Open(t.Context(), api.Host{ID: "h", Addr: addr}); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(log.String(), "a name of its own") {
		t.Errorf("the log does not tell of the second host:\n%s", log.String())
	}
}

// TestHostThatDoesNotReadLosesItsSession lets a task grow for a host whose queue nobody empties.
func TestHostThatDoesNotReadLosesItsSession(t *testing.T) {
	s := New(Config{})
	_, commands, closed, err := s.Open(t.Context(), api.Host{ID: "deaf", Addr: "h:1"})
	if err != nil {
		t.Fatal(err)
	}
	defer closed()
	deaf := func() bool {
		return slices.ContainsFunc(s.machine.Snapshot().Hosts, func(h scheduler.Host) bool { return h.ID == "deaf" })
	}
	now := time.Now()
	for i := 0; i < 10_000 && deaf(); i++ { // seeds that come or go are told to all at the next tick
		id := fmt.Sprint("seed", i%2)
		_, _, gone, err := s.Open(t.Context(), api.Host{ID: id, Addr: id + ":1", Seed: true})
		if err != nil {
			t.Fatal(err)
		}
		gone()
		now = now.Add(scheduler.NextTick / 1000) // too little to count as silence
		s.tick(now)
	}
	if _, ended := commands.Take(); deaf() || !ended {
		t.Errorf("the queue of a host that does not read has no bound: host there %v, queue ended %v", deaf(), ended)
	}
}

func TestHostThatDoesNotSayWhereItStandsIsPlacedByItsAddress(t *testing.T) {
	networks, err := policy.NewNetworks([]policy.Network{{CIDR: "10.1.0.0/16", Place: policy.Place{Locality: policy.Locality{Zone: "a"}, Group: "g"}}})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Networks: networks})
	for _, h := range []api.Host{{ID: "h1", Addr: "10.1.2.3:1"}, {ID: "h2", Addr: "10.1.2.4:1", Zone: "b"}} {
		if _, _, _, err := s.Open(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	for i, zone := range []string{"a", "b"} {
		if got := s.machine.Snapshot().Hosts[i]; got.Locality.Zone != zone || got.Group != "g" {
			t.Errorf("%s is in zone %q and group %q, want %q and g", got.ID, got.Locality.Zone, got.Group, zone)
		}
	}
}
