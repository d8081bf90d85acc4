package daemon

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCallersAreTurnedAwayWhenNoFileCanBeOpened runs itself as a process of its own, whose limit it may use up.
func TestCallersAreTurnedAwayWhenNoFileCanBeOpened(t *testing.T) {
	const key = "SHOAL_TEST_OUT_OF_FILES"
	if os.Getenv(key) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), key+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	plain, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	l := newSparing(plain, slog.New(slog.DiscardHandler))
	accepted := make(chan net.Conn, 1)
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				close(accepted)
				return
			}
			if err == nil {
				accepted <- conn
			}
		}
	}()
	client := dialRaw(t, plain.Addr())
	(<-accepted).Close()
	_ = unix.Close(client)

	waiting := socket(t)
	again := socket(t)
	hoard := hoardFiles(t)
	connect(t, waiting, plain.Addr())
	if _, err := unix.Read(waiting, make([]byte, 1)); err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the caller is told %v, want its connection closed", err)
	}
	select {
	case conn := <-accepted:
		t.Fatalf("%v was accepted", conn.RemoteAddr())
	default:
	}
	for _, f := range hoard {
		f.Close()
	}
	connect(t, again, plain.Addr())
	for deadline := time.Now().Add(30 * time.Second); ; {
		select {
		case conn := <-accepted:
			conn.Close()
			plain.Close()
			return
		case <-time.After(50 * time.Millisecond): // it may have been turned away in the last moment
			if time.Now().After(deadline) {
				t.Fatal("nobody is accepted although files can be opened again")
			}
			_ = unix.Close(again)
			again = dialRaw(t, plain.Addr())
		}
	}
}

// hoardFiles opens files until there are no more.
func hoardFiles(t *testing.T) (hoard []*os.File) {
	t.Helper()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := os.Open(os.DevNull)
		if errors.Is(err, syscall.EMFILE) {
			return hoard
		}
		if err != nil {
			t.Fatal(err)
		}
		hoard = append(hoard, f)
	}
}

// socket returns a socket whose reads block for half a minute at the most.
func socket(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
		t.Fatal(err)
	}
	return fd
}

func connect(t *testing.T, fd int, addr net.Addr) {
	t.Helper()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: addr.(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
}

func dialRaw(t *testing.T, addr net.Addr) int {
	t.Helper()
	fd := socket(t)
	connect(t, fd, addr)
	return fd
}
