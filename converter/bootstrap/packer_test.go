package bootstrap

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
)

const testChunk = 64 << 10

// letters are n bytes that compress, noise are such that do not.
func letters(seed uint64, n int) []byte {
	r, out := rand.New(rand.NewPCG(seed, 3)), make([]byte, n)
	for i := range out {
		out[i] = byte('a' + r.IntN(4))
	}
	return out
}

func noise(seed uint64, n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), 1}).Read(out)
	return out
}

// pack packs files f0, f1, … into the image of b.
func pack(t testing.TB, b *Builder, kind Compressor, dict *Dict, files ...[]byte) (packed *Packed, blob []byte) {
	t.Helper()
	var out bytes.Buffer
	p, err := NewPacker(&out, testChunk, kind, dict)
	check(t, err)
	if b.img.Root == nil {
		b.img.Root = NewTree().Root
	}
	for _, data := range files {
		n := &Inode{Mode: TypeRegular, Size: int64(len(data))}
		check(t, p.Add(n, bytes.NewReader(data)))
		b.img.Root.Children[fmt.Sprint("f", len(b.img.Root.Children))] = n
	}
	packed, err = p.Finish()
	check(t, err)
	b.Add(packed)
	if len(packed.Chunks) > 0 {
		blobs := map[string]bool{}
		for i := range b.img.Blobs {
			blobs[b.img.Blobs[i].Digest.String()] = true
		}
		if !blobs[packed.Blob.Digest.String()] || packed.Blob.Size != int64(out.Len()) {
			t.Errorf("blob %+v of %d bytes is not listed", packed.Blob, out.Len())
		}
	}
	return packed, out.Bytes()
}

// content reads a file of an image, whose blobs are by digest.
func content(t testing.TB, img *Image, n *Inode, blobs map[string][]byte) []byte {
	t.Helper()
	x, err := NewExpander()
	check(t, err)
	defer x.Close()
	var out []byte
	for _, at := range n.Chunks {
		c := &img.Chunks[at]
		b := &img.Blobs[c.Blob]
		data, err := x.Chunk(nil, bytes.NewReader(blobs[b.Digest.String()]), b, c)
		check(t, err)
		out = append(out, data...)
	}
	return out
}

func TestPackedFilesReadBack(t *testing.T) {
	files := [][]byte{letters(1, 3*testChunk+5), noise(2, testChunk), {7}, letters(3, testChunk-1), nil}
	for _, kind := range []Compressor{None, LZ4, Zstd} {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			img := &Image{ChunkSize: testChunk}
			b := NewBuilder(img)
			packed, blob := pack(t, b, kind, nil, files...)
			for i, want := range files {
				n := img.Root.Children[fmt.Sprint("f", i)]
				if got := content(t, img, n, map[string][]byte{packed.Blob.Digest.String(): blob}); !bytes.Equal(want, got) {
					t.Errorf("file %d: %d bytes, want %d", i, len(got), len(want))
				}
			}
			for _, c := range packed.Chunks {
				small := c.Size < 10 || c.Index == 4 // the noise
				if kind != None && c.Compressed() == small {
					t.Errorf("chunk %d: %d of %d bytes", c.Index, c.Length, c.Size)
				}
			}
			if int64(len(packed.Chunks)) != 7 || (kind == None) != (packed.Blob.Size > 4*testChunk+8192) {
				t.Errorf("%d chunks, blob of %d bytes", len(packed.Chunks), packed.Blob.Size)
			}
		})
	}
}

