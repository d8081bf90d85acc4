package transfer_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/peer/limits"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
	"github.com/shoal-project/shoal/peer/transfer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stored serves a store as a node does.
type stored struct{ *store.Store }

func (s stored) Open(d digest.Digest, off, length int64) (*os.File, func(), error) {
	b, err := s.Get(d)
	if err != nil {
		return nil, nil, err
	}
	if length < 0 {
		length = b.Layout().Size - off
	}
	err = b.EnsureVerified(off, length)
	var f *os.File
	if err == nil {
		f, err = b.File()
	}
	if err != nil {
		return nil, nil, errors.Join(err, b.Close())
	}
	return f, func() { _ = b.Close() }, nil
}

func (s stored) Groups(d digest.Digest, i piece.Index) ([]piece.Digest, error) {
	b, err := s.Get(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return b.Groups(i)
}

func (s stored) Suspect(d digest.Digest, i piece.Index) error {
	b, err := s.Get(d)
	if err != nil {
		return err
	}
	defer b.Close()
	b.Recheck(i)
	return nil
}

// Watch begins the task when the spec has a size.
func (s stored) Watch(_ context.Context, d digest.Digest, spec json.RawMessage) (transfer.Haves, error) {
	var task struct{ Size int64 }
	if err := json.Unmarshal(spec, &task); err != nil || task.Size == 0 {
		return nil, fmt.Errorf("spec without a size: %w", piece.ErrAbsent)
	}
	return s.Create(d, task.Size)
}

func newStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(t.TempDir(), store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// serve runs the handler on a loopback port and returns its address. Unless a test is about it, a range may be had again at once.
func serve(t testing.TB, cfg transfer.Config, blobs transfer.Blobs) string {
	t.Helper()
	cfg.Spacing = cmp.Or(cfg.Spacing, -1)
	h, err := transfer.NewHandler(cfg, blobs)
	if err != nil {
		t.Fatal(err)
	}
	return serveHTTP(t, h)
}

func serveHTTP(t testing.TB, h http.Handler) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ConnContext = transfer.ConnContext
	srv.Start()
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.Listener.Addr().String()
}

func newClient(t testing.TB, cfg transfer.ClientConfig) *transfer.Client {
	t.Helper()
	c, err := transfer.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// The kernel takes a piece from its sender at once, and a thin link brings it much later: until then nobody else is sent it.
func TestWhatHasNotComeIsNotSentToAnother(t *testing.T) {
	s := newStore(t)
	data, _ := storetest.Content(1, 8*piece.GroupSize)
	d := storetest.Fill(t, s, data)
	const spacing = 50 * time.Millisecond
	addr := serve(t, transfer.Config{Spacing: spacing}, stored{s})
	slow, err := (&net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10) }) // else all of it fits
	}}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	request := fmt.Sprintf("GET /v1/blobs/%s HTTP/1.1\r\nHost: a\r\nRange: bytes=0-%d\r\n\r\n", d, piece.GroupSize-1)
	if _, err := io.WriteString(slow, request); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(slow, make([]byte, 12)); err != nil { // of the answer, which has begun
		t.Fatal(err)
	}
	c := newClient(t, transfer.ClientConfig{})
	buf := make([]byte, piece.GroupSize)
	for range 20 { // some of it each time
		if _, err := io.ReadFull(slow, make([]byte, 4<<10)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(spacing)
		if err := c.Piece(t.Context(), addr, d, 0, buf); !errors.Is(err, transfer.ErrShared) {
			t.Fatalf("another peer got %v while the piece is on its way, want ErrShared", err)
		}
	}
	// It has fallen silent: within a second or so it does not count any more.
	untilSent(t, func() error { return c.Piece(t.Context(), addr, d, 0, buf) }, "it has stood still")
}

// untilSent asks until a piece is not refused any more because another peer gets it, which has to be the case soon after something.
func untilSent(t *testing.T, ask func() error, after string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := ask()
		if err == nil {
			return
		}
		if !errors.Is(err, transfer.ErrShared) || time.Now().After(deadline) {
			t.Fatalf("the second peer got %v after %s", err, after)
		}
	}
}

func TestWhatIsSentSlowlyIsNotSentToAnother(t *testing.T) {
	s := newStore(t)
	data, _ := storetest.Content(1, 4*piece.GroupSize)
	d := storetest.Fill(t, s, data)
	up, err := limits.New(limits.Rates{Upload: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, transfer.Config{Spacing: 50 * time.Millisecond, Pacer: up.Upload()}, stored{s})
	c := newClient(t, transfer.ClientConfig{Stall: 10 * time.Second})
	begun, done := make(chan struct{}), make(chan error, 1)
	go func() {
		var once sync.Once
		done <- c.Fetch(t.Context(), transfer.Wanted{Addr: addr, Digest: d, Buf: make([]byte, 4*piece.GroupSize),
			Came: func(int) { once.Do(func() { close(begun) }) }})
	}()
	<-begun
	for {
		err := c.Fetch(t.Context(), transfer.Wanted{Addr: addr, Digest: d, Buf: make([]byte, 4*piece.GroupSize)})
		if !errors.Is(err, transfer.ErrShared) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	default:
		t.Error("another peer was sent the piece while it was on its way")
		<-done
	}
}

func TestAPieceIsSentToOnePeerAtATime(t *testing.T) {
	s := newStore(t)
	data, _ := storetest.Content(1, 3*piece.GroupSize)
	d := storetest.Fill(t, s, data)
	const spacing = 100 * time.Millisecond
	addr := serve(t, transfer.Config{Spacing: spacing}, stored{s})
	c := newClient(t, transfer.ClientConfig{})
	buf := make([]byte, piece.GroupSize)
	began := time.Now()
	if err := c.Piece(t.Context(), addr, d, 0, buf); err != nil {
		t.Fatal(err)
	}
	if err := c.Piece(t.Context(), addr, d, 0, buf); !errors.Is(err, transfer.ErrShared) && time.Since(began) < spacing {
		t.Errorf("the second peer got %v, want ErrShared", err)
	}
	if err := c.Piece(t.Context(), addr, d, piece.GroupSize, buf); err != nil {
		t.Errorf("another piece: %v", err)
	}
	// The pause is a matter of the server's clock, which began it at some time after ours.
	untilSent(t, func() error { return c.Piece(t.Context(), addr, d, 0, buf) }, "the pause")
}

func TestPieceArrivesAsStored(t *testing.T) {
	s := newStore(t)
	data, _ := storetest.Content(1, 5*piece.GroupSize+3)
	d := storetest.Fill(t, s, data)
	addr := serve(t, transfer.Config{Token: "secret"}, stored{s})
	c := newClient(t, transfer.ClientConfig{Token: "secret"})
	for _, r := range [][2]int{{0, len(data)}, {0, 1}, {piece.GroupSize, piece.GroupSize}, {len(data) - 3, 3}, {100, 300_000}} {
		buf := make([]byte, r[1])
		if err := c.Piece(t.Context(), addr, d, int64(r[0]), buf); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf, data[r[0]:r[0]+r[1]]) {
			t.Errorf("range %v differs", r)
		}
	}
}
