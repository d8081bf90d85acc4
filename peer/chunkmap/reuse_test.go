package chunkmap_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/piece"
)

// randomBytes depends on the seed alone.
func randomBytes(seed byte, n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(out) // never fails
	return out
}

// cutMap is the map of the concatenated parts, cut between them.
func cutMap(name string, parts ...[]byte) *chunkmap.Map {
	b := chunkmap.NewBuilder()
	for _, p := range parts {
		_, _ = b.Write(p) // never fails
		b.Cut()
	}
	return b.Map(digest.FromString(name))
}

// placesOf lists where the chunks of a blob are.
func placesOf(m *chunkmap.Map, places map[chunkmap.ID]chunkmap.Place) {
	off := int64(0)
	for _, c := range m.Chunks {
		places[c.ID] = chunkmap.Place{Blob: m.Blob, Off: off}
		off += int64(c.Length)
	}
}

// TestReuseFindsExactlyThePiecesOfKnownChunks builds a blob out of parts of which some lie, elsewhere, in another blob, and compares with
// the bytes.
func TestReuseFindsExactlyThePiecesOfKnownChunks(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		lengths := rapid.SliceOfN(rapid.IntRange(1, 3*piece.GroupSize), 1, 12).Draw(rt, "lengths")
		var parts, old [][]byte
		known := []bool{}
		for i, n := range lengths {
			p := randomBytes(byte(i), n)
			parts = append(parts, p)
			known = append(known, rapid.Bool().Draw(rt, "known"))
			if known[i] {
				old = append(old, randomBytes(byte(100+i), rapid.IntRange(1, 1000).Draw(rt, "filler")), p)
			}
		}
		data, oldData := bytes.Join(parts, nil), bytes.Join(old, nil)
		m := cutMap("new", parts...)
		places := map[chunkmap.ID]chunkmap.Place{}
		placesOf(cutMap("old", old...), places)
		l := piece.NewLayout(int64(len(data)))
		have := piece.NewSet(l.Count())
		have.Add(piece.Index(rapid.IntRange(0, l.Count()-1).Draw(rt, "held")))

		found := map[piece.Index]bool{}
		for _, a := range chunkmap.Reuse(m, l, have, places) {
			found[a.Piece] = true
			var got []byte
			for _, p := range a.Parts {
				got = append(got, oldData[p.Off:p.Off+p.Length]...)
			}
			if off, n := l.Range(a.Piece); !bytes.Equal(got, data[off:off+n]) {
				rt.Fatalf("piece %d is put together of other bytes", a.Piece)
			}
		}
		for i := range piece.Index(l.Count()) {
			off, n := l.Range(i)
			want, at := !have.Has(i), int64(0)
			for j, length := range lengths {
				if at < off+n && at+int64(length) > off && !known[j] {
					want = false
				}
				at += int64(length)
			}
			if found[i] != want {
				rt.Fatalf("piece %d: found %v, want %v", i, found[i], want)
			}
		}
	})
}

func TestReuseOfAMapWithoutChunksFindsNothing(t *testing.T) {
	m := &chunkmap.Map{Blob: digest.FromString("x"), Size: 1000, Groups: make([]piece.Digest, 1)}
	if got := chunkmap.Reuse(m, piece.NewLayout(1000), piece.NewSet(1), nil); len(got) != 0 {
		t.Errorf("found %v", got)
	}
}

func TestNeighbouringChunksAreCopiedAtOnce(t *testing.T) {
	a, b := randomBytes(1, 100), randomBytes(2, 200)
	m, old := cutMap("new", a, b), cutMap("old", []byte("x"), a, b)
	places := map[chunkmap.ID]chunkmap.Place{}
	placesOf(old, places)
	got := chunkmap.Reuse(m, piece.NewLayout(m.Size), piece.NewSet(1), places)
	want := chunkmap.Part{Blob: old.Blob, Off: 1, Length: 300}
	if len(got) != 1 || len(got[0].Parts) != 1 || got[0].Parts[0] != want {
		t.Errorf("got %+v, want one part %+v", got, want)
	}
}
