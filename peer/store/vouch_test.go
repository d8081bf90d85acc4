package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
)

func TestEachWriteRevokesTheVoucherBeforeIt(t *testing.T) {
	s, err := Open(t.TempDir(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := s.Create(piece.URLID("http://a", "v", 1), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, text := range []string{"a", "b", "c"} { // different bytes replace those before
		data := []byte(text)
		if err := b.Write(0, data, piece.HashGroups(data)); err != nil {
			t.Fatal(err)
		}
		if b.Vouched() {
			t.Fatalf("%q is vouched for by the word for what was there before", text)
		}
		if err := b.Vouch(); err != nil || !b.Vouched() {
			t.Fatalf("%q: vouched is %v, %v", text, b.Vouched(), err)
		}
	}
}

// A power failure may leave what was vouched for last, and the pieces from before that.
func TestAVoucherIsForThePiecesThatWereThere(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Config{})
	if err != nil {
		t.Fatal(err)
	}
	d := piece.URLID("http://a", "v", 1)
	b, err := s.Create(d, 1)
	if err != nil {
		t.Fatal(err)
	}
	before := map[string][]byte{}
	for _, text := range []string{"a", "b"} {
		if err := b.Write(0, []byte(text), piece.HashGroups([]byte(text))); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{dataName, groupsName, indexName} {
			if text == "a" {
				if before[name], err = os.ReadFile(filepath.Join(dir, folderName(d), name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := b.Vouch(); err != nil {
		t.Fatal(err)
	}
	for _, failed := range []bool{false, true} {
		if err := errors.Join(b.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
		for name, data := range before {
			if failed {
				if err := os.WriteFile(filepath.Join(dir, folderName(d), name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		if s, err = Open(dir, Config{}); err != nil {
			t.Fatal(err)
		}
		if b, err = s.Get(d); err != nil {
			t.Fatal(err)
		}
		if b.Vouched() == failed || !b.Complete() {
			t.Errorf("power failed %v: vouched for %v, complete %v", failed, b.Vouched(), b.Complete())
		}
	}
	if err := errors.Join(b.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestVerifiedIsACompleteBlobThatThisProcessHasSeen(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	s, err := Open(dir, Config{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 3*piece.GroupSize)
	d := digest.FromBytes(data)
	b, err := s.Create(d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range piece.Index(b.Layout().Count()) {
		if b.Verified() {
			t.Error("verified with a piece missing")
		}
		off, n := b.Layout().Range(i)
		if err := b.Write(i, data[off:off+n], piece.HashGroups(data[off:off+n])); err != nil {
			t.Fatal(err)
		}
	}
	if !b.Verified() {
		t.Error("not verified though all was written")
	}
	now = now.Add(2 * DefaultReverify)
	if b.Verified() {
		t.Error("verified for good")
	}
	if err := b.EnsureVerified(0, int64(len(data))); err != nil || !b.Verified() {
		t.Errorf("not verified again: %v", err)
	}
	_, _ = b.Close(), s.Close() // as if it had died
	if s, err = Open(dir, Config{}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if b, err = s.Get(d); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Verified() || !b.Complete() {
		t.Error("verified by another process")
	}
}
