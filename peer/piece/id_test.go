package piece_test

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
)

func TestURLIdentityIsNoBlobsDigest(t *testing.T) {
	id := piece.URLID("https://example.com/a", `etag "1"`, 7)
	if !piece.IsURL(id) || piece.CheckID(id) != nil {
		t.Errorf("%q is not valid: %v", id, piece.CheckID(id))
	}
	if id.Validate() == nil {
		t.Errorf("%q is also valid as a digest of content", id)
	}
	blob := digest.FromString("x")
	if piece.IsURL(blob) || piece.CheckID(blob) != nil {
		t.Errorf("%q is taken for a URL's: %v", blob, piece.CheckID(blob))
	}
}

func TestURLIdentityTellsContentsApart(t *testing.T) {
	seen := map[digest.Digest]bool{}
	for _, c := range []struct {
		name, validator string
		size            int64
	}{
		{"a", "b", 1}, {"a", "b", 2}, {"a", "c", 1}, {"c", "b", 1}, {"a\n", "b", 1}, {"a", "\nb", 1}, {"a\"\n\"b", "", 1}, {"a", "b\"\n1", 1},
	} {
		id := piece.URLID(c.name, c.validator, c.size)
		if seen[id] {
			t.Errorf("%+v has the identity of another", c)
		}
		seen[id] = true
	}
}

func FuzzCheckID(f *testing.F) {
	f.Add(string(piece.URLID("a", "b", 1)))
	f.Add(string(digest.FromString("x")))
	f.Add("url:../../etc")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if piece.CheckID(digest.Digest(s)) != nil {
			return
		}
		for _, r := range s {
			if r != ':' && (r < '0' || r > '9') && (r < 'a' || r > 'z') {
				t.Fatalf("%q has %q, which no folder and no path may have", s, r)
			}
		}
	})
}
