package peer_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/peertest"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/scheduler/api"
	"github.com/shoal-project/shoal/scheduler/server"
)

// changing is a list of schedulers that its test changes.
type changing chan []*api.Client

func (c changing) Watch(ctx context.Context, set func([]*api.Client)) error {
	for {
		select {
		case list := <-c:
			set(list)
		case <-ctx.Done():
			return nil
		}
	}
}

// TestPeerFollowsTheListOfSchedulers replaces one of two schedulers by a third, and then takes all but that.
func TestPeerFollowsTheListOfSchedulers(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	clients := make([]*api.Client, 3)
	for i := range clients {
		s := server.New(server.Config{})
		web := httptest.NewServer(s.Handler())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }() // ends with ctx
		t.Cleanup(func() { <-done; web.Close() })
		clients[i] = api.NewClient(web.URL, "")
	}
	st, err := store.Open(t.TempDir(), store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	list := make(changing)
	p, err := peer.New(peer.Config{Host: api.Host{ID: "h", Addr: "127.0.0.1:1"}}, st, nil, &peertest.Origin{}, list)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()     // ends with ctx
	t.Cleanup(func() { cancel(); <-done }) // before the schedulers are waited for
	if p.Connected() {
		t.Error("connected before any scheduler is known")
	}
	for _, now := range [][]*api.Client{clients[:2], clients[1:], clients[2:]} {
		list <- now
		var want []peer.LinkStatus
		for _, c := range now {
			want = append(want, peer.LinkStatus{URL: c.URL(), Live: true})
		}
		deadline := time.Now().Add(10 * time.Second)
		for fmt.Sprint(p.Links()) != fmt.Sprint(want) || !p.Connected() {
			if time.Now().After(deadline) {
				t.Fatalf("links %v, want %v", p.Links(), want)
			}
			time.Sleep(time.Millisecond)
		}
	}
}
