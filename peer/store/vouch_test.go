package store

import (
	"testing"

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
