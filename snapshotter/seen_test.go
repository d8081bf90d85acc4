package snapshotter

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// askedOf is the environment's variable with what askElsewhere asks.
const askedOf = "SHOAL_TEST_ASKS"

// question is what a containerd in a mount namespace of its own asks.
type question struct {
	Address string
	Top     string            // of a snapshot, to stand on
	Labels  map[string]string // of a layer that is pulled
}

// TestRootWhoDoesNotSeeMountsIsRefused runs itself as a containerd in another mount namespace.
func TestRootWhoDoesNotSeeMountsIsRefused(t *testing.T) {
	if text := os.Getenv(askedOf); text != "" {
		answer(t, text)
		return
	}
	needRoot(t)
	_, err := exec.LookPath("unshare")
	need(t, err)
	for _, c := range []struct {
		name          string
		shared, slave bool // the node's folder, and the namespace that containerd has
		sees          bool
	}{
		{name: "private", shared: true},
		{name: "not shared", slave: true},
		{name: "told of mounts", shared: true, slave: true, sees: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHostAt(t, filepath.Join(ownMount(t, c.shared), "snapshots"))
			top, placed := h.pull("a")
			if placed != 2 {
				t.Fatalf("%d layers were placed", placed)
			}
			address := filepath.Join(h.root, "s.sock")
			serve(t, h.Snapshotter, address)
			propagation := "private"
			if c.slave {
				propagation = "slave"
			}
			labels := h.labels(0)
			labels[snapshots.LabelSnapshotRef] = "sha256:" + strings.Repeat("0", 64)
			got := ask(t, propagation, question{address, top, labels})
			if c.sees {
				if got != "prepared\nplaced\n" || h.Fault() != nil {
					t.Errorf("answers %q, state %v", got, h.Fault())
				}
				return
			}
			if !strings.Contains(got, "mountPropagation: Bidirectional") || !strings.Contains(got, h.root) || !strings.Contains(got, testRef) {
				t.Errorf("answers do not name image, folder and the way out:\n%s", got)
			}
			if !strings.HasSuffix(got, "\nto be unpacked\n") {
				t.Errorf("a layer that is an archive is not unpacked:\n%s", got)
			}
			if err := h.Fault(); err == nil || !strings.Contains(err.Error(), "containerd does not see") {
				t.Errorf("state is %v", err)
			}
		})
	}
}

// Where the other process cannot be looked at, what counts is whether mounts are told to others.
func TestRootWhoCannotBeLookedAtSeesWhatIsShared(t *testing.T) {
	needRoot(t)
	for _, shared := range []bool{false, true} {
		h := newHostAt(t, filepath.Join(ownMount(t, shared), "snapshots"))
		if err := h.unseenBy(0); (err == nil) != shared {
			t.Errorf("shared %v: %v", shared, err)
		}
		if left := h.mounted(); len(left) > 0 {
			t.Errorf("shared %v: left mounted: %v", shared, left)
		}
	}
}

// ownMount returns a folder that is a mount, which other namespaces are told of or not.
func ownMount(t *testing.T, shared bool) string {
	t.Helper()
	dir := t.TempDir()
	check(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	propagation := uintptr(unix.MS_PRIVATE)
	if shared {
		propagation = unix.MS_SHARED
	}
	check(t, unix.Mount("", dir, "", propagation, ""))
	return dir
}

// ask has a process in a mount namespace of its own ask, and returns its answers.
func ask(t *testing.T, propagation string, q question) string {
	t.Helper()
	text, err := json.Marshal(q)
	check(t, err)
	out := filepath.Join(t.TempDir(), "answers")
	cmd := exec.CommandContext(t.Context(), "unshare", "-m", "--propagation", propagation, os.Args[0], "-test.run", "^TestRootWhoDoesNotSeeMountsIsRefused$")
	cmd.Env = append(os.Environ(), askedOf+"="+string(text), askedOf+"_OUT="+out)
	cmd.WaitDelay = time.Minute
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	got, err := os.ReadFile(out)
	check(t, err)
	return string(got)
}

// answer asks for a container's root and for a layer, and writes down what comes back.
func answer(t *testing.T, text string) {
	var q question
	check(t, json.Unmarshal([]byte(text), &q))
	conn, err := grpc.NewClient("unix://"+q.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	defer conn.Close()
	s := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "shoal")
	root, placed := "prepared", "to be unpacked"
	if _, err := s.Prepare(t.Context(), "container", q.Top); err != nil {
		root = err.Error()
	}
	_, err = s.Prepare(t.Context(), "extract", "", snapshots.WithLabels(q.Labels))
	switch {
	case errdefs.IsAlreadyExists(err):
		placed = "placed"
	case err != nil:
		placed = err.Error()
	}
	check(t, os.WriteFile(os.Getenv(askedOf+"_OUT"), []byte(root+"\n"+placed+"\n"), 0o600))
}
