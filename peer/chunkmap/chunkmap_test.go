package chunkmap

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/zeebo/xxh3"
)

func randomBytes(seed uint64, n int) []byte {
	out := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range out {
		out[i] = byte(r.Uint32())
	}
	return out
}

func build(data []byte, cuts ...int) *Map {
	b := NewBuilder()
	at := 0
	for _, cut := range cuts {
		_, _ = b.Write(data[at:cut])
		b.Cut()
		at = cut
	}
	_, _ = b.Write(data[at:])
	return b.Map(digest.FromBytes(data))
}

func lengths(m *Map) []uint32 {
	var out []uint32
	for _, c := range m.Chunks {
		out = append(out, c.Length)
	}
	return out
}

func TestBuilderCutsWhereAskedAndAtMostEvery4MiB(t *testing.T) {
	for _, tc := range []struct {
		name string
		size int
		cuts []int
		want []uint32
	}{
		{"empty blob", 0, nil, nil},
		{"one byte", 1, nil, []uint32{1}},
		{"exactly a chunk", MaxChunk, nil, []uint32{MaxChunk}},
		{"no cuts", 2*MaxChunk + 5, nil, []uint32{MaxChunk, MaxChunk, 5}},
		{"tensors", 5000, []int{0, 64, 64, 4096, 5000}, []uint32{64, 4032, 904}},
		{"cut at the limit", MaxChunk + 1, []int{MaxChunk}, []uint32{MaxChunk, 1}},
		{"a long tensor starts anew", MaxChunk + 100, []int{50}, []uint32{50, MaxChunk, 50}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data := randomBytes(1, tc.size)
			m := build(data, tc.cuts...)
			if diff := cmp.Diff(tc.want, lengths(m)); diff != "" {
				t.Errorf("chunk lengths (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(len(piece.HashGroups(data)), len(m.Groups)); diff != "" {
				t.Errorf("groups (-want +got):\n%s", diff)
			}
			off := 0
			for i, c := range m.Chunks {
				if want := ID(xxh3.Hash128(data[off : off+int(c.Length)]).Bytes()); c.ID != want {
					t.Errorf("chunk %d: ID of other bytes", i)
				}
				off += int(c.Length)
			}
		})
	}
}

func TestBuilderDoesNotDependOnHowTheBytesArrive(t *testing.T) {
	data := randomBytes(2, 3*piece.GroupSize+17)
	b := NewBuilder()
	r := rand.New(rand.NewPCG(7, 7))
	for rest := data; len(rest) > 0; {
		n := min(len(rest), r.IntN(piece.GroupSize))
		_, _ = b.Write(rest[:n])
		rest = rest[n:]
	}
	if diff := cmp.Diff(build(data), b.Map(digest.FromBytes(data))); diff != "" {
		t.Errorf("(-at once +in parts):\n%s", diff)
	}
}

func TestPieceDigestVerifiesThePiece(t *testing.T) {
	data := randomBytes(3, 5*piece.GroupSize+100)
	m := build(data)
	l := piece.Layout{Size: m.Size, PieceSize: 2 * piece.GroupSize}
	for i := range piece.Index(l.Count()) {
		off, n := l.Range(i)
		if _, err := piece.Verify(i, data[off:off+n], m.PieceDigest(l, i)); err != nil {
			t.Error(err)
		}
	}
}

func TestVerifyNamesTheFirstBadGroup(t *testing.T) {
	data := randomBytes(4, 3*piece.GroupSize+100)
	m := build(data)
	if err := m.Verify(piece.GroupSize, data[piece.GroupSize:]); err != nil {
		t.Fatal(err)
	}
	data[2*piece.GroupSize+5] ^= 1
	mismatch, ok := errors.AsType[*piece.MismatchError](m.Verify(piece.GroupSize, data[piece.GroupSize:]))
	if !ok || mismatch.Index != 2 {
		t.Errorf("got %v, want a mismatch of group 2", mismatch)
	}
	for _, bad := range []struct{ off, n int64 }{{1, 1}, {-piece.GroupSize, 1}, {0, m.Size + 1}, {4 * piece.GroupSize, 1}} {
		if m.Verify(bad.off, make([]byte, bad.n)) == nil {
			t.Errorf("range %d+%d of %d bytes was accepted", bad.off, bad.n, m.Size)
		}
	}
}

