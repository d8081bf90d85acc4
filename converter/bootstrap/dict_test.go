package bootstrap

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// earlier is an image with one blob of the given files, as it is found decoded.
type earlier struct {
	img   *Image
	metas map[string][]byte
	blobs map[string][]byte
}

func makeEarlier(t testing.TB, kind Compressor, files ...[]byte) *earlier {
	t.Helper()
	img := &Image{ChunkSize: testChunk}
	b := NewBuilder(img)
	packed, blob := pack(t, b, kind, nil, files...)
	raw, err := Encode(img)
	check(t, err)
	img, err = Decode(bytes.NewReader(raw), int64(len(raw)))
	check(t, err)
	return &earlier{img, b.Metas(), map[string][]byte{packed.Blob.Digest.String(): blob}}
}

func dictOf(t testing.TB, limit int, images ...*earlier) *Dict {
	t.Helper()
	d := NewDict(testChunk, limit)
	for _, e := range images {
		check(t, d.Add(e.img, e.metas))
	}
	return d
}

func TestDictionaryChunksAreReferredTo(t *testing.T) {
	big, small, fresh := noise(1, 2<<20), letters(1, 500_000), letters(2, 200_000)
	for _, tc := range []struct {
		name   string
		limit  int
		blobs  []*earlier
		files  [][]byte
		stored int // bytes, uncompressed, in the layer's own blob
		named  int
	}{
		{"all of the layer", 9, []*earlier{makeEarlier(t, Zstd, big, small)}, [][]byte{big, small}, 0, 1},
		{"a changed file", 9, []*earlier{makeEarlier(t, Zstd, big, small)}, [][]byte{big, fresh}, 200_000, 1},
		{"part of a file", 9, []*earlier{makeEarlier(t, Zstd, big)}, [][]byte{slices.Concat(big[:1<<20], fresh)}, 200_000, 1},
		{"nothing in common", 9, []*earlier{makeEarlier(t, Zstd, big)}, [][]byte{fresh}, 200_000, 0},
		{"a small layer's large part", 9, []*earlier{makeEarlier(t, None, small[:testChunk], big)}, [][]byte{small}, 500_000 - testChunk, 1},
		{"a large layer's small part", 9, []*earlier{makeEarlier(t, LZ4, small[:testChunk])}, [][]byte{small[:testChunk], big}, 2<<20 + testChunk, 0},
		{"two blobs", 9, []*earlier{makeEarlier(t, Zstd, big), makeEarlier(t, None, small)}, [][]byte{big, small, fresh}, 200_000, 2},
		{"no room for the second blob", 1, []*earlier{makeEarlier(t, Zstd, big), makeEarlier(t, None, small)}, [][]byte{big, small}, 500_000, 1},
		{"no room at all", 0, []*earlier{makeEarlier(t, Zstd, big)}, [][]byte{big}, 2 << 20, 0},
		{"the same chunk in two blobs", 9, []*earlier{makeEarlier(t, Zstd, big), makeEarlier(t, None, big)}, [][]byte{big, big}, 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var first *Image
			for range 2 {
				img := &Image{ChunkSize: testChunk}
				b := NewBuilder(img)
				packed, blob := pack(t, b, Zstd, dictOf(t, tc.limit, tc.blobs...), tc.files...)
				blobs := map[string][]byte{packed.Blob.Digest.String(): blob}
				stored := 0
				for _, c := range packed.Chunks {
					stored += int(c.Size)
				}
				named := len(img.Blobs)
				if len(packed.Chunks) > 0 {
					named--
				}
				if stored != tc.stored || named != tc.named || len(b.Metas()) != len(img.Blobs) {
					t.Errorf("%d bytes stored, %d blobs named; want %d, %d", stored, named, tc.stored, tc.named)
				}
				for _, e := range tc.blobs {
					maps.Copy(blobs, e.blobs)
				}
				for i, want := range tc.files {
					if got := content(t, img, img.Root.Children[fmt.Sprint("f", i)], blobs); !bytes.Equal(want, got) {
						t.Errorf("file %d has other bytes", i)
					}
				}
				for name, meta := range b.Metas() {
					if _, _, err := DecodeMeta(meta); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
				if first != nil {
					if diff := cmp.Diff(first, img, diffOptions); diff != "" {
						t.Errorf("made twice, it differs:\n%s", diff)
					}
				}
				first = img
				raw, err := Encode(img)
				check(t, err)
				decoded, err := Decode(bytes.NewReader(raw), int64(len(raw)))
				check(t, err)
				if diff := cmp.Diff(img, decoded, diffOptions); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestABlobOnceNamedIsUsedFreely(t *testing.T) {
	big, tail := noise(1, 2<<20), letters(1, 100)
	dict := dictOf(t, 1, makeEarlier(t, Zstd, big, tail))
	img := &Image{ChunkSize: testChunk}
	b := NewBuilder(img)
	pack(t, b, Zstd, dict, big)
	packed, _ := pack(t, b, Zstd, dict, tail, noise(2, 1<<20))
	if len(packed.Chunks) != 16 || len(img.Blobs) != 2 {
		t.Errorf("%d chunks, %d blobs", len(packed.Chunks), len(img.Blobs))
	}
}

func TestDictionaryLeavesOutWhatItCannotUse(t *testing.T) {
	for _, tc := range []struct {
		name   string
		mutate func(e *earlier)
		want   error
	}{
		{"another digester", func(e *earlier) { e.img.Blobs[0].Digester = SHA256 }, ErrUnsupported},
		{"gzip", func(e *earlier) { e.img.Blobs[0].Compressor = Gzip }, ErrUnsupported},
		{"other features", func(e *earlier) { e.img.Blobs[0].Features = featureAligned }, ErrUnsupported},
		{"other chunk size", func(e *earlier) { e.img.ChunkSize *= 2 }, ErrUnsupported},
		{"no blob.meta", func(e *earlier) { clear(e.metas) }, ErrInvalid},
		{"a blob.meta of other chunks", func(e *earlier) { e.img.Chunks[0].Offset++ }, ErrInvalid},
		{"a blob.meta of fewer chunks", func(e *earlier) { e.img.Blobs[0].ChunkCount++ }, ErrInvalid},
		{"a broken blob.meta", func(e *earlier) { e.metas[MetaName(&e.img.Blobs[0])] = []byte("x") }, ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := makeEarlier(t, Zstd, []byte("one"), []byte("three"))
			tc.mutate(e)
			d := NewDict(testChunk, 9)
			if err := d.Add(e.img, e.metas); !errors.Is(err, tc.want) {
				t.Errorf("want %v, got %v", tc.want, err)
			}
			if len(d.chunks) > 0 {
				t.Error("its chunks were taken")
			}
		})
	}
	if _, err := NewPacker(&strings.Builder{}, 4096, None, NewDict(testChunk, 1)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("another chunk size: %v", err)
	}
}
