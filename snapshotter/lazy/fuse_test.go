package lazy

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// holder has a file open in a process of its own. read returns what sha256sum says of it, and ends the process.
func holder(t *testing.T, path string) (read func() string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `exec 3<"$0"; echo; read line; exec sha256sum <&3`, path)
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	lines := bufio.NewReader(out)
	_, err = lines.ReadString('\n')
	check(t, err)
	return func() string {
		_, err := io.WriteString(in, "\n")
		check(t, err)
		sum, err := io.ReadAll(lines)
		check(t, err)
		check(t, cmd.Wait())
		return string(sum[:min(64, len(sum))])
	}
}

// What somebody else has unmounted is mounted anew, and who has a file of it open reads on.
func TestRootFuseMountsAnewWhatSomebodyElseUnmounted(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 1<<20)
	w.fuse = true
	n := w.node(t, os.Stderr)
	image := w.image(n, Prefetch{None: true})
	check(t, n.Mount(t.Context(), image, w.target))
	check(t, n.Mount(t.Context(), image, w.target))
	const name = "models/model.bin"
	read := holder(t, filepath.Join(w.target, name))
	check(t, unix.Unmount(w.target, unix.MNT_DETACH))
	check(t, n.Mount(t.Context(), image, w.target))
	w.wantSums(t, "read", w.names("")...)
	if got, want := read(), fmt.Sprintf("%x", sha256.Sum256(w.files[name])); got != want {
		t.Errorf("who had it open reads %s, want %s", got, want)
	}
	d := n.Mounter.(*successor).Fuse
	eventually(t, "the old mount is given up", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.lingering) == 0
	})
	check(t, n.Unmount(t.Context(), w.target))
	if err := unix.Unmount(w.target, 0); err == nil {
		t.Error("something is mounted still")
	}
}

// What cannot be had when an image is mounted is fetched when it can.
func TestRootFuseFetchesAheadWhatFailedBefore(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 4<<20)
	w.fuse = true
	var log logbook
	n := w.node(t, &log)
	away := filepath.Join(w.dir, "away")
	check(t, os.Rename(w.origin.path(w.model()), away))
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{Files: []string{"/models/model.bin"}}), w.target))
	eventually(t, "it fails", func() bool { return strings.Contains(log.String(), "fetching ahead fails") })
	check(t, os.Rename(away, w.origin.path(w.model())))
	eventually(t, "it is there", func() bool {
		b, err := n.store.Get(w.model())
		if err != nil {
			return false
		}
		defer b.Close()
		return b.Have().Count() > 0
	})
}

// An image that is removed is fetched no further.
func TestRootFuseFetchesNothingOfWhatIsUnmounted(t *testing.T) {
	needKernel(t)
	w := newWorld(t, 4<<20)
	w.fuse = true
	n := w.node(t, os.Stderr)
	check(t, n.Mount(t.Context(), w.image(n, Prefetch{None: true}), w.target))
	d := n.Mounter.(*successor).Fuse
	d.mu.Lock()
	m := d.mounts[w.target]
	d.mu.Unlock()
	m.image.Prefetch = Prefetch{}
	for _, p := range m.pools {
		p.source = newOrigins(endless{})
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.fetch(t.Context(), m)
	}()
	check(t, n.Unmount(t.Context(), w.target))
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Error("it is fetched still")
	}
}

// endless is a source of blobs that never come.
type endless struct{ Reader }

func (e endless) Open(context.Context, Blob) (Reader, error) { return e, nil }

func (endless) Await(ctx context.Context, _, _ int64) (int64, error) {
	<-ctx.Done()
	return 0, context.Cause(ctx)
}

func (endless) Prefetch() {}

func (endless) Close() error { return nil }