func TestEncodingIsStable(t *testing.T) {
	m := build([]byte("shoal"), 2)
	enc := m.Encode()
	head := "73686f616c6d6170" + "02000000" + "47000000" + "0500000000000000" + "01000000" + "02000000"
	if diff := cmp.Diff(head, digestHex(enc[:32])); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
	if want := 32 + 71 + 32 + 2*20; len(enc) != want {
		t.Errorf("length: want %d, got %d", want, len(enc))
	}
	// The value the authors of XXH3 give for no bytes, in their canonical order.
	if none := xxh3.Hash128(nil).Bytes(); digestHex(none[:]) != "99aa06d3014798d86001c324468d497f" {
		t.Errorf("XXH3-128 of nothing: %x", none)
	}
	got, err := Decode(enc)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, got); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
}

func digestHex(b []byte) string {
	const hexDigits = "0123456789abcdef"
	var out []byte
	for _, c := range b {
		out = append(out, hexDigits[c>>4], hexDigits[c&15])
	}
	return string(out)
}

func TestDecodeRefuses(t *testing.T) {
	le := binary.LittleEndian
	for _, tc := range []struct {
		name   string
		mutate func(enc []byte) []byte
		want   error
	}{
		{"nothing", func([]byte) []byte { return nil }, ErrInvalid},
		{"other magic", func(e []byte) []byte { e[0]++; return e }, ErrInvalid},
		{"first version", func(e []byte) []byte { e[8] = 1; return e }, ErrUnsupported},
		{"later version", func(e []byte) []byte { e[8] = 3; return e }, ErrUnsupported},
		{"a byte less", func(e []byte) []byte { return e[:len(e)-1] }, ErrInvalid},
		{"a byte more", func(e []byte) []byte { return append(e, 0) }, ErrInvalid},
		{"huge digest", func(e []byte) []byte { le.PutUint32(e[12:], 1<<31); return e }, ErrInvalid},
		{"huge size", func(e []byte) []byte { le.PutUint64(e[16:], 1<<63); return e }, ErrInvalid},
		{"more groups than the size has", func(e []byte) []byte { le.PutUint32(e[24:], 1<<31); return e }, ErrInvalid},
		{"more chunks than bytes", func(e []byte) []byte { le.PutUint32(e[28:], 1<<32-1); return e }, ErrInvalid},
		{"no digest", func(e []byte) []byte { copy(e[32:], "SHA256"); return e }, ErrInvalid},
		{"empty chunk", func(e []byte) []byte { le.PutUint32(e[len(e)-20:], 0); return e }, ErrInvalid},
		{"chunk too long", func(e []byte) []byte { le.PutUint32(e[len(e)-20:], 1<<20); return e }, ErrInvalid},
		{"chunk too short", func(e []byte) []byte { le.PutUint32(e[len(e)-20:], 1); return e }, ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := Decode(tc.mutate(build([]byte("shoal"), 2).Encode())); !errors.Is(err, tc.want) {
				t.Errorf("want %v, got %v", tc.want, err)
			}
		})
	}
}

type file struct {
	name string
	data []byte
}

