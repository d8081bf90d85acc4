package readfs_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/snapshotter/readfs"
	"golang.org/x/sys/unix"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// need finds a tool or skips aloud; with REQUIRE_TOOLS=1 it fails.
func need(t testing.TB, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err == nil {
		return path
	}
	missing(t, tool+" is missing")
	return ""
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "needs root")
	}
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s and REQUIRE_TOOLS=1", what)
	}
	t.Skipf("SKIPPED: %s", what)
}

// node is what can be known of a file.
type node struct {
	Mode          string
	UID, GID      uint32
	Size, Mtime   int64
	Nsec          int64
	Nlink         uint64 // names of a file that is no directory
	Rdev          uint64
	Link, Content string
	Xattrs        map[string]string
}

// treeOf lists all files of a file tree.
func treeOf(t testing.TB, f *readfs.FS) map[string]node {
	t.Helper()
	out, names := map[string]node{}, map[*bootstrap.Inode]uint64{}
	var visit func(path string)
	visit = func(path string) {
		info, err := f.Lstat(path)
		check(t, err)
		in := info.Sys().(*bootstrap.Inode)
		names[in]++
		n := node{
			Mode: fmt.Sprintf("%o", in.Mode), UID: in.UID, GID: in.GID, Mtime: info.ModTime().Unix(), Nsec: int64(info.ModTime().Nanosecond()),
			Rdev: unix.Mkdev(in.Major, in.Minor), Link: in.Link, Xattrs: in.Xattrs,
		}
		if info.Mode().IsRegular() {
			file, err := f.Open(path)
			check(t, err)
			n.Content = sumOf(t, file)
			n.Size = info.Size()
		}
		out[path] = n
		if !info.IsDir() {
			return
		}
		list, err := f.ReadDir(path)
		check(t, err)
		for _, e := range list {
			if path == "." {
				visit(e.Name())
			} else {
				visit(path + "/" + e.Name())
			}
		}
	}
	visit(".")
	for path, n := range out {
		info, err := f.Lstat(path)
		check(t, err)
		if !info.IsDir() {
			n.Nlink = names[info.Sys().(*bootstrap.Inode)]
			out[path] = n
		}
	}
	return out
}

func sumOf(t testing.TB, r io.Reader) string {
	t.Helper()
	sum := sha256.New()
	_, err := io.Copy(sum, r)
	check(t, err)
	return hex.EncodeToString(sum.Sum(nil))
}

// treeIn lists all files of a folder of the system.
func treeIn(t testing.TB, dir string) map[string]node {
	t.Helper()
	out := map[string]node{}
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		n := node{Mode: fmt.Sprintf("%o", st.Mode), UID: st.Uid, GID: st.Gid, Mtime: st.Mtim.Sec, Nsec: st.Mtim.Nsec, Xattrs: xattrsOf(t, path)}
		switch {
		case d.Type().IsRegular():
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			n.Content, n.Size = sumOf(t, file), st.Size
			_ = file.Close()
		case d.Type()&fs.ModeSymlink != 0:
			n.Link, err = os.Readlink(path)
		case d.Type()&fs.ModeDevice != 0:
			n.Rdev = st.Rdev
		}
		if !d.IsDir() {
			n.Nlink = uint64(st.Nlink)
		}
		out[rel] = n
		return err
	}))
	return out
}

func xattrsOf(t testing.TB, path string) map[string]string {
	t.Helper()
	list := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, list)
	check(t, err)
	var out map[string]string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, name, value)
		check(t, err)
		if out == nil {
			out = map[string]string{}
		}
		out[name] = string(value[:n])
	}
	return out
}

// wantSame compares two trees.
func wantSame(t testing.TB, what string, want, got map[string]node) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s:\n%.4000s", what, diff)
	}
}

// openImage decodes the bootstrap in a file and opens blobs in a folder by their digests.
func openImage(t testing.TB, boot, blobs string) (*bootstrap.Image, *readfs.FS) {
	t.Helper()
	raw, err := os.ReadFile(boot)
	check(t, err)
	img, err := bootstrap.Decode(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatalf("decode: %v", err)
	}
	f, err := readfs.New(img, readfs.Config{CacheSize: 16 << 20, Open: func(b *bootstrap.Blob) (io.ReaderAt, error) {
		return os.Open(filepath.Join(blobs, b.Digest.Encoded()))
	}})
	check(t, err)
	t.Cleanup(func() { check(t, f.Close()) })
	return img, f
}

// run executes a tool.
func run(t testing.TB, path string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(path), strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mountNydusd mounts a bootstrap by nydusd, with blobs in a folder, and returns the folder of the mount.
func mountNydusd(t testing.TB, boot, blobs string) string {
	t.Helper()
	path := need(t, "nydusd")
	dir := t.TempDir()
	mnt, cache := filepath.Join(dir, "mnt"), filepath.Join(dir, "cache")
	check(t, os.Mkdir(mnt, 0o700))
	check(t, os.Mkdir(cache, 0o700))
	config, err := json.Marshal(map[string]any{
		"device": map[string]any{
			"backend": map[string]any{"type": "localfs", "config": map[string]any{"dir": blobs}},
			"cache":   map[string]any{"type": "blobcache", "config": map[string]any{"work_dir": cache}},
		},
		"mode": "direct", "digest_validate": false, "enable_xattr": true,
	})
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600))
	log, err := os.Create(filepath.Join(dir, "log"))
	check(t, err)
	var before, now unix.Stat_t
	check(t, unix.Stat(mnt, &before))
	cmd := exec.Command(path, "fuse", "--config", filepath.Join(dir, "config.json"), "--bootstrap", boot, "--mountpoint", mnt,
		"--log-level", "warn", "--rlimit-nofile", "0", "--apisock", filepath.Join(dir, "api"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // ends with the process
	t.Cleanup(func() {
		_ = unix.Unmount(mnt, unix.MNT_DETACH)
		_ = cmd.Process.Kill()
		<-ended
		_ = log.Close()
		if t.Failed() {
			out, _ := os.ReadFile(log.Name())
			t.Logf("nydusd:\n%s", out[max(0, len(out)-2000):])
		}
	})
	deadline, tick := time.After(30*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := unix.Stat(mnt, &now); err == nil && now.Dev != before.Dev {
				return mnt
			}
		case <-ended:
			t.Fatal("nydusd has ended")
		case <-deadline:
			t.Fatal("nydusd has not mounted within 30 s")
		}
	}
}
