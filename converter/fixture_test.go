package converter_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
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
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s is missing and REQUIRE_TOOLS=1", tool)
	}
	t.Skipf("SKIPPED: %s is missing; install it to run this test", tool)
	return ""
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatal("needs root and REQUIRE_TOOLS=1")
	}
	t.Skip("SKIPPED: needs root")
}

func noise(seed uint64, n int) []byte {
	out := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(out)
	return out
}

// writeModel makes a model folder: large and small files, an empty one, subfolders, links, an executable.
func writeModel(t testing.TB, mtime time.Time, perm fs.FileMode) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tiny")
	for _, sub := range []string{"", "tokenizer/deep", "empty"} {
		check(t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
	}
	for name, data := range map[string][]byte{
		"config.json":               []byte(`{"layers": 2}` + "\n"),
		"weights.bin":               noise(1, 5<<20+123),
		"tokenizer/deep/merges.bin": noise(2, 1<<20), // exactly one RAFS chunk, and large
		"tokenizer/vocab.txt":       noise(3, 300_000),
		"tokenizer/aligned":         noise(4, 4096),
		"nothing":                   nil,
		"naïve name.txt":            []byte("with a space and a letter beyond ASCII"),
		strings.Repeat("long", 40):  []byte("a name that needs a PAX record"),
		"run.sh":                    []byte("#!/bin/sh\n"),
	} {
		path := filepath.Join(dir, name)
		mode := perm
		if name == "run.sh" {
			mode |= 0o100
		}
		check(t, os.WriteFile(path, data, mode))
		check(t, os.Chmod(path, mode))
		check(t, os.Chtimes(path, mtime, mtime))
	}
	check(t, os.Symlink("weights.bin", filepath.Join(dir, "model.bin")))
	check(t, os.Symlink("../config.json", filepath.Join(dir, "tokenizer", "config.json")))
	return dir
}

// entry is one tar entry of a base layer.
type entry struct {
	tar.Header
	data string
}

func file(name, data string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data}
}
func dir(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, ""}
}
func link(kind byte, name, target string) entry {
	return entry{tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777}, ""}
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	for _, e := range entries {
		e.Size = int64(len(e.data))
		e.ModTime = time.Unix(1_700_000_000, 0)
		check(t, tw.WriteHeader(&e.Header))
		_, err := io.WriteString(tw, e.data)
		check(t, err)
	}
	check(t, tw.Close())
	return out.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	_, err := zw.Write(data)
	check(t, err)
	check(t, zw.Close())
	return out.Bytes()
}

// baseImage returns an image of the given layer tars.
func baseImage(t testing.TB, platform v1.Platform, layers ...[]byte) v1.Image {
	t.Helper()
	img := mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1)
	cfg, err := img.ConfigFile()
	check(t, err)
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Variant = platform.OS, platform.Architecture, platform.Variant
	cfg.Config.Entrypoint, cfg.Config.Cmd = []string{"/bin/sum"}, []string{"/models"}
	cfg.Config.Env = []string{"PATH=/bin", "KEPT=yes"}
	cfg.Config.Labels = map[string]string{"test": "base"}
	img, err = mutate.ConfigFile(img, cfg)
	check(t, err)
	for _, raw := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(gzipped(t, raw))), nil },
			tarball.WithMediaType(types.OCILayer))
		check(t, err)
		img, err = mutate.AppendLayers(img, l)
		check(t, err)
	}
	return img
}

// writeLayout writes an image into an OCI layout and returns the reference to it.
func writeLayout(t testing.TB, imgs ...v1.Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	path, err := layout.Write(dir, empty.Index)
	check(t, err)
	for _, img := range imgs {
		cfg, err := img.ConfigFile()
		check(t, err)
		check(t, path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"}),
			layout.WithPlatform(v1.Platform{OS: cfg.OS, Architecture: cfg.Architecture})))
	}
	return "oci:" + dir + ":latest"
}

func linuxAMD64() v1.Platform { return v1.Platform{OS: "linux", Architecture: "amd64"} }

// rawImage is an image whose only layer has any bytes and any media type.
func rawImage(t testing.TB, raw []byte, mediaType types.MediaType) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(baseImage(t, linuxAMD64()), static.NewLayer(raw, mediaType))
	check(t, err)
	return img
}

