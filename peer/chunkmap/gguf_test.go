package chunkmap

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

// byteOrder is what both orders of encoding/binary are.
type byteOrder interface {
	binary.ByteOrder
	binary.AppendByteOrder
}

// ggufWriter writes GGUF files as their specification says.
type ggufWriter struct {
	order   byteOrder
	version uint32
	out     []byte
}

func (w *ggufWriter) u32(v uint32) { w.out = w.order.AppendUint32(w.out, v) }
func (w *ggufWriter) u64(v uint64) { w.out = w.order.AppendUint64(w.out, v) }

func (w *ggufWriter) count(v int) {
	if w.version == 1 {
		w.u32(uint32(v))
	} else {
		w.u64(uint64(v))
	}
}

func (w *ggufWriter) text(s string) {
	w.count(len(s))
	w.out = append(w.out, s...)
}

func (w *ggufWriter) key(name string, kind uint32) {
	w.text(name)
	w.u32(kind)
}

// begin writes the magic, the counts and a value of each kind; the alignment is 64.
func (w *ggufWriter) begin(tensors int) {
	w.out = append(w.out, ggufMagic...)
	w.u32(w.version)
	w.count(tensors)
	w.count(17)
	for _, fixed := range [][2]int{{0, 1}, {1, 1}, {2, 2}, {3, 2}, {4, 4}, {5, 4}, {6, 4}, {7, 1}, {10, 8}, {11, 8}, {12, 8}} {
		w.key("fixed", uint32(fixed[0]))
		w.out = append(w.out, make([]byte, fixed[1])...)
	}
	w.key("general.name", ggufString)
	w.text("a model")
	w.key(ggufKeyword, ggufUint32)
	w.u32(64)
	w.key("tokenizer.ggml.tokens", ggufArray)
	w.u32(ggufString)
	w.count(3)
	for _, s := range []string{"", "shoal", strings.Repeat("x", 1000)} {
		w.text(s)
	}
	w.key("tokenizer.ggml.scores", ggufArray)
	w.u32(6)
	w.count(1000)
	w.out = append(w.out, make([]byte, 4000)...)
	w.key("arrays", ggufArray)
	w.u32(ggufArray)
	w.count(2)
	w.u32(5)
	w.count(0)
	w.u32(ggufString)
	w.count(1)
	w.text("deep")
	w.key(strings.Repeat("long", 100), ggufArray)
	w.u32(0)
	w.count(0)
}

// info writes the entry of a tensor of bytes.
func (w *ggufWriter) info(name string, size, off int) {
	w.text(name)
	w.u32(2)
	w.count(1)
	w.count(size)
	w.u32(24) // int8
	w.u64(uint64(off))
}

func (w *ggufWriter) pad(align int) { w.out = append(w.out, make([]byte, -len(w.out)&(align-1))...) }

// ggufFile returns a file with the given tensors and the length of its header.
func ggufFile(order byteOrder, version uint32, tensors ...[]byte) (file []byte, header int) {
	w := &ggufWriter{order: order, version: version}
	w.begin(len(tensors))
	off := 0
	for i, data := range tensors {
		w.info("blk."+string(rune('a'+i)), len(data), off)
		off += (len(data) + 63) &^ 63
	}
	w.pad(64)
	header = len(w.out)
	for _, data := range tensors {
		w.out = append(w.out, data...)
		w.pad(64)
	}
	return w.out, header
}

func TestGGUFIsCutAtTensors(t *testing.T) {
	tensors := [][]byte{randomBytes(1, 20000), randomBytes(2, 100), randomBytes(3, 200), randomBytes(4, MaxChunk+17)}
	for _, tc := range []struct {
		name    string
		order   byteOrder
		version uint32
	}{
		{"version 1", binary.LittleEndian, 1}, {"version 2", binary.LittleEndian, 2}, {"version 3", binary.LittleEndian, 3},
		{"version 3, big-endian", binary.BigEndian, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file, header := ggufFile(tc.order, tc.version, tensors...)
			for _, name := range []string{"m.gguf", "sha256-0a1b"} {
				m := cutFile(t, name, file)
				// 20000 and 100 are padded to multiples of 64; the two small ones are a run.
				want := []uint32{uint32(header), 20032, 128 + 256, MaxChunk, 64}
				if got := lengths(m); !slices.Equal(got, want) {
					t.Errorf("%s: chunks of %d bytes, want %d", name, got, want)
				}
			}
		})
	}
}

func TestBrokenGGUFIsToldApart(t *testing.T) {
	tensors := [][]byte{randomBytes(1, 20000), randomBytes(2, 30000)}
	good, header := ggufFile(binary.LittleEndian, 3, tensors...)
	vocabulary, _ := ggufFile(binary.LittleEndian, 3)
	edit := func(tensor int, change func(w *ggufWriter)) []byte {
		w := &ggufWriter{order: binary.LittleEndian, version: 3}
		w.begin(tensor)
		change(w)
		w.pad(64)
		return append(w.out, make([]byte, 50000)...)
	}
	patched := func(at int, b ...byte) []byte {
		out := bytes.Clone(good)
		copy(out[at:], b)
		return out
	}
	huge := bytes.Repeat([]byte{0xff}, 8)
	for _, tc := range []struct {
		name, file string
		data       []byte
		want       string // part of the error, "" for none
	}{
		{"the whole file", "m.gguf", good, ""},
		{"only a vocabulary", "m.gguf", vocabulary, ""},
		{"a later version", "m.gguf", patched(4, 9), ""},
		{"other bytes by another name", "m.bin", []byte("GGU"), ""},
		{"no magic", "m.gguf", []byte("<html>not found</html>"), `begins with "<htm"`},
		{"empty", "m.gguf", nil, "ends within its header"},
		{"cut in the header", "m.bin", good[:100], "it is truncated"},
		{"cut before the data", "m.gguf", good[:header], "it is truncated"},
		{"cut in the last tensor", "m.gguf", good[:len(good)-100], `tensor "blk.b" ends at byte 50032 of the data, the file has 49948`},
		{"more tensors than there are", "m.gguf", patched(8, huge...), "truncated"},
		{"more keys than there are", "m.gguf", patched(16, huge...), ""},
		{"offset behind the end", "m.gguf", edit(1, func(w *ggufWriter) { w.info("far", 10, 1<<40) }), `tensor "far" at byte 1099511627776`},
		{"length behind the end", "m.gguf", edit(1, func(w *ggufWriter) { w.info("long", 1<<62, 0) }), `tensor "long"`},
		{"overlap", "m.gguf", edit(2, func(w *ggufWriter) { w.info("a", 100, 0); w.info("b", 100, 64) }), `tensors "a" and "b" overlap`},
		{"too many elements", "m.gguf", edit(1, func(w *ggufWriter) {
			w.text("square")
			w.u32(2)
			w.u64(1 << 40)
			w.u64(1 << 40)
			w.u32(0)
			w.u64(0)
		}), `tensor "square" has more elements`},
		{"many dimensions", "m.gguf", edit(1, func(w *ggufWriter) { w.text("cube"); w.u32(1 << 30) }), `tensor "cube" has 1073741824 dimensions`},
		{"unknown type of tensor", "m.gguf", edit(1, func(w *ggufWriter) { w.text("new"); w.u32(1); w.u64(10); w.u32(77); w.u64(0) }), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := cutAll(tc.file, tc.data)
			if tc.name == "more keys than there are" { // what follows is read as keys: any fault will do
				tc.want = "GGUF"
			}
			checkFormat(t, err, tc.want)
		})
	}
}
