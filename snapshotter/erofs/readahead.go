package erofs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// bdiFolder is where the kernel shows the devices it reads ahead of; a mount from files has one called erofs-N, which lives as long as
// anything has the file system mounted, in whatever namespace.
const bdiFolder = "/sys/class/bdi"

// A Super is the kernel's name for a mounted file system, as Supers lists them.
type Super string

// Supers returns the EROFS file systems that are mounted from files, in order. Which one a mount made is found by asking before and
// after.
func Supers() ([]Super, error) {
	entries, err := os.ReadDir(bdiFolder)
	if err != nil {
		return nil, err
	}
	var out []Super
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "erofs-") {
			out = append(out, Super(e.Name()))
		}
	}
	slices.Sort(out)
	return out, nil
}

// Alive reports whether the file system is mounted anywhere.
func (s Super) Alive() bool {
	if s == "" {
		return false
	}
	_, err := os.Stat(filepath.Join(bdiFolder, string(s)))
	return !errors.Is(err, fs.ErrNotExist)
}

// SetReadahead sets how many bytes the kernel reads ahead at the most, a multiple of 1 KiB.
func (s Super) SetReadahead(bytes int) error {
	name := filepath.Join(bdiFolder, string(s), "read_ahead_kb")
	if err := os.WriteFile(name, []byte(strconv.Itoa(bytes/1024)), 0o644); err != nil {
		return fmt.Errorf("readahead of %s: %w", s, err)
	}
	return nil
}

// DropCaches has the kernel forget the bytes of all files of the mount at target, but for those that are mapped. It opens every
// file and reads none.
func DropCaches(target string) error {
	return filepath.WalkDir(target, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: path, Err: err}
		}
		defer unix.Close(fd)
		return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	})
}
