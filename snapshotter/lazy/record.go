package lazy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/shoal-project/shoal/snapshotter/erofs"
	"github.com/shoal-project/shoal/snapshotter/fanotify"
)

// A record is what the next process has to know of a mount, in a file named after the target.
type record struct {
	Target    string          `json:"target"`
	Image     string          `json:"image"`
	Bootstrap string          `json:"bootstrap"`
	Devices   []fanotify.File `json:"devices"`
	// Whole are the devices that need no marks: all was there and verified.
	Whole []fanotify.File `json:"whole,omitempty"`
	// Supers are what the kernel calls it, and what it was mounted as before.
	Supers []erofs.Super `json:"supers,omitempty"`
	// Direct says that it is read past the page cache.
	Direct bool `json:"direct,omitempty"`
	// Group tells the group that has the marks from others.
	Group fanotify.File `json:"group"`
}

func recordName(folder, target string) string {
	sum := sha256.Sum256([]byte(target))
	return filepath.Join(folder, hex.EncodeToString(sum[:16])+".json")
}

// readRecord returns the record of a target, and a zero one if there is none that can be read.
func readRecord(folder, target string) record {
	var r record
	data, err := os.ReadFile(recordName(folder, target))
	if err != nil || json.Unmarshal(data, &r) != nil || r.Target != target {
		return record{}
	}
	return r
}

func (r record) write(folder string) error {
	data, err := json.Marshal(r)
	if err == nil {
		err = renameio.WriteFile(recordName(folder, r.Target), data, 0o600, renameio.WithTempDir(folder))
	}
	if err != nil {
		return fmt.Errorf("record of %s: %w", r.Target, err)
	}
	return nil
}

func removeRecord(folder, target string) error {
	if err := os.Remove(recordName(folder, target)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
