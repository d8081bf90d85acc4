package store_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

func open(t testing.TB, dir string, cfg store.Config) *store.Store {
	t.Helper()
	s, err := store.Open(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// filled returns the folder of a closed store with one blob of five pieces.
func filled(t testing.TB) (dir string, data []byte, d digest.Digest) {
	t.Helper()
	dir = t.TempDir()
	data, d = storetest.Content(1, 4*piece.GroupSize+17)
	s := open(t, dir, store.Config{})
	storetest.Fill(t, s, data)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, data, d
}

func get(t testing.TB, s *store.Store, d digest.Digest) *store.Blob {
	t.Helper()
	b, err := s.Get(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func fileOf(dir string, d digest.Digest, name string) string {
	return filepath.Join(dir, strings.Replace(d.String(), ":", "-", 1), name)
}

// overwrite replaces bytes of a file in place.
func overwrite(t testing.TB, path string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
}

func TestStoreConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) *store.Store { return open(t, t.TempDir(), store.Config{}) })
}

func TestBlobSurvivesReopening(t *testing.T) {
	dir, data, d := filled(t)
	b := get(t, open(t, dir, store.Config{}), d)
	if !b.Complete() {
		t.Fatalf("holds %d of %d bytes", b.Held(), len(data))
	}
	got, err := io.ReadAll(io.NewSectionReader(b, 0, int64(len(data))))
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read %d bytes, error %v", len(got), err)
	}
}

func TestSecondProcessIsLockedOut(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, store.Config{})
	if _, err := store.Open(dir, store.Config{}); !errors.Is(err, store.ErrLocked) {
		t.Fatalf("error %v, want ErrLocked", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, store.Config{})
}

func TestFlippedBitIsFoundOnFirstUseAndTheRestServed(t *testing.T) {
	dir, data, d := filled(t)
	overwrite(t, fileOf(dir, d, "data"), 2*piece.GroupSize+5, []byte{data[2*piece.GroupSize+5] ^ 1})
	registry := prometheus.NewRegistry()
	b := get(t, open(t, dir, store.Config{Registerer: registry}), d)

	err := b.EnsureVerified(0, int64(len(data)))
	mismatch, ok := errors.AsType[*piece.MismatchError](err)
	if !ok || mismatch.Unit != "group" || mismatch.Index != 2 {
		t.Fatalf("error %v, want a mismatch of group 2", err)
	}
	if b.Has(2) || b.Have().Count() != 4 {
		t.Errorf("has the bad piece: %v; holds %d pieces, want 4", b.Has(2), b.Have().Count())
	}
	if err := b.EnsureVerified(0, 2*piece.GroupSize); err != nil {
		t.Errorf("good pieces: %v", err)
	}
	if got := counter(t, registry, "shoal_store_verify_failures_total"); got != 1 {
		t.Errorf("counted %v failures", got)
	}
	storetest.WritePiece(t, b, data, 2)
	if err := b.EnsureVerified(0, int64(len(data))); err != nil {
		t.Errorf("after writing the piece again: %v", err)
	}
}