// runnableBase is a base image whose program prints the digests of all files below a folder, with every kind of file and
// every way a layer can change what is below it.
func runnableBase(t testing.TB) v1.Image {
	t.Helper()
	src := filepath.Join(t.TempDir(), "sum.go")
	check(t, os.WriteFile(src, []byte(sumProgram), 0o600))
	bin := filepath.Join(t.TempDir(), "sum")
	cmd := exec.Command(need(t, "go"), "build", "-ldflags=-s -w", "-o", bin, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the test program: %v\n%s", err, out)
	}
	program, err := os.ReadFile(bin)
	check(t, err)
	sum := file("bin/sum", string(program))
	sum.Mode = 0o755
	setuid := file("bin/setuid", "I am root\n")
	setuid.Mode, setuid.Uid, setuid.Gid = 0o4755, 0, 42
	owned := file("srv/owned", "owned")
	owned.Uid, owned.Gid, owned.Mode = 1000, 70000, 0o640
	attr := file("srv/attr", "attributes")
	attr.PAXRecords = map[string]string{"SCHILY.xattr.user.shoal": "yes", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	attr.Format = tar.FormatPAX
	char := entry{tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}, ""}
	fifo := entry{tar.Header{Typeflag: tar.TypeFifo, Name: "srv/fifo", Mode: 0o600}, ""}
	tmp := dir("tmp")
	tmp.Mode = 0o1777
	lower := []entry{
		dir("bin"), sum, setuid, dir("dev"), char, dir("proc"), dir("sys"), dir("srv"), owned, attr, fifo, tmp,
		dir("etc"), file("etc/hostname", ""), file("etc/hosts", ""), file("etc/resolv.conf", ""), file("etc/gone", "gone"),
		file("etc/replaced", "old"), dir("etc/opaque"), file("etc/opaque/old", "old"), dir("etc/opaque/sub"), file("etc/opaque/sub/old", "old"),
		dir("usr"), dir("usr/lib"), link(tar.TypeSymlink, "lib", "usr/lib"), file("usr/lib/one", strings.Repeat("library ", 200_000)),
		link(tar.TypeLink, "usr/lib/two", "usr/lib/one"), link(tar.TypeSymlink, "etc/absolute", "/etc/replaced"),
		dir("was-dir"), file("was-dir/inside", "x"), file("was-file", "x"),
	}
	// A folder with more names than one block of it can hold.
	lower = append(lower, dir("many"))
	for i := range 500 {
		lower = append(lower, file(fmt.Sprintf("many/entry-with-a-long-name-%04d", i), fmt.Sprint(i)))
	}
	upper := []entry{
		dir("etc"), file("etc/.wh.gone", ""), file("etc/replaced", "new"), file("etc/.wh.never-was", ""),
		dir("etc/opaque"), file("etc/opaque/.wh..wh..opq", ""), file("etc/opaque/new", "new"),
		file("was-dir", "now a file"), dir("was-file"), file("was-file/inside", "now a folder"),
		dir("usr"), dir("usr/lib"), file("usr/lib/three", "three"), link(tar.TypeLink, "usr/lib/four", "usr/lib/three"),
		file("many/.wh.entry-with-a-long-name-0007", ""),
	}
	return baseImage(t, linuxAMD64(), tarOf(t, lower...), tarOf(t, upper...), tarOf(t, dir("only-folders")))
}

const sumProgram = `package main

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

func main() {
	err := filepath.WalkDir(os.Args[1], func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		fmt.Printf("%x  %s\n", sha256.Sum256(b), p)
		return err
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
`

// sums returns the sha256 of every regular file below dir by relative path.
func sums(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		rel, err := filepath.Rel(dir, path)
		out[filepath.ToSlash(rel)] = hex.EncodeToString(sum[:])
		return err
	}))
	return out
}

// node is what stat(2) and friends say of a file, without what differs between any two file systems.
type node struct {
	Mode          string
	UID, GID      uint32
	Size          int64
	Mtime         int64
	Nlink         uint64
	Rdev          uint64
	Link, Content string
	Xattrs        map[string]string
}

// tree lists a folder with everything that can be known of its files.
func tree(t testing.TB, dir string) map[string]node {
	t.Helper()
	out := map[string]node{}
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		n := node{Mode: fmt.Sprintf("%o", st.Mode), UID: st.Uid, GID: st.Gid, Mtime: st.Mtim.Sec}
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(data)
			n.Content, n.Size, n.Nlink = hex.EncodeToString(sum[:]), info.Size(), uint64(st.Nlink)
		case info.Mode().Type() == fs.ModeSymlink:
			if n.Link, err = os.Readlink(path); err != nil {
				return err
			}
		case info.Mode()&fs.ModeDevice != 0:
			n.Rdev = uint64(st.Rdev)
		}
		n.Xattrs = readXattrs(path)
		out[rel] = n
		return nil
	}))
	return out
}

func readXattrs(path string) map[string]string {
	list := make([]byte, 4096)
	n, err := unix.Llistxattr(path, list)
	if err != nil || n == 0 {
		return nil
	}
	out := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		value := make([]byte, 4096)
		if n, err := unix.Lgetxattr(path, name, value); err == nil {
			out[name] = string(value[:n])
		}
	}
	return out
}
