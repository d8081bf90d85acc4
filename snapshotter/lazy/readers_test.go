package lazy

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// runRead prints the sums of files that are read.
func runRead(names []string) error {
	return sums(names, func(f *os.File, _ int64) ([]byte, error) { return io.ReadAll(f) })
}

// runMmap prints the sums of files that are mapped.
func runMmap(names []string) error {
	return sums(names, func(f *os.File, size int64) ([]byte, error) {
		if size == 0 {
			return nil, nil
		}
		mem, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
		if err != nil {
			return nil, err
		}
		defer func() { _ = unix.Munmap(mem) }()
		return bytes.Clone(mem), nil
	})
}

// runSendfile prints the sums of what sendfile sends.
func runSendfile(names []string) error {
	return sums(names, func(f *os.File, size int64) ([]byte, error) {
		out, err := os.CreateTemp("", "sendfile-")
		if err != nil {
			return nil, err
		}
		defer os.Remove(out.Name())
		defer out.Close()
		for done := int64(0); done < size; {
			n, err := unix.Sendfile(int(out.Fd()), int(f.Fd()), nil, int(size-done))
			if err != nil || n == 0 {
				return nil, fmt.Errorf("sendfile: %d, %w", n, err)
			}
			done += int64(n)
		}
		return os.ReadFile(out.Name())
	})
}

// runDirect prints the sums of what is read past the kernel's cache.
func runDirect(names []string) error {
	return sums(names, func(f *os.File, size int64) ([]byte, error) {
		direct, err := os.OpenFile(f.Name(), os.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			return nil, err
		}
		defer direct.Close()
		const block = 4096 // what such reads have to be multiples of, and where in memory
		mem, err := unix.Mmap(-1, 0, int(size)+block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return nil, err
		}
		defer func() { _ = unix.Munmap(mem) }()
		n, err := direct.ReadAt(mem[:(size+block-1)/block*block], 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		return bytes.Clone(mem[:n]), nil
	})
}

// runChange changes the file args[1] in the way that args[0] names.
func runChange(args []string) error {
	name := args[1]
	switch args[0] {
	case "append":
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString("x")
		return err
	case "chmod":
		return os.Chmod(name, 0o640)
	case "xattr":
		return unix.Setxattr(name, "user.changed", []byte("yes"), 0)
	case "rename":
		return os.Rename(name, name+".new")
	case "remove":
		return os.Remove(name)
	case "truncate":
		return os.Truncate(name, 1)
	case "link":
		return os.Link(name, name+".new")
	case "create":
		return os.WriteFile(name+".new", nil, 0o600)
	}
	return fmt.Errorf("no way %q", args[0])
}

func sums(names []string, read func(f *os.File, size int64) ([]byte, error)) error {
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err != nil {
			return err
		}
		data, err := read(f, info.Size())
		if err != nil {
			return err
		}
		fmt.Printf("%x\n", sha256.Sum256(data))
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// runSoak reads files at random places, in one of three ways, until all was read, and compares with the true ones.
func runSoak(args []string) error {
	how, names, truth := args[0], strings.Split(args[1], ","), strings.Split(args[2], ",")
	for i, name := range names {
		want, err := os.ReadFile(truth[i])
		if err != nil {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		var mem []byte
		if how == "mmap" {
			if mem, err = unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_PRIVATE); err != nil {
				return err
			}
		}
		const part = 16 << 10
		for _, p := range rand.Perm((len(want) + part - 1) / part) {
			off, end := p*part, min((p+1)*part, len(want))
			got := make([]byte, end-off)
			if how == "mmap" {
				copy(got, mem[off:end])
			} else if _, err := f.ReadAt(got, int64(off)); err != nil {
				return err
			}
			if !bytes.Equal(got, want[off:end]) {
				return fmt.Errorf("%s at %d: wrong bytes, zeros: %v", name, off, bytes.Equal(got, make([]byte, len(got))))
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// wantSums reads files of the mount in a process of its own, in the given way, and compares them with the image's.
func (w *world) wantSums(t testing.TB, how string, names ...string) {
	t.Helper()
	var paths []string
	for _, name := range names {
		paths = append(paths, filepath.Join(w.target, name))
	}
	out, err := self(t, how, paths...).Output()
	if err != nil {
		t.Errorf("%s: %v", how, err)
		return
	}
	got := strings.Fields(string(out))
	for i, name := range names {
		if want := fmt.Sprintf("%x", sha256.Sum256(w.files[name])); i >= len(got) || got[i] != want {
			t.Errorf("%s %s: other bytes than the image has", how, name)
		}
	}
}

// wantDirect reads files past the kernel's cache: FUSE has their bytes, and EROFS refuses it as file systems do that cannot, so that programs
// read otherwise. Opening is all that is tried then, and waits for nothing.
func (w *world) wantDirect(t testing.TB, names ...string) {
	t.Helper()
	if w.fuse {
		w.wantSums(t, "direct", names...)
		return
	}
	for _, name := range names {
		f, err := os.OpenFile(filepath.Join(w.target, name), os.O_RDONLY|unix.O_DIRECT, 0)
		if err == nil {
			_ = f.Close() // only opened
		}
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s is opened with O_DIRECT: %v, want that to be refused as invalid", name, err)
		}
	}
}

// names lists the files whose names begin so.
func (w *world) names(prefix string) (out []string) {
	for name := range w.files {
		if strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	return out
}
