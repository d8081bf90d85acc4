package transfer_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/transfer"
)

// script is a TCP server that reads one request on each connection, writes reply, and then hangs until the test ends
// or closes, as told.
func script(t *testing.T, reply string, hang bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var conns []net.Conn
	go func() { // ends when the listener closes
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
			if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
				continue
			}
			_, _ = io.WriteString(c, reply)
			if !hang {
				_ = c.Close()
			}
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		for _, c := range conns {
			_ = c.Close()
		}
	})
	return l.Addr().String()
}

const partial = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/100\r\nContent-Length: 10\r\n\r\n"

func TestFaultyParentFailsInItsClass(t *testing.T) {
	token := serveHTTP(t, transfer.RequireToken("right", http.NotFoundHandler()))
	status := func(code int) string {
		return serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := closed.Addr().String()
	_ = closed.Close()

	for _, c := range []struct {
		name, addr string
		want       []error
	}{
		{"refuses connections", refused, []error{piece.ErrTransient}},
		{"never answers", script(t, "", true), []error{piece.ErrTransient, transfer.ErrStalled}},
		{"stops after the header", script(t, partial, true), []error{piece.ErrTransient, transfer.ErrStalled}},
		{"stops in the middle", script(t, partial+"01234", true), []error{piece.ErrTransient, transfer.ErrStalled}},
		{"closes at once", script(t, "", false), []error{piece.ErrTransient}},
		{"closes in the middle", script(t, partial+"01234", false), []error{piece.ErrTransient, io.ErrUnexpectedEOF}},
		{"is no HTTP server", script(t, "220 smtp ready\r\n", true), []error{piece.ErrTransient}},
		{"sends a short range", script(t, strings.Replace(partial, "bytes 0-9", "bytes 0-4", 1), true), []error{transfer.ErrProtocol}},
		{"sends another range", script(t, strings.Replace(partial, "bytes 0-9", "bytes 5-14", 1), true), []error{transfer.ErrProtocol}},
		{"announces less", script(t, strings.Replace(partial, "Length: 10", "Length: 4", 1)+"0123", true), []error{transfer.ErrProtocol}},
		{"announces more", script(t, strings.Replace(partial, "Length: 10", "Length: 40", 1), true), []error{transfer.ErrProtocol}},
		{"announces nothing", script(t, strings.Replace(partial, "Content-Length: 10\r\n", "", 1)+"0123456789", false), []error{transfer.ErrProtocol}},
		{"ignores the range", script(t, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789", true), []error{transfer.ErrProtocol}},
		{"redirects", script(t, "HTTP/1.1 307 x\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", true), []error{piece.ErrTransient}},
		{"has it not", status(404), []error{piece.ErrAbsent}},
		{"is of another cluster", token, []error{piece.ErrDenied}},
		{"is broken", status(500), []error{piece.ErrTransient}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := newClient(t, transfer.ClientConfig{Stall: 150 * time.Millisecond, Token: "wrong"})
			err := client.Piece(t.Context(), c.addr, digest.FromString("x"), 0, make([]byte, 10))
			for _, want := range c.want {
				if !errors.Is(err, want) {
					t.Errorf("error %v, want %v", err, want)
				}
			}
			if errors.Is(err, piece.ErrMismatch) {
				t.Errorf("error %v claims a failed verification", err)
			}
		})
	}
}

func TestExtraBytesBehindTheRangeAreNotTaken(t *testing.T) {
	addr := script(t, partial+"0123456789EXTRA", false)
	c := newClient(t, transfer.ClientConfig{})
	buf := make([]byte, 10, 20)
	if err := c.Piece(t.Context(), addr, digest.FromString("x"), 0, buf); err != nil || string(buf) != "0123456789" {
		t.Fatalf("got %q, error %v", buf, err)
	}
	// The connection is spoilt and must not be used again: the next request gets an answer of its own.
	if err := c.Piece(t.Context(), addr, digest.FromString("x"), 0, buf); err != nil || string(buf) != "0123456789" {
		t.Fatalf("next: got %q, error %v", buf, err)
	}
}

func TestAKeptConnectionThatHasDiedIsReplaced(t *testing.T) {
	addr := script(t, partial+"0123456789", false) // closes after each answer without having said so
	c := newClient(t, transfer.ClientConfig{})
	for range 5 {
		buf := make([]byte, 10)
		if err := c.Piece(t.Context(), addr, digest.FromString("x"), 0, buf); err != nil || string(buf) != "0123456789" {
			t.Fatalf("got %q, error %v", buf, err)
		}
	}
}

func TestEndlessHeaderIsNotRead(t *testing.T) {
	addr := script(t, "HTTP/1.1 206 Partial Content\r\n"+strings.Repeat("X: y\r\n", 100_000), true)
	c := newClient(t, transfer.ClientConfig{Stall: time.Minute})
	err := c.Piece(t.Context(), addr, digest.FromString("x"), 0, make([]byte, 10))
	if !errors.Is(err, piece.ErrTransient) || errors.Is(err, transfer.ErrStalled) {
		t.Fatalf("error %v, want ErrTransient at once", err)
	}
}

func TestSlowButSteadyParentIsNotStalled(t *testing.T) {
	const step, steps = 20 * time.Millisecond, 10
	addr := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", steps-1, steps))
		w.Header().Set("Content-Length", fmt.Sprint(steps))
		w.WriteHeader(http.StatusPartialContent)
		tick := time.NewTicker(step)
		defer tick.Stop()
		for range steps {
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
			_, _ = w.Write([]byte("x"))
			_ = http.NewResponseController(w).Flush()
		}
	}))
	c := newClient(t, transfer.ClientConfig{Stall: step * steps * 3 / 4})
	if err := c.Piece(t.Context(), addr, digest.FromString("x"), 0, make([]byte, steps)); err != nil {
		t.Fatal(err)
	}
}

