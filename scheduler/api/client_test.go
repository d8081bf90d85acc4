package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend is a scheduler that says it is alive and counts events.
type backend struct{ events, batches, largest atomic.Int64 }

func (b *backend) Open(context.Context, Host) (string, *Queue, func(), error) {
	return "s", NewQueue(), func() {}, nil
}

func (b *backend) Events(_ string, events []Event) error {
	b.events.Add(int64(len(events)))
	if len(events) > 0 {
		b.batches.Add(1)
	}
	if body, err := json.Marshal(events); err == nil {
		b.largest.Store(max(b.largest.Load(), int64(len(body))))
	}
	return nil
}

func (*backend) Hosts() []Host { return []Host{{ID: "n1", Addr: "10.0.0.1:7702", Seed: true}} }

// announcer takes a while for its announcement.
type announcer struct {
	takes  time.Duration
	events []Event
	opened atomic.Int64
}

func (a *announcer) Opened(s *Session) {
	a.opened.Add(1)
	time.Sleep(a.takes) // stands for a long look at the disk
	s.Send(a.events...)
}

func (a *announcer) Command(*Session, Command) {}

func TestHostsAreToldToWhoHasTheToken(t *testing.T) {
	web := httptest.NewServer(NewHandler(&backend{}, "secret"))
	t.Cleanup(web.Close)
	got, err := NewClient(web.URL, "secret").Hosts(t.Context())
	if want := (Host{ID: "n1", Addr: "10.0.0.1:7702", Seed: true}); err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("hosts %v, error %v; want %v", got, err, want)
	}
	if got, err := NewClient(web.URL, "wrong").Hosts(t.Context()); err == nil || !strings.Contains(err.Error(), "token") {
		t.Errorf("who has another token got %v, error %v", got, err)
	}
}

func TestLongAnnouncementDoesNotCostTheSession(t *testing.T) {
	b := &backend{}
	web := httptest.NewServer(NewHandler(b, ""))
	t.Cleanup(web.Close)
	var events []Event
	for range 20 {
		events = append(events, Event{Leave: &Leave{Task: strings.Repeat("x", 512<<10)}})
	}
	a := &announcer{takes: silence + 300*time.Millisecond, events: events}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	client := NewClient(web.URL, "")
	go func() { done <- client.Run(ctx, Host{ID: "h", Addr: "h:1"}, a) }()
	for i := 0; b.events.Load() < 20 && i < 8000 && len(done) == 0; i++ {
		time.Sleep(time.Millisecond)
	}
	cancel()
	err := <-done
	client.http.CloseIdleConnections()
	if got := b.events.Load(); got != 20 {
		t.Fatalf("%d of 20 events arrived: %v", got, err)
	}
	if got := b.largest.Load(); got > 2*maxBatch {
		t.Errorf("a batch had %d bytes", got)
	}
}

func TestURLOfAnotherServiceIsNamed(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	err := NewClient(web.URL, "").Run(t.Context(), Host{ID: "h", Addr: "h:1"}, &announcer{})
	if err == nil || !strings.Contains(err.Error(), "no scheduler") || !strings.Contains(err.Error(), web.URL) {
		t.Errorf("error %v does not name the way out", err)
	}
}
