package snapshotter

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// What containerd asks of a snapshotter, over the socket, as it asks.
func TestRootPassesContainerdsOwnSuite(t *testing.T) {
	needRoot(t)
	// By this name the suite leaves out what overlays cannot: renaming folders of lower layers.
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := New(Config{Root: root})
		if err != nil {
			return nil, nil, err
		}
		address := filepath.Join(root, "s.sock")
		client := serve(t, s, address)
		return client, s.Close, nil
	})
}

// suiteTests is more than the suite of containerd 1.7 has tests.
const suiteTests = 32

// What containerd 1.7 asks, with its own client: a program of a module of its own, which takes a minute to build the first time.
func TestRootPassesTheSuiteOfContainerd17(t *testing.T) {
	if testing.Short() {
		t.Skip("-short leaves out what has to be built")
	}
	needRoot(t)
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", filepath.Join(dir, "suite"), ".")
	build.Dir = filepath.Join("testdata", "suite17")
	build.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-buildvcs=false -mod=readonly")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the suite of containerd 1.7: %v\n%s", err, out)
	}
	for i := range suiteTests {
		s, err := New(Config{Root: filepath.Join(dir, fmt.Sprintf("root-%d", i+1))})
		check(t, err)
		t.Cleanup(func() { check(t, s.Close()) })
		serve(t, s, filepath.Join(dir, fmt.Sprintf("%d.sock", i+1)))
	}
	suite := exec.CommandContext(t.Context(), filepath.Join(dir, "suite"), "-test.v")
	suite.Env = append(os.Environ(), "SNAPSHOTTERS="+dir)
	out, err := suite.CombinedOutput()
	if passed := strings.Count(string(out), "    --- PASS: "); err != nil || passed < 15 {
		t.Errorf("%d tests of the suite passed: %v\n%s", passed, err, out)
	} else {
		t.Logf("%d tests of the suite passed, %d were left out", passed, strings.Count(string(out), "    --- SKIP: "))
	}
}

// serve answers at the socket until the test ends and returns what containerd would ask with.
func serve(t *testing.T, s *Snapshotter, address string) snapshots.Snapshotter {
	t.Helper()
	l, err := Listen(t.Context(), address)
	check(t, err)
	return connect(t, s, l)
}

func connect(t *testing.T, s *Snapshotter, l *Socket) snapshots.Snapshotter {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	conn, err := grpc.NewClient("unix://"+l.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	t.Cleanup(func() {
		check(t, conn.Close())
		stop()
		check(t, <-done)
	})
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "shoal")
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// need skips aloud with an error that says what the host has not; with REQUIRE_TOOLS=1 it fails.
func need(t *testing.T, err error) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv("REQUIRE_TOOLS") == "1":
		t.Fatalf("%v and REQUIRE_TOOLS=1", err)
	default:
		t.Skip(err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
