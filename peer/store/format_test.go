package store

import (
	"errors"
	"testing"

	"github.com/shoal-project/shoal/peer/piece"
)

func FuzzHeaderDecodesOnlyWhatItEncodes(f *testing.F) {
	for _, size := range []int64{0, 1, piece.GroupSize, 3 << 30, maxBlobSize} {
		f.Add(encodeHeader(piece.NewLayout(size)))
	}
	f.Add([]byte("SHOALIDX"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeHeader(b)
		if err != nil {
			if !errors.Is(err, errFormat) {
				t.Fatalf("error %v is not errFormat", err)
			}
			return
		}
		if got := encodeHeader(l); string(got) != string(b[:headerSize]) {
			t.Fatalf("decoded %+v does not encode to what it was decoded from", l)
		}
	})
}

func FuzzHeldNeedsProof(f *testing.F) {
	l := piece.NewLayout(5*piece.GroupSize + 1)
	groups := piece.HashGroups(make([]byte, l.Size))
	var pieces []piece.Digest
	for i := range l.Count() {
		first, count := l.GroupRange(piece.Index(i))
		pieces = append(pieces, piece.Root(groups[first:first+count]))
	}
	f.Add(l.Size, encodeDigests(pieces), encodeDigests(groups))
	f.Add(int64(1), []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, size int64, pieces, groups []byte) {
		if size < 0 || size > 1<<30 {
			return
		}
		l := piece.NewLayout(size)
		for i := range decodeHeld(l, pieces, groups).All() {
			first, count := l.GroupRange(i)
			got := piece.Root(decodeDigests(groups[first*digestSize : (first+count)*digestSize]))
			if got != piece.Digest(pieces[int(i)*digestSize:]) {
				t.Fatalf("piece %d is held without proof", i)
			}
		}
	})
}
