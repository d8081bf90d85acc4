package bootstrap

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

// mustBeSane decodes any bytes: it must end, and what is accepted must encode and decode to the same again.
func mustBeSane(t *testing.T, raw []byte) {
	img, err := Decode(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
			t.Fatalf("error without a class: %v", err)
		}
		return
	}
	again, err := Encode(img)
	if err != nil {
		// What others wrote may be more than this package writes, but never half of it.
		if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
			t.Fatalf("encode: error without a class: %v", err)
		}
		return
	}
	got, err := Decode(bytes.NewReader(again), int64(len(again)))
	if err != nil {
		t.Fatalf("decode what was encoded: %v", err)
	}
	if diff := cmp.Diff(img, got, diffOptions); diff != "" {
		t.Fatalf("decoded, encoded and decoded (-first +second):\n%s", diff)
	}
}

func FuzzDecodeAnyBytes(f *testing.F) {
	img, _ := sample(f, 0)
	raw, err := Encode(img)
	check(f, err)
	f.Add(raw)
	f.Add(make([]byte, blockSize))
	f.Add(kernelSample(f))
	f.Fuzz(mustBeSane)
}

func FuzzDecodeMutated(f *testing.F) {
	f.Add(uint64(1), uint32(sbRootNid), []byte{2})
	f.Add(uint64(2), uint32(blockSize*3+inodeFormat), []byte{9, 0})
	f.Add(uint64(3), uint32(sbFeatureCompat), []byte{4})
	f.Add(uint64(4), uint32(blockSize*2+slotSize+inodeUnion), []byte{chunkFormatIndex | 1, 0})
	f.Fuzz(func(t *testing.T, seed uint64, at uint32, patch []byte) {
		img, _ := sample(t, seed%16)
		raw, err := Encode(img)
		check(t, err)
		copy(raw[int(at)%len(raw):], patch)
		mustBeSane(t, raw)
	})
}

func FuzzEncodeDecode(f *testing.F) {
	f.Add("a/b", "target", "user.x", uint32(0o644), uint32(7), int64(-1))
	f.Fuzz(func(t *testing.T, path, link, attr string, mode, id uint32, mtime int64) {
		tree := NewTree()
		if tree.Add(path, &Inode{Mode: TypeSymlink | mode&0o7777, Link: link, UID: id, Mtime: mtime}) != nil {
			return
		}
		if tree.Add(path+"x", &Inode{Mode: TypeChar, Major: id & 0xfff, Minor: id & 0xfffff, Xattrs: map[string]string{attr: link}}) != nil {
			return
		}
		img := &Image{ChunkSize: 1 << 20, Root: tree.Root}
		raw, err := Encode(img)
		if err != nil {
			return
		}
		got, err := Decode(bytes.NewReader(raw), int64(len(raw)))
		check(t, err)
		if diff := cmp.Diff(img, got, diffOptions); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}

func FuzzDecodeMeta(f *testing.F) {
	f.Add(Meta(8192, []Chunk{{Size: 4096, Length: 100}, {Size: 1, Length: 1, Offset: 100, DeviceOffset: 4096}}))
	table := append(v2Entry(0, 4096, 0, 100, v2IsCompressed), v2Entry(4096, 1, 100, 1, 0x10)...)
	f.Add(metaOf(table, 2, featureAligned|featureV2, None, len(table)))
	many := bytes.Repeat(v2Entry(0, 1, 0, 1, 0), 100)
	for _, kind := range []Compressor{LZ4, Zstd} {
		comp, err := newCompressor(kind, 1<<20)
		check(f, err)
		packed, err := comp.pack(many)
		check(f, err)
		f.Add(metaOf(packed, 100, featureAligned|featureV2, kind, len(many)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		at, chunks, err := DecodeMeta(data)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("error without a class: %v", err)
			}
			return
		}
		if at2, chunks2, err := DecodeMeta(Meta(at, chunks)); err != nil || at != at2 || !cmp.Equal(chunks, chunks2) {
			t.Fatalf("decoded, encoded and decoded: %v", err)
		}
	})
}

func FuzzInlined(f *testing.F) {
	f.Add(reversed(f, "image.blob", "data", "image.boot", "boot"))
	f.Add(reversed(f, "image.boot", "boot", "rafs.blob.toc", tocEntry(tocIsPlain, "image.boot", 0, 4, "boot")))
	f.Add(reversed(f, "image.boot", "boot", "rafs.blob.toc", tocEntry(tocIsZstd, "image.boot", 0, 4, "boot")))
	f.Fuzz(func(t *testing.T, blob []byte) {
		_, err := DecodeInlined(bytes.NewReader(blob), int64(len(blob)), digest.FromString("blob"))
		if err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("error without a class: %v", err)
		}
	})
}

// FuzzPack packs files cut from fuzzed bytes, with and without a dictionary of the same bytes, and reads them back.
func FuzzPack(f *testing.F) {
	f.Add(uint8(1), uint16(100), []byte("abcabcabc"))
	f.Fuzz(func(t *testing.T, kind uint8, cut uint16, data []byte) {
		kinds := []Compressor{None, LZ4, Zstd}
		big := bytes.Repeat(data, 1+3*testChunk/(len(data)+1))
		files := [][]byte{data, big, big[min(int(cut), len(big)):], data}
		e := makeEarlier(t, kinds[int(kind)%3], files[1:]...)
		img := &Image{ChunkSize: testChunk}
		packed, blob := pack(t, NewBuilder(img), kinds[int(kind/3)%3], dictOf(t, int(kind>>6), e), files...)
		e.blobs[packed.Blob.Digest.String()] = blob
		for i := range files {
			if got := content(t, img, img.Root.Children[fmt.Sprint("f", i)], e.blobs); !bytes.Equal(files[i], got) {
				t.Fatalf("file %d reads back otherwise", i)
			}
		}
		wantNoSmallGaps(t, img)
	})
}

// FuzzTree applies any script of layer operations: it must end and must not leave the tree.
func FuzzTree(f *testing.F) {
	f.Add("dir a\n ln b a\n file b/c\n layer\n wh a/c\n opq b\n hard d b/c")
	f.Fuzz(func(t *testing.T, script string) {
		tree := NewTree()
		func() {
			defer func() { // a line with too few words is the script's fault
				if r := recover(); r != nil {
					if _, ok := r.(interface{ RuntimeError() }); !ok {
						panic(r)
					}
				}
			}()
			_ = apply(tree, script)
		}()
		if _, err := Encode(&Image{ChunkSize: 1 << 20, Root: tree.Root}); err != nil && errors.Is(err, ErrInvalid) {
			t.Fatalf("a tree of layers contradicts itself: %v", err)
		}
	})
}

func TestDeviceNumbersSurvive(t *testing.T) {
	for _, major := range []uint32{0, 1, 259, 0xfff} {
		for _, minor := range []uint32{0, 3, 256, 0xfffff} {
			if a, b := decodeDevice(encodeDevice(major, minor)); a != major || b != minor {
				t.Errorf("%d:%d became %d:%d", major, minor, a, b)
			}
		}
	}
}
