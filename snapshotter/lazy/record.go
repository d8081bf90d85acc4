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
	"slices"

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

// alive returns what it was mounted as that is mounted yet, in whatever namespace.
func (r record) alive() []erofs.Super {
	return slices.DeleteFunc(slices.Clone(r.Supers), func(s erofs.Super) bool { return !s.Alive() })
}

// inUse reports whether it may be mounted anywhere.
func (r record) inUse() bool { return isMounted(r.Target) || len(r.alive()) > 0 }

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

// readRecords returns all records that can be read, and an error when there are others.
func readRecords(folder string) (records []record, err error) {
	names, err := filepath.Glob(filepath.Join(folder, "*.json"))
	errs := []error{err}
	for _, name := range names {
		var r record
		data, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(data, &r)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("record %s: %w", name, err))
			continue
		}
		records = append(records, r)
	}
	return records, errors.Join(errs...)
}

// sweepRecords removes the records of what is mounted nowhere: nothing is taken over by them.
func sweepRecords(folder string) error {
	records, err := readRecords(folder)
	errs := []error{err}
	for _, r := range records {
		if !r.inUse() {
			errs = append(errs, removeRecord(folder, r.Target))
		}
	}
	return errors.Join(errs...)
}
