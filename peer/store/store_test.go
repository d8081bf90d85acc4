package store_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

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

func TestBlobSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	data, d := storetest.Content(1, 3*piece.GroupSize+17)
	s := open(t, dir, store.Config{})
	storetest.Fill(t, s, data)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := open(t, dir, store.Config{}).Get(d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if !b.Complete() {
		t.Fatalf("holds %d of %d bytes", b.Held(), len(data))
	}
	got, err := io.ReadAll(io.NewSectionReader(b, 0, int64(len(data))))
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read %d bytes, equal %v, error %v", len(got), bytes.Equal(got, data), err)
	}
}

func TestSecondProcessIsLockedOut(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, store.Config{})
	if _, err := store.Open(dir, store.Config{}); !errors.Is(err, store.ErrLocked) {
		t.Fatalf("error %v, want ErrLocked", err)
	}
}
