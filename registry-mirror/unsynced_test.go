package mirror

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// keep stores a record in a new file of records, and returns it with the copy of what is on the disk meanwhile.
func keep(t *testing.T) (rec Record, left string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mirror.db")
	r, err := OpenRecords(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	body := []byte("{}")
	rec = Record{Registry: "r", Repository: "a/b", Reference: "v1", Digest: digest.FromBytes(body), Body: body, Checked: time.Now()}
	if err := r.store(rec); err != nil {
		t.Fatal(err)
	}
	left = filepath.Join(t.TempDir(), "mirror.db")
	for _, suffix := range []string{"", unsyncedSuffix} {
		data, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(left+suffix, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + unsyncedSuffix); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("closed, with writes that may not be on the disk: %v", err)
	}
	return rec, left
}

func known(t *testing.T, path string, rec Record) (known bool, log string) {
	t.Helper()
	var out bytes.Buffer
	r, err := OpenRecords(path, slog.New(slog.NewTextHandler(&out, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = r.lookup(Query{Registry: rec.Registry, Repository: rec.Repository, Reference: rec.Reference})
	return err == nil, out.String()
}

// Of a machine that failed in the midst of writes any page may be an old one.
func TestRecordsAreStartedAnewWhenTheMachineFailed(t *testing.T) {
	rec, path := keep(t)
	if ok, log := known(t, path, rec); !ok || log != "" {
		t.Errorf("after a killed process: known %v, log %q", ok, log)
	}
	rec, path = keep(t)
	if err := os.WriteFile(path+unsyncedSuffix, []byte("another boot"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ok, log := known(t, path, rec); ok || !strings.Contains(log, path) {
		t.Errorf("after a power failure: known %v, log %q", ok, log)
	}
	if ok, _ := known(t, path+".damaged", rec); !ok {
		t.Error("what was set aside is not what there was")
	}
	if ok, log := known(t, path, rec); ok || log != "" {
		t.Errorf("at the start after that: known %v, log %q", ok, log)
	}
}

// The disk has all of it some time after the last write: a power failure then costs nothing.
func TestRecordsThatReachedTheDiskAreKeptWhenTheMachineFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mirror.db")
	r, err := OpenRecords(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	end, err := r.unsynced.begin()
	if err != nil {
		t.Fatal(err)
	}
	for _, under := range []bool{true, false} {
		if err := r.unsynced.settle(false); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path + unsyncedSuffix); (err == nil) != under {
			t.Errorf("with a write under way %v: %v", under, err)
		}
		if under {
			end()
		}
	}
}

func TestDamagedRecordsAreStartedAnew(t *testing.T) {
	const page = 4096
	for name, damage := range map[string]func(data []byte) []byte{
		"zeros":             func(data []byte) []byte { return make([]byte, len(data)) },
		"no free list":      func(data []byte) []byte { clear(data[2*page:]); return data },
		"cut off":           func(data []byte) []byte { return data[:2*page] },
		"cut off in a page": func(data []byte) []byte { return data[:page+100] },
		"pages of all kinds": func(data []byte) []byte {
			return append(data[:2*page], bytes.Repeat([]byte{0xff}, len(data)-2*page)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			rec, path := keep(t)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(data), 0o600); err != nil {
				t.Fatal(err)
			}
			if ok, log := known(t, path, rec); ok || !strings.Contains(log, path) {
				t.Errorf("known %v, log %q", ok, log)
			}
		})
	}
}

func TestAManifestWithAnotherDigestIsNotKnown(t *testing.T) {
	r := openRecords(t)
	rec := Record{Registry: "r", Repository: "a/b", Reference: "v1", Digest: digest.FromString("what was asked for"), Body: []byte("something else")}
	if err := r.store(rec); err != nil {
		t.Fatal(err)
	}
	if _, err := r.lookup(Query{Registry: "r", Repository: "a/b", Reference: "v1"}); !errors.Is(err, ErrUnknown) {
		t.Errorf("error %v, want ErrUnknown", err)
	}
}
