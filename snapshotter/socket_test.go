package snapshotter

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// eventually waits until a state is reached.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// answers reports whether somebody who connects anew is answered by a snapshotter.
func answers(t *testing.T, address string) bool {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	defer conn.Close()
	_, err = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "shoal").Prepare(t.Context(), "k", "none such")
	return err != nil && strings.Contains(err.Error(), "not found") || err == nil
}

// A socket that is removed, with its folder too, or that another process takes, is there again as soon as it can be.
func TestRootTheSocketIsTakenBack(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s, err := New(Config{Root: filepath.Join(root, "snapshots")})
	check(t, err)
	defer s.Close()
	address := filepath.Join(root, "run", "s.sock")
	socket, err := Listen(t.Context(), address)
	check(t, err)
	connect(t, s, socket)
	eventually(t, "it answers", func() bool { return answers(t, address) })

	check(t, os.RemoveAll(filepath.Dir(address)))
	eventually(t, "it answers after its folder was removed", func() bool { return answers(t, address) })

	check(t, os.Remove(address))
	other, err := net.Listen("unix", address)
	check(t, err)
	eventually(t, "it says who has the socket", func() bool {
		err := socket.Lost()
		return err != nil && strings.Contains(err.Error(), address+": another process serves there")
	})
	if _, err := os.Stat(address); err != nil {
		t.Errorf("the other one's socket: %v", err)
	}
	other.(*net.UnixListener).SetUnlinkOnClose(false) // as when it is killed
	check(t, other.Close())
	eventually(t, "it answers after the other one has gone", func() bool { return answers(t, address) && socket.Lost() == nil })
}

// Who finds the socket taken at the start has it when the other one has gone.
func TestRootATakenSocketIsWaitedFor(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s, err := New(Config{Root: filepath.Join(root, "snapshots")})
	check(t, err)
	defer s.Close()
	address := filepath.Join(root, "s.sock")
	other, err := net.Listen("unix", address)
	check(t, err)
	_, err = Listen(t.Context(), address)
	if !errors.Is(err, ErrTaken) {
		t.Fatalf("error %v, want %v", err, ErrTaken)
	}
	socket := ListenLater(address, err)
	connect(t, s, socket)
	if err := socket.Lost(); !errors.Is(err, ErrTaken) {
		t.Errorf("lost: %v, want %v", err, ErrTaken)
	}
	check(t, other.Close())
	eventually(t, "it answers", func() bool { return answers(t, address) })
}

func TestAFileThatIsNoSocketStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	check(t, os.WriteFile(path, []byte("of somebody"), 0o600))
	if _, err := Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// Closing leaves alone what another process has put there.
func TestClosingLeavesAnothersSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	socket, err := Listen(t.Context(), path)
	check(t, err)
	check(t, os.Remove(path))
	other, err := net.Listen("unix", path)
	check(t, err)
	defer other.Close()
	check(t, errors.Join(socket.Close(), socket.Close()))
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestRootAMovedFolderIsToldUntilItIsBack(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	dir := filepath.Join(root, "snapshots")
	s, err := New(Config{Root: dir})
	check(t, err)
	defer s.Close()
	socket, err := Listen(t.Context(), filepath.Join(root, "s.sock"))
	check(t, err)
	connect(t, s, socket)
	check(t, os.Rename(dir, dir+"-away"))
	eventually(t, "it says so", func() bool {
		err := s.Fault()
		return err != nil && strings.Contains(err.Error(), dir)
	})
	check(t, os.Rename(dir+"-away", dir))
	eventually(t, "all is well again", func() bool { return s.Fault() == nil })
	check(t, os.RemoveAll(dir))
	eventually(t, "it says so once more", func() bool { return s.Fault() != nil })
}
