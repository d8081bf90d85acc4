package lazy

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

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
