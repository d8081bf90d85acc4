package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

func pin(t *testing.T, s *store.Store, d digest.Digest, owners ...string) {
	t.Helper()
	for _, o := range owners {
		if err := s.Pin(d, o); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPinnedBlobIsNeverEvictedUntilItsLastOwnerLetsGo(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, store.Config{MaxBytes: 2000})
	a := fillOne(t, s, 1, 1000)
	pin(t, s, a, "two", "one", "one")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, store.Config{MaxBytes: 2000}) // it survives
	if diff := cmp.Diff([]string{"one", "two"}, s.List()[0].Pins); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}
	fillOne(t, s, 2, 1000)
	fillOne(t, s, 3, 1000) // in place of 2, though 1 is older
	if !digests(s)[a] {
		t.Fatal("the pinned blob was evicted")
	}
	if _, err := s.Create(digest.FromString("large"), 1500); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("error %v, want ErrNoSpace", err)
	}
	for i, owner := range []string{"one", "nobody", "two"} {
		if err := s.Unpin(a, owner); err != nil {
			t.Fatal(err)
		}
		if got := len(s.Pins()[a]); got != []int{1, 1, 0}[i] {
			t.Errorf("after %s let go: %d owners", owner, got)
		}
	}
	fillOne(t, s, 4, 1900)
	if digests(s)[a] {
		t.Error("the blob stays without an owner")
	}
}

func TestPinMayComeBeforeItsBlobAndOutlivesADrop(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, store.Config{MaxBytes: 2000})
	data, d := storetest.Content(1, 1000)
	pin(t, s, d, "early")
	storetest.Fill(t, s, data)
	b := get(t, s, d)
	if err := errors.Join(b.Drop(), b.Close()); err != nil {
		t.Fatal(err)
	}
	storetest.Fill(t, s, data)
	fillOne(t, s, 2, 1000)
	fillOne(t, s, 3, 1000)
	if !digests(s)[d] {
		t.Error("the pin is forgotten")
	}
}

func TestNamesThatCannotOwnAPinAreRefused(t *testing.T) {
	s := open(t, t.TempDir(), store.Config{})
	for _, owner := range []string{"", "a\nb", "a\x00", strings.Repeat("x", 257)} {
		if err := s.Pin(digest.FromString("x"), owner); !errors.Is(err, store.ErrOwner) {
			t.Errorf("%q: error %v", owner, err)
		}
	}
	if err := s.Pin("../../x", "me"); err == nil {
		t.Error("a hostile digest was pinned")
	}
	if len(s.Pins()) != 0 {
		t.Errorf("pins %v", s.Pins())
	}
}

func TestDamagedPinFileStillKeepsTheBlob(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "garbage": "\xff\x00\n\n", "half a line": "own"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, store.Config{})
			d := fillOne(t, s, 1, 1000)
			pin(t, s, d, "owner")
			_ = s.Close()
			path := filepath.Join(dir, "pins", filepath.Base(filepath.Dir(fileOf(dir, d, "data"))))
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "pins", "tmp-left"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir, store.Config{})
			owners := s.Pins()[d]
			if len(owners) != 1 {
				t.Fatalf("owners %q", owners)
			}
			if err := s.Unpin(d, owners[0]); err != nil || len(s.Pins()) != 0 {
				t.Errorf("unpin: %v, pins %v", err, s.Pins())
			}
		})
	}
}

func TestStoreIsTrimmedToALowerQuotaWhenItOpens(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, store.Config{})
	a, b, c := fillOne(t, s, 1, 1000), fillOne(t, s, 2, 1000), fillOne(t, s, 3, 1000)
	pin(t, s, b, "me")
	_ = s.Close()
	now := time.Now()
	for i, d := range []digest.Digest{b, a, c} { // b was used longest ago
		used := now.Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(fileOf(dir, d, "index"), used, used); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir, store.Config{MaxBytes: 2500})
	if diff := cmp.Diff(map[digest.Digest]bool{b: true, c: true}, digests(s)); diff != "" {
		t.Errorf("blobs (-want +got):\n%s", diff)
	}
	_ = s.Close()
	s = open(t, dir, store.Config{MaxBytes: 500})
	if diff := cmp.Diff(map[digest.Digest]bool{b: true}, digests(s)); diff != "" {
		t.Errorf("what is pinned stays (-want +got):\n%s", diff)
	}
}

func TestPieceIsHashedAgainWhenItsVerificationIsOld(t *testing.T) {
	dir := t.TempDir()
	now := time.Unix(0, 0)
	s := open(t, dir, store.Config{Reverify: time.Hour, Now: func() time.Time { return now }})
	data, _ := storetest.Content(1, 3*piece.GroupSize)
	d := storetest.Fill(t, s, data)
	b := get(t, s, d)
	overwrite(t, fileOf(dir, d, "data"), piece.GroupSize, []byte{^data[piece.GroupSize]})
	now = now.Add(time.Hour)
	if err := b.EnsureVerified(0, int64(len(data))); err != nil {
		t.Errorf("within the hour: %v", err)
	}
	now = now.Add(time.Second)
	if err := b.EnsureVerified(0, int64(len(data))); !errors.Is(err, piece.ErrMismatch) || b.Has(1) || !b.Has(0) {
		t.Errorf("after it: error %v, the bad piece is held: %v", err, b.Has(1))
	}
}