func TestExpanderReadsGzip(t *testing.T) {
	data := letters(1, 5000)
	var stored bytes.Buffer
	zw := gzip.NewWriter(&stored)
	_, err := zw.Write(data)
	check(t, err)
	check(t, zw.Close())
	x, err := NewExpander()
	check(t, err)
	defer x.Close()
	b := &Blob{Compressor: Gzip, Digester: SHA256}
	c := &Chunk{Digest: SHA256.sum(data), Length: uint32(stored.Len()), Size: 5000}
	got, err := x.Chunk(nil, bytes.NewReader(stored.Bytes()), b, c)
	if err != nil || !bytes.Equal(data, got) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestExpanderRefuses(t *testing.T) {
	x, err := NewExpander()
	check(t, err)
	defer x.Close()
	bomb := make([]byte, testChunk) // a chunk that expands to more than it says
	for _, kind := range []Compressor{None, LZ4, Zstd, Gzip} {
		comp, err := newCompressor(kind, 1<<20)
		if kind == Gzip {
			comp, err = newCompressor(Zstd, 1<<20)
		}
		check(t, err)
		stored, err := comp.pack(bomb)
		check(t, err)
		stored = bytes.Clone(stored)
		for name, c := range map[string]Chunk{
			"more than it says": {Digest: Blake3.sum(bomb[:99]), Length: uint32(len(stored)), Size: 99},
			"less than it says": {Digest: Blake3.sum(bomb), Length: uint32(len(stored)), Size: testChunk + 1},
			"other bytes":       {Length: uint32(len(stored)), Size: testChunk},
			"nothing":           {Length: 0, Size: 0},
			"too much":          {Length: maxChunkSize + 1, Size: 1},
		} {
			if got, err := x.Chunk(nil, bytes.NewReader(stored), &Blob{Compressor: kind}, &c); !errors.Is(err, ErrInvalid) {
				t.Errorf("compressor %d, %s: %d bytes, %v", kind, name, len(got), err)
			}
		}
		comp.close()
	}
}

func TestPackerStoresAChunkOnce(t *testing.T) {
	img := &Image{ChunkSize: testChunk}
	b := NewBuilder(img)
	same, other := letters(1, testChunk), letters(2, 100)
	packed, blob := pack(t, b, Zstd, nil, append(bytes.Clone(same), other...), other, append(bytes.Clone(other), 1), same, append(append(bytes.Clone(same), same...), other...))
	if len(packed.Chunks) != 3 || len(img.Chunks) != 3 {
		t.Errorf("want 3 chunks, got %d", len(packed.Chunks))
	}
	blobs := map[string][]byte{packed.Blob.Digest.String(): blob}
	if got := content(t, img, img.Root.Children["f4"], blobs); !bytes.Equal(got, append(append(bytes.Clone(same), same...), other...)) {
		t.Error("a file with the same chunk twice reads back otherwise")
	}
	raw, err := Encode(img)
	check(t, err)
	got, err := Decode(bytes.NewReader(raw), int64(len(raw)))
	check(t, err)
	if diff := cmp.Diff(img, got, diffOptions); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBuilderListsABlobOnce(t *testing.T) {
	img := &Image{ChunkSize: testChunk}
	b := NewBuilder(img)
	packed, _ := pack(t, b, None, nil, []byte("one"), []byte("two"))
	again, _ := pack(t, b, None, nil, []byte("one"), []byte("two"))
	if packed.Blob.Digest != again.Blob.Digest || len(img.Blobs) != 1 || len(img.Chunks) != 2 || len(b.Metas()) != 1 {
		t.Errorf("%d blobs, %d chunks", len(img.Blobs), len(img.Chunks))
	}
	if diff := cmp.Diff(img.Root.Children["f0"].Chunks, img.Root.Children["f2"].Chunks); diff != "" {
		t.Error(diff)
	}
	if !b.Has(packed.Blob.Digest) || b.Has("") {
		t.Error("Has")
	}
}

func TestPrefetchIsEncodedInItsOrder(t *testing.T) {
	img, _ := sample(t, 1)
	dir := img.Root.Children["blob0"]
	want := []*Inode{dir.Children["dir"].Children["file-3"], img.Root, dir, img.Root.Children["hard"]}
	img.Prefetch = want
	raw, err := Encode(img)
	check(t, err)
	got, err := Decode(bytes.NewReader(raw), int64(len(raw)))
	check(t, err)
	if diff := cmp.Diff(want, got.Prefetch, diffOptions); diff != "" || got.Prefetch[1] != got.Root {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, bad := range map[string][]*Inode{"a stranger": {{}}, "the same twice": {dir, dir}, "nil": {nil}} {
		img.Prefetch = bad
		if _, err := Encode(img); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// wantNoSmallGaps makes sure that chunks that follow each other in a file do so in their blob too, or lie far apart.
func wantNoSmallGaps(t testing.TB, img *Image) {
	t.Helper()
	check(t, img.Walk(func(path string, n *Inode) error {
		for i := 1; i < len(n.Chunks); i++ {
			a, b := img.Chunks[n.Chunks[i-1]], img.Chunks[n.Chunks[i]]
			if gap := b.Offset - a.Offset - int64(a.Length); a.Blob == b.Blob && gap > 0 && gap <= skipGap {
				t.Errorf("%s: chunk %d lies %d bytes behind the one before it", path, i, gap)
			}
		}
		return nil
	}))
}

func TestReuseLeavesNoSmallGaps(t *testing.T) {
	same, a, b, c := letters(1, testChunk), letters(2, 100), letters(3, 200), letters(4, testChunk)
	t.Run("a new end", func(t *testing.T) {
		img := &Image{ChunkSize: testChunk}
		packed, blob := pack(t, NewBuilder(img), Zstd, nil, slices.Concat(same, a), slices.Concat(same, b), slices.Concat(same, b))
		wantNoSmallGaps(t, img)
		if len(packed.Chunks) != 3 || !bytes.Equal(content(t, img, img.Root.Children["f2"], map[string][]byte{packed.Blob.Digest.String(): blob}), slices.Concat(same, b)) {
			t.Errorf("%d chunks", len(packed.Chunks))
		}
	})
	t.Run("an end from elsewhere", func(t *testing.T) {
		img := &Image{ChunkSize: testChunk}
		packed, _ := pack(t, NewBuilder(img), Zstd, nil, slices.Concat(same, a), b, slices.Concat(same, b))
		wantNoSmallGaps(t, img)
		if len(packed.Chunks) != 4 { // the end is stored again
			t.Errorf("%d chunks", len(packed.Chunks))
		}
	})
	t.Run("files at random", func(t *testing.T) {
		parts := [][]byte{same, c, a, b, noise(1, 64), letters(5, testChunk), noise(2, testChunk)}
		for seed := range uint64(200) {
			r := rand.New(rand.NewPCG(seed, 9))
			files := func() (out [][]byte) {
				for range 1 + r.IntN(8) {
					var f []byte
					for range r.IntN(5) {
						f = append(f, parts[[]int{0, 1, 5, 6}[r.IntN(4)]]...)
					}
					out = append(out, append(f, parts[r.IntN(len(parts))]...))
				}
				return out
			}
			e := makeEarlier(t, Zstd, files()...)
			wantNoSmallGaps(t, e.img)
			img := &Image{ChunkSize: testChunk}
			b, blobs, want := NewBuilder(img), e.blobs, files()
			packed, blob := pack(t, b, LZ4, dictOf(t, r.IntN(2), e), want...)
			blobs[packed.Blob.Digest.String()] = blob
			wantNoSmallGaps(t, img)
			for i := range want {
				if got := content(t, img, img.Root.Children[fmt.Sprint("f", i)], blobs); !bytes.Equal(want[i], got) {
					t.Fatalf("seed %d: file %d reads back otherwise", seed, i)
				}
			}
			raw, err := Encode(img)
			check(t, err)
			decoded, err := Decode(bytes.NewReader(raw), int64(len(raw)))
			check(t, err)
			if diff := cmp.Diff(img, decoded, diffOptions); diff != "" {
				t.Fatalf("seed %d (-want +got):\n%s", seed, diff)
			}
		}
	})
}
