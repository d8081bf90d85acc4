package piece

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/zeebo/blake3"
)

func TestSizeForKeepsTheCountWithinBounds(t *testing.T) {
	for _, tc := range []struct{ blob, want int64 }{
		{0, GroupSize}, {1, GroupSize}, {100 << 20, GroupSize}, {512 << 20, GroupSize}, {512<<20 + 1, 2 * GroupSize},
		{10 << 30, 8 << 20}, {500 << 30, MaxSize},
	} {
		if got := SizeFor(tc.blob); got != tc.want {
			t.Errorf("SizeFor(%d) = %d, want %d", tc.blob, got, tc.want)
		}
	}
}

// TestPiecesCoverTheBlob checks the arithmetic of a layout against a walk over its bytes.
func TestPiecesCoverTheBlob(t *testing.T) {
	for _, size := range []int64{1, GroupSize - 1, GroupSize, GroupSize + 1, 3*GroupSize + 7, 10 * GroupSize} {
		for _, pieceSize := range []int64{GroupSize, 2 * GroupSize, 8 * GroupSize} {
			l := Layout{Size: size, PieceSize: pieceSize}
			at, groups := int64(0), 0
			for i := range Index(l.Count()) {
				off, length := l.Range(i)
				first, n := l.GroupRange(i)
				if off != at || length <= 0 || first != groups || l.At(off) != i || l.At(off+length-1) != i {
					t.Fatalf("%+v: piece %d is [%d, +%d), groups %d+%d", l, i, off, length, first, n)
				}
				at, groups = at+length, groups+n
			}
			if at != size || groups != l.Groups() {
				t.Errorf("%+v: pieces cover %d bytes and %d groups, want %d", l, at, groups, l.Groups())
			}
		}
	}
}

func TestSpan(t *testing.T) {
	l := Layout{Size: 10*GroupSize + 1, PieceSize: GroupSize}
	for _, tc := range []struct {
		off, length int64
		first, end  Index
	}{
		{0, 1, 0, 1}, {0, GroupSize, 0, 1}, {0, GroupSize + 1, 0, 2}, {GroupSize - 1, 2, 0, 2}, {10 * GroupSize, 99, 10, 11},
		{0, 1 << 40, 0, 11}, {5, 0, 0, 0},
	} {
		if first, end := l.Span(tc.off, tc.length); first != tc.first || end != tc.end {
			t.Errorf("Span(%d, %d) = [%d, %d), want [%d, %d)", tc.off, tc.length, first, end, tc.first, tc.end)
		}
	}
}

func TestVerifyAcceptsOnlyTheBytesThemselves(t *testing.T) {
	data := bytes.Repeat([]byte("model"), GroupSize/2)
	groups := HashGroups(data)
	if len(groups) != 3 || groups[0] != Digest(blake3.Sum256(data[:GroupSize])) {
		t.Fatalf("%d groups", len(groups))
	}
	want := Root(groups)
	if got, err := Verify(4, data, want); err != nil || !slices.Equal(got, groups) {
		t.Errorf("the right bytes: %v", err)
	}
	for name, bad := range map[string][]byte{
		"a flipped bit": flip(data), "cut": data[:len(data)-1], "longer": append(slices.Clone(data), 0), "nothing": nil,
	} {
		_, err := Verify(4, bad, want)
		mismatch, ok := errors.AsType[*MismatchError](err)
		if !ok || !errors.Is(err, ErrMismatch) || mismatch.Index != 4 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func flip(data []byte) []byte {
	out := slices.Clone(data)
	out[len(out)/2] ^= 4
	return out
}

func TestDigestText(t *testing.T) {
	d := HashGroup([]byte("x"))
	text, err := d.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	var back Digest
	if err := back.UnmarshalText(text); err != nil || back != d {
		t.Errorf("%s came back as %s: %v", d, back, err)
	}
	for _, bad := range []string{"", "zz", string(text) + "0", "g" + string(text[1:])} {
		if err := back.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// TestSetAgainstAMap checks a Set against the obvious implementation under random operations.
func TestSetAgainstAMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 9))
	for _, n := range []int{0, 1, 7, 8, 64, 65, 200} {
		s, model := NewSet(n), map[Index]bool{}
		for range 20 * n {
			i := Index(rng.IntN(n+4) - 2)
			in := i >= 0 && int(i) < n
			if rng.IntN(3) > 0 {
				if s.Add(i) != (in && !model[i]) {
					t.Fatalf("n=%d: Add(%d)", n, i)
				}
				if in {
					model[i] = true
				}
			} else {
				if s.Remove(i) != model[i] {
					t.Fatalf("n=%d: Remove(%d)", n, i)
				}
				delete(model, i)
			}
		}
		var want, missing []Index
		for i := range Index(n) {
			if model[i] {
				want = append(want, i)
			} else {
				missing = append(missing, i)
			}
		}
		if d := cmp.Diff(want, slices.Collect(s.All())); d != "" || s.Count() != len(want) || s.Full() != (len(want) == n) {
			t.Errorf("n=%d, count %d (-want +got):\n%s", n, s.Count(), d)
		}
		if d := cmp.Diff(missing, slices.Collect(s.Missing())); d != "" {
			t.Errorf("n=%d, missing (-want +got):\n%s", n, d)
		}
		other, first, end := NewSet(n), Index(n/3), Index(n-n/5)
		var common []Index
		for i := range Index(n) {
			if rng.IntN(2) == 0 {
				other.Add(i)
				if model[i] && i >= first && i < end {
					common = append(common, i)
				}
			}
		}
		if d := cmp.Diff(common, slices.Collect(s.Common(other, first, end))); d != "" {
			t.Errorf("n=%d, common in [%d, %d) (-want +got):\n%s", n, first, end, d)
		}
		back, err := SetFromBytes(n, s.Bytes())
		if err != nil || !slices.Equal(slices.Collect(back.All()), want) || back.Count() != s.Count() {
			t.Errorf("n=%d: bitmap does not come back: %v", n, err)
		}
	}
}

func FuzzSetFromBytes(f *testing.F) {
	f.Add(9, []byte{1, 1})
	f.Add(3, []byte{0xff})
	f.Fuzz(func(t *testing.T, n int, bitmap []byte) {
		if n > 1<<20 {
			return
		}
		s, err := SetFromBytes(n, bitmap)
		if err != nil {
			return
		}
		if !bytes.Equal(s.Bytes(), bitmap) || s.Count() > n {
			t.Errorf("%d indices, %x: came back as %x", n, bitmap, s.Bytes())
		}
	})
}
