package lazy

import (
	"bytes"
	"crypto/sha256"
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

// names lists the files whose names begin so.
func (w *world) names(prefix string) (out []string) {
	for name := range w.files {
		if strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	return out
}