func TestBlackHoleCostsTheDialTimeout(t *testing.T) {
	c := newClient(t, transfer.ClientConfig{Stall: 100 * time.Millisecond, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	if err := c.Piece(t.Context(), "192.0.2.1:7702", digest.FromString("x"), 0, make([]byte, 10)); !errors.Is(err, piece.ErrTransient) {
		t.Fatalf("error %v, want ErrTransient", err)
	}
}

func TestEndedCallerIsNotTheParentsFault(t *testing.T) {
	gone := errors.New("the hedge won")
	ctx, cancel := context.WithCancelCause(t.Context())
	addr := serveHTTP(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel(gone)
		<-r.Context().Done()
	}))
	err := newClient(t, transfer.ClientConfig{}).Piece(ctx, addr, digest.FromString("x"), 0, make([]byte, 10))
	if !errors.Is(err, gone) || errors.Is(err, piece.ErrTransient) {
		t.Errorf("error %v, want only the cause of the cancellation", err)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	opened := 0
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, digest.FromString("missing").Encoded()) {
			http.Error(w, "no", http.StatusNotFound)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(strings.Repeat("x", 1<<20)))
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened++ // calls are one after another: so are these
		}
	}
	srv.Start()
	defer srv.Close()
	c := newClient(t, transfer.ClientConfig{})
	for range 10 {
		if err := c.Piece(t.Context(), srv.Listener.Addr().String(), digest.FromString("x"), 5, make([]byte, 1<<19)); err != nil {
			t.Fatal(err)
		}
		err := c.Piece(t.Context(), srv.Listener.Addr().String(), digest.FromString("missing"), 5, make([]byte, 9))
		if !errors.Is(err, piece.ErrAbsent) {
			t.Fatal(err)
		}
	}
	c.Close()
	srv.Close()
	if opened != 1 {
		t.Errorf("%d connections for 20 requests, want 1", opened)
	}
}

func TestGroupsAreCheckedForShape(t *testing.T) {
	for name, size := range map[string]int{"none": 0, "half a digest": 33, "more than a piece has": 65 * 32} {
		addr := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			_, _ = w.Write(make([]byte, size))
		}))
		if _, err := newClient(t, transfer.ClientConfig{}).Groups(t.Context(), addr, digest.FromString("x"), 0); !errors.Is(err, transfer.ErrProtocol) {
			t.Errorf("%s: error %v, want ErrProtocol", name, err)
		}
	}
}
