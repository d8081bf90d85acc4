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
