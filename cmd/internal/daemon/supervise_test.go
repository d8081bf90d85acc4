package daemon

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// notices opens the socket of a systemd that gives a daemon so much patience, and passes on what it is told.
func notices(t *testing.T, patience string) <-chan string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", patience)
	said, over := make(chan string, 1000), make(chan struct{})
	go func() { // ends with Close
		defer close(over)
		buf := make([]byte, 1<<10)
		for {
			n, err := l.Read(buf)
			if err != nil {
				return
			}
			said <- string(buf[:n])
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-over })
	return said
}

func next(t *testing.T, said <-chan string, want string) {
	t.Helper()
	select {
	case got := <-said:
		if got != want {
			t.Fatalf("systemd was told %q, want %q", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("systemd was not told %q", want)
	}
}

// TestSystemdHearsOfADaemonForAsLongAsItAnswers has the mirror hang. Each answer is worth one word at the most.
func TestSystemdHearsOfADaemonForAsLongAsItAnswers(t *testing.T) {
	said := notices(t, "60000") // 60 ms
	var hangs atomic.Bool
	var answered, hung atomic.Int32
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if hangs.Load() {
			hung.Add(1)
			<-r.Context().Done()
			return
		}
		answered.Add(1)
	}))
	defer web.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- supervise(ctx, web.Listener.Addr(), slog.New(slog.DiscardHandler)) }()
	next(t, said, "READY=1")
	next(t, said, "WATCHDOG=1")
	next(t, said, "WATCHDOG=1")
	hangs.Store(true)
	for deadline := time.Now().Add(20 * time.Second); hung.Load() < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is not asked any more")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	alive := int32(2)
	for word := ""; word != "STOPPING=1"; {
		select {
		case word = <-said:
		case <-time.After(20 * time.Second):
			t.Fatal("systemd is not told that it stops")
		}
		if word == "WATCHDOG=1" {
			alive++
		}
	}
	if alive > answered.Load() {
		t.Errorf("%d words for %d answers", alive, answered.Load())
	}
}

func TestNobodyIsToldWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := supervise(ctx, &net.TCPAddr{}, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
}