func layerTar(t testing.TB, compress bool, files ...file) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.Writer = &out
	var zw *gzip.Writer
	if compress {
		zw = gzip.NewWriter(&out)
		w = zw
	}
	tw := tar.NewWriter(w)
	for _, f := range files {
		if err := tw.WriteHeader(&tar.Header{Name: f.name, Size: int64(len(f.data)), Mode: 0o444, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if zw != nil {
		if err := zw.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func TestFromLayerFindsTheMapOfABlob(t *testing.T) {
	one, two := build([]byte("one")), build(randomBytes(5, piece.GroupSize*2))
	for _, compress := range []bool{false, true} {
		raw := layerTar(t, compress, file{"image/image.boot", make([]byte, 5000)},
			file{FileName(one.Blob), one.Encode()}, file{FileName(two.Blob), two.Encode()})
		got, err := FromLayer(bytes.NewReader(raw), two.Blob)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(two, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		all, err := AllFromLayer(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[digest.Digest]*Map{one.Blob: one, two.Blob: two}, all); diff != "" {
			t.Errorf("all (-want +got):\n%s", diff)
		}
		if _, err := FromLayer(bytes.NewReader(raw), digest.FromString("absent")); !errors.Is(err, ErrNotFound) {
			t.Errorf("want ErrNotFound, got %v", err)
		}
	}
}

func TestFromLayerRefusesHostileLayers(t *testing.T) {
	one, two := build([]byte("one")), build([]byte("two"))
	huge := layerTar(t, false, file{FileName(one.Blob), one.Encode()})
	copy(huge[124:136], "77777777777\x00") // the size field: 8 GiB
	sum := 0
	for i, c := range huge[:512] {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int(c)
	}
	copy(huge[148:156], []byte{byte('0' + sum>>15&7), byte('0' + sum>>12&7), byte('0' + sum>>9&7), byte('0' + sum>>6&7), byte('0' + sum>>3&7), byte('0' + sum&7), 0, ' '})
	for _, tc := range []struct {
		name string
		raw  []byte
	}{
		{"a map under another blob's name", layerTar(t, true, file{FileName(one.Blob), two.Encode()})},
		{"no map inside", layerTar(t, true, file{FileName(one.Blob), []byte("hello")})},
		{"no tar", bytes.Repeat([]byte("x"), 4096)},
		{"gzip of nothing", []byte{0x1f, 0x8b, 0, 0}},
		{"size that lies", huge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := FromLayer(bytes.NewReader(tc.raw), one.Blob); !errors.Is(err, ErrInvalid) {
				t.Errorf("want ErrInvalid, got %v", err)
			}
			if _, err := AllFromLayer(bytes.NewReader(tc.raw)); !errors.Is(err, ErrInvalid) {
				t.Errorf("all: want ErrInvalid, got %v", err)
			}
		})
	}
}

// One reader would take the first, another the last.
func TestTwoMapsOfABlobAreRefused(t *testing.T) {
	one := build([]byte("one"))
	raw := layerTar(t, true, file{FileName(one.Blob), one.Encode()}, file{"./" + FileName(one.Blob), one.Encode()})
	if _, err := AllFromLayer(bytes.NewReader(raw)); !errors.Is(err, ErrInvalid) {
		t.Errorf("want ErrInvalid, got %v", err)
	}
}

func FuzzDecodeAnyBytes(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(build([]byte("shoal"), 2).Encode())
	f.Add(build(nil).Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Decode(data)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("error without a class: %v", err)
			}
			return
		}
		if !bytes.Equal(data, m.Encode()) {
			t.Fatal("decoded, then encoded to other bytes")
		}
	})
}

func FuzzDecodeMutated(f *testing.F) {
	f.Add(0, []byte{1}, uint16(3))
	f.Add(24, []byte{0xff, 0xff, 0xff, 0xff}, uint16(100))
	f.Fuzz(func(t *testing.T, at int, patch []byte, cut uint16) {
		data := randomBytes(6, piece.GroupSize+9)
		enc := build(data, int(cut)+1).Encode()
		if at < 0 || at > len(enc) {
			return
		}
		copy(enc[at:], patch)
		if m, err := Decode(enc); err == nil {
			l := piece.NewLayout(m.Size)
			for i := range piece.Index(l.Count()) {
				m.PieceDigest(l, i)
			}
		}
	})
}

func FuzzBuildDecode(f *testing.F) {
	f.Add([]byte("shoal"), uint8(2))
	f.Fuzz(func(t *testing.T, data []byte, cut uint8) {
		var cuts []int
		if int(cut) <= len(data) {
			cuts = []int{int(cut)}
		}
		m := build(data, cuts...)
		got, err := Decode(m.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, got); diff != "" {
			t.Fatal(diff)
		}
		if err := got.Verify(0, data); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzFromLayer(f *testing.F) {
	one := build([]byte("one"))
	f.Add(layerTar(f, false, file{FileName(one.Blob), one.Encode()}))
	f.Add(layerTar(f, true, file{FileName(one.Blob), one.Encode()}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := FromLayer(bytes.NewReader(data), one.Blob); err == nil && m.Blob != one.Blob {
			t.Fatal("the map of another blob")
		}
	})
}

func BenchmarkBuilder(b *testing.B) {
	data := randomBytes(8, 8<<20)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		m := NewBuilder()
		_, _ = m.Write(data)
		m.Map("")
	}
}
