package daemon

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"
)

func TestStreamsThatNeverEndDoNotHoldUpTheShutdown(t *testing.T) {
	l, err := listen(t.Context(), "peer.listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endless := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serveEndless(ctx, l, endless, slog.New(slog.DiscardHandler)) }()
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	cancel()
	began := time.Now()
	_, _ = io.Copy(io.Discard, resp.Body)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > drainTime/2 {
		t.Errorf("the shutdown took %v", took)
	}
}