func counter(t testing.TB, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestDroppedPieceStaysDroppedAfterReopening(t *testing.T) {
	dir, data, d := filled(t)
	overwrite(t, fileOf(dir, d, "data"), 0, []byte{^data[0]})
	s := open(t, dir, store.Config{})
	if get(t, s, d).Recheck(0) {
		t.Fatal("the bad piece passed")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if b := get(t, open(t, dir, store.Config{}), d); b.Has(0) || !b.Has(1) {
		t.Errorf("after reopening: piece 0 held %v, piece 1 held %v", b.Has(0), b.Has(1))
	}
}

func TestRecheckFindsWhatChangedAfterVerification(t *testing.T) {
	dir := t.TempDir()
	data, d := storetest.Content(2, 2*piece.GroupSize)
	s := open(t, dir, store.Config{})
	storetest.Fill(t, s, data)
	b := get(t, s, d)
	overwrite(t, fileOf(dir, d, "data"), 9, []byte{^data[9]})
	if err := b.EnsureVerified(0, 10); err != nil {
		t.Fatalf("verified pieces are not read again: %v", err)
	}
	if b.Recheck(0) || b.Has(0) {
		t.Error("recheck kept the bad piece")
	}
}

// TestDamagedFilesHoldOnlyWhatIsProven damages each file of a blob and says which of its five pieces remain, after Open
// and after verification.
func TestDamagedFilesHoldOnlyWhatIsProven(t *testing.T) {
	const entries = 64 // of the index, behind its header
	for _, c := range []struct {
		name           string
		damage         func(t *testing.T, file func(string) string)
		opened, proven []piece.Index
		discarded      bool
	}{
		{name: "nothing", damage: func(*testing.T, func(string) string) {},
			opened: []piece.Index{0, 1, 2, 3, 4}, proven: []piece.Index{0, 1, 2, 3, 4}},
		{name: "truncated data", damage: func(t *testing.T, file func(string) string) { truncate(t, file("data"), 2*piece.GroupSize+1) },
			opened: []piece.Index{0, 1}, proven: []piece.Index{0, 1}},
		{name: "zeroed data", damage: func(t *testing.T, file func(string) string) {
			overwrite(t, file("data"), piece.GroupSize, make([]byte, piece.GroupSize))
		}, opened: []piece.Index{0, 1, 2, 3, 4}, proven: []piece.Index{0, 2, 3, 4}},
		{name: "index entry is garbage", damage: func(t *testing.T, file func(string) string) {
			overwrite(t, file("index"), entries+32, []byte("garbage"))
		}, opened: []piece.Index{0, 2, 3, 4}, proven: []piece.Index{0, 2, 3, 4}},
		{name: "group digest is garbage", damage: func(t *testing.T, file func(string) string) {
			overwrite(t, file("groups"), 3*32, []byte("garbage"))
		}, opened: []piece.Index{0, 1, 2, 4}, proven: []piece.Index{0, 1, 2, 4}},
		{name: "all ones in the index", damage: func(t *testing.T, file func(string) string) {
			overwrite(t, file("index"), entries, bytes.Repeat([]byte{0xff}, 5*32))
		}},
		{name: "truncated index", damage: func(t *testing.T, file func(string) string) { truncate(t, file("index"), entries+2*32+7) },
			opened: []piece.Index{0, 1}, proven: []piece.Index{0, 1}},
		{name: "truncated groups", damage: func(t *testing.T, file func(string) string) { truncate(t, file("groups"), 3*32) },
			opened: []piece.Index{0, 1, 2}, proven: []piece.Index{0, 1, 2}},
		{name: "header is garbage", damage: func(t *testing.T, file func(string) string) { overwrite(t, file("index"), 20, []byte{1}) }, discarded: true},
		{name: "empty index", damage: func(t *testing.T, file func(string) string) { truncate(t, file("index"), 0) }, discarded: true},
		{name: "no data", damage: func(t *testing.T, file func(string) string) { remove(t, file("data")) }, discarded: true},
		{name: "no groups", damage: func(t *testing.T, file func(string) string) { remove(t, file("groups")) }, discarded: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, data, d := filled(t)
			c.damage(t, func(name string) string { return fileOf(dir, d, name) })
			s := open(t, dir, store.Config{})
			b, err := s.Get(d)
			if c.discarded {
				if !errors.Is(err, store.ErrNotFound) {
					t.Fatalf("error %v, want ErrNotFound", err)
				}
				storetest.Fill(t, s, data) // the place is free for a new one
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if diff := cmp.Diff(c.opened, indices(b)); diff != "" {
				t.Errorf("held after Open (-want +got):\n%s", diff)
			}
			_ = b.EnsureVerified(0, int64(len(data)))
			if diff := cmp.Diff(c.proven, indices(b)); diff != "" {
				t.Errorf("held after verification (-want +got):\n%s", diff)
			}
			for i := range b.Have().Missing() {
				storetest.WritePiece(t, b, data, i)
			}
			got, err := io.ReadAll(io.NewSectionReader(b, 0, int64(len(data))))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("after repair: read %d bytes, error %v", len(got), err)
			}
		})
	}
}

func indices(b *store.Blob) []piece.Index {
	var out []piece.Index
	for i := range b.Have().All() {
		out = append(out, i)
	}
	return out
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestOpenSweepsLeftoversAndLeavesStrangersAlone(t *testing.T) {
	dir, _, d := filled(t)
	for _, name := range []string{"tmp-1", "tmp-99", "lost+found", "sha256-nothex"} {
		if err := os.MkdirAll(filepath.Join(dir, name, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	get(t, open(t, dir, store.Config{}), d)
	var got []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got = append(got, e.Name())
	}
	want := []string{"lock", "lost+found", filepath.Base(filepath.Dir(fileOf(dir, d, "data"))), "sha256-nothex"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("folder (-want +got):\n%s", diff)
	}
}

func TestConfigReportsAllFaults(t *testing.T) {
	err := store.Config{MaxBytes: -1, MaxPercent: 101}.Validate()
	if err == nil || !strings.Contains(err.Error(), "max_bytes") || !strings.Contains(err.Error(), "max_percent") {
		t.Errorf("error %v", err)
	}
}

func TestClosedStoreRefuses(t *testing.T) {
	s := open(t, t.TempDir(), store.Config{})
	data, d := storetest.Content(1, 10)
	storetest.Fill(t, s, data)
	b := get(t, s, d)
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(d); !errors.Is(err, store.ErrClosed) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Create(d, 10); !errors.Is(err, store.ErrClosed) {
		t.Errorf("create: %v", err)
	}
	if _, err := b.ReadAt(make([]byte, 10), 0); err != nil {
		t.Errorf("an open blob stays readable: %v", err)
	}
}
