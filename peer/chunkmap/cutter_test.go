package chunkmap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/zeebo/blake3"
	"github.com/zeebo/xxh3"
)

// cutAll cuts a blob that is one file.
func cutAll(name string, data []byte) (*Map, error) {
	c := NewCutter()
	c.BeginFile(name, int64(len(data)))
	_, _ = c.Write(data)
	err := c.EndFile()
	return c.Map(digest.FromBytes(data)), err
}

func cutFile(t testing.TB, name string, data []byte) *Map {
	t.Helper()
	m, err := cutAll(name, data)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func checkFormat(t *testing.T, err error, want string) {
	t.Helper()
	format, ok := errors.AsType[*FormatError](err)
	switch {
	case want == "" && err != nil:
		t.Errorf("an error: %v", err)
	case want != "" && (!ok || !errors.Is(err, ErrFormat) || !strings.Contains(format.Error(), want)):
		t.Errorf("error %v, want one with %q", err, want)
	}
}

// checkMap checks a map against the bytes it describes.
func checkMap(t *testing.T, m *Map, data []byte) {
	t.Helper()
	if m.Size != int64(len(data)) || !slices.Equal(m.Groups, append([]piece.Digest(nil), piece.HashGroups(data)...)) {
		t.Fatalf("%d bytes and %d groups of %d bytes", m.Size, len(m.Groups), len(data))
	}
	for i, c := range m.Chunks {
		if c.Length == 0 || c.Length > MaxChunk || int(c.Length) > len(data) {
			t.Fatalf("chunk %d has %d bytes", i, c.Length)
		}
		if c.ID != xxh3.Hash128(data[:c.Length]).Bytes() {
			t.Fatalf("chunk %d: ID of other bytes", i)
		}
		data = data[c.Length:]
	}
	if len(data) > 0 {
		t.Fatalf("%d bytes are in no chunk", len(data))
	}
}

// contentCuts is the rule of content-defined chunks word by word, for a blob's first bytes.
func contentCuts(data []byte) []uint32 {
	var out []uint32
	for len(data) > 0 {
		n, h := 0, uint64(0)
		for n < len(data) && n < 256<<10 {
			word := blake3.Sum256(append([]byte("shoal chunkmap gear"), data[n]))
			h = 2*h + binary.LittleEndian.Uint64(word[:])
			n++
			if n >= 16<<10 && n < 64<<10 && h < 1<<46 || n >= 64<<10 && h < 1<<50 {
				break
			}
		}
		out = append(out, uint32(n))
		data = data[n:]
	}
	return out
}

func TestOpaqueBytesAreCutByContent(t *testing.T) {
	data := append(randomBytes(1, 2<<20), make([]byte, 600<<10)...) // zeros are cut at the greatest length
	want := contentCuts(data)
	if len(want) < 20 {
		t.Fatalf("no more than %d chunks", len(want))
	}
	c := NewCutter()
	_, _ = c.Write(data)
	m := c.Map(digest.FromBytes(data))
	checkMap(t, m, data)
	if diff := cmp.Diff(want, lengths(m)); diff != "" {
		t.Errorf("outside of files (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, lengths(cutFile(t, "pytorch_model.bin", data))); diff != "" {
		t.Errorf("in a file (-want +got):\n%s", diff)
	}
}

func TestMeanGrowsWithTheOffset(t *testing.T) {
	g := newGear()
	for _, tc := range []struct {
		offset            int64
		least, mean, most int
		bar               uint64
	}{
		{0, 16 << 10, 64 << 10, 256 << 10, 1 << 48},
		{4<<30 - 1, 16 << 10, 64 << 10, 256 << 10, 1 << 48},
		{4 << 30, 32 << 10, 128 << 10, 512 << 10, 1 << 47},
		{16<<30 - 1, 64 << 10, 256 << 10, 1 << 20, 1 << 46},
		{32 << 30, 256 << 10, 1 << 20, 4 << 20, 1 << 44},
		{64 << 30, 512 << 10, 2 << 20, 4 << 20, 1 << 43},
		{1 << 60, 512 << 10, 2 << 20, 4 << 20, 1 << 43},
	} {
		g.begin(tc.offset)
		if g.least != tc.least || g.mean != tc.mean || g.most != tc.most || g.bar != tc.bar {
			t.Errorf("at %d: least %d, mean %d, most %d, bar %x", tc.offset, g.least, g.mean, g.most, g.bar)
		}
	}
}

func TestSafetensorsAreCutAtTensors(t *testing.T) {
	for _, tc := range []struct {
		name  string
		sizes []int
		want  []uint32 // behind the header
	}{
		{"in order", []int{20000, 30000}, []uint32{20000, 30000}},
		{"long ones every 4 MiB from their start", []int{20000, 2*MaxChunk + 7, 20000}, []uint32{20000, MaxChunk, MaxChunk, 7, 20000}},
		{"small neighbours together", []int{20000, 1000, 2000, 0, 3000, 20000}, []uint32{20000, 6000, 20000}},
		{"a small one alone", []int{1000, 20000, 16383, 16384}, []uint32{1000, 20000, 16383, 16384}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tensors := map[string][]byte{}
			for i, n := range tc.sizes {
				tensors[string(rune('a'+i))] = randomBytes(uint64(i), n)
			}
			data := safetensorsFile(t, tensors)
			m := cutFile(t, "model.safetensors", data)
			checkMap(t, m, data)
			want := append([]uint32{uint32(8 + binary.LittleEndian.Uint64(data))}, tc.want...)
			if diff := cmp.Diff(want, lengths(m)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestLongRunsOfSmallTensorsAreCutByContent(t *testing.T) {
	tensors := map[string][]byte{}
	for i := range 200 {
		tensors[string(rune('a'+i))] = randomBytes(uint64(i), 4096)
	}
	data := safetensorsFile(t, tensors)
	head := int(8 + binary.LittleEndian.Uint64(data))
	got := lengths(cutFile(t, "model.safetensors", data))
	if diff := cmp.Diff(append([]uint32{uint32(head)}, contentCuts(data[head:])...), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFilesAreCutOffUnlessSmall(t *testing.T) {
	c := NewCutter()
	total := 0
	for _, f := range []struct{ before, size int }{{512, minPart}, {1024, minPart - 1}, {512, 20000}, {1500, 0}} {
		_, _ = c.Write(make([]byte, f.before))
		c.BeginFile("m.onnx", int64(f.size))
		_, _ = c.Write(randomBytes(9, f.size))
		if err := c.EndFile(); err != nil {
			t.Fatal(err)
		}
		total += f.before + f.size
	}
	if c.Size() != int64(total) {
		t.Errorf("size %d, want %d", c.Size(), total)
	}
	m := c.Map(digest.FromString("x"))
	if diff := cmp.Diff([]uint32{512, minPart, 1024 + minPart - 1 + 512, 20000, 1500}, lengths(m)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBrokenSafetensorsAreToldApart(t *testing.T) {
	entry := func(name string, off, end string) string {
		return `"` + name + `":{"dtype":"T","shape":[1],"data_offsets":[` + off + "," + end + "]}"
	}
	shaped := func(kind, shape string) []byte {
		return append(rawSafetensors(`{"a":{"dtype":"`+kind+`","shape":`+shape+`,"data_offsets":[0,16]}}`), make([]byte, 16)...)
	}
	with := func(head string, data int) []byte { return append(rawSafetensors("{"+head+"}"), make([]byte, data)...) }
	for _, tc := range []struct {
		name string
		data []byte
		want string
	}{
		{"the whole file", with(entry("a", "0", "100")+","+entry("b", "100", "100")+`,"__metadata__":{"format":"pt"}`, 100), ""},
		{"spaces behind the header", append(rawSafetensors("{"+entry("a", "0", "1")+"}   "), 1), ""},
		{"no tensors", with("", 0), ""},
		{"empty", nil, "ends within its header"},
		{"seven bytes", make([]byte, 7), "ends within its header"},
		{"zeros", make([]byte, 100), "header is empty"},
		{"text", []byte("<!DOCTYPE html><html>"), "truncated or no safetensors file"},
		{"cut in the header", with(entry("a", "0", "100"), 100)[:30], "promises a header of 54 bytes, the file has 30"},
		{"cut in the data", with(entry("a", "0", "5000"), 300), "the header promises 5000 bytes of tensors, the file has 300: it is truncated"},
		{"longer than its tensors", with(entry("a", "0", "100"), 101), "1 bytes behind the last tensor"},
		{"no JSON", append(rawSafetensors("hello there"), 0), "no JSON object"},
		{"a list", append(rawSafetensors("[1, 2]"), 0), "no JSON object"},
		{"JSON that ends early", append(rawSafetensors(`{"a":`), 0), "its header is not that of a safetensors file"},
		{"two objects", append(rawSafetensors("{} {}"), 0), "more behind the JSON object"},
		{"no offsets", with(`"a":{}`, 0), `tensor "a" has no two data_offsets`},
		{"three offsets", with(`"a":{"data_offsets":[1,2,3]}`, 3), `tensor "a" has no two data_offsets`},
		{"offsets that are no integers", with(entry("a", "0", "1.5"), 2), `tensor "a"`},
		{"huge offset", with(entry("a", "0", "9223372036854775807"), 2), "it is truncated"},
		{"offset beyond 64 bits", with(entry("a", "0", "99999999999999999999"), 2), `tensor "a"`},
		{"negative offset", with(entry("a", "-1", "2"), 2), `tensor "a" has the range [-1, 2)`},
		{"end before start", with(entry("a", "2", "0"), 2), `tensor "a" has the range [2, 0)`},
		{"overlap", with(entry("b", "50", "120")+","+entry("a", "0", "100"), 120), `tensors "a" and "b" overlap`},
		{"hole", with(entry("a", "0", "50")+","+entry("b", "60", "120"), 120), `hole of 10 bytes before tensor "b"`},
		{"a shape", shaped("BF16", "[2,4]"), ""},
		{"a shape of another size", shaped("F32", "[2,4]"), `tensor "a" of type F32 and shape [2 4] has 16 bytes, not 32`},
		{"a shape that no file can hold", shaped("F32", "[4611686018427387904,4611686018427387904]"), "which no file can hold"},
		{"a shape below zero", shaped("NOPE", "[-3]"), `tensor "a" has the shape [-3]`},
		{"a type of later days", shaped("F4", "[32]"), ""},
		{"a pointer of Git LFS", []byte("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"), "run git lfs pull"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := cutAll("dir/model.safetensors", tc.data)
			checkFormat(t, err, tc.want)
			checkMap(t, m, tc.data)
		})
	}
}

func TestPointersAreFoundUnderAnyName(t *testing.T) {
	_, err := cutAll("pytorch_model.bin", []byte("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"))
	checkFormat(t, err, "pytorch_model.bin: Git LFS: a pointer")
	_, err = cutAll("README.md", []byte("version https://git-lfs.github.com/spec/v1 is a pointer's first line\n"))
	checkFormat(t, err, "")
}

// A broken file is found again like any other bytes.
func TestBrokenFilesAreCutByContent(t *testing.T) {
	data := safetensorsFile(t, map[string][]byte{"a": randomBytes(1, 1<<20), "b": randomBytes(2, 1<<20)})
	data = data[:len(data)-1]
	m, err := cutAll("model.safetensors", data)
	checkFormat(t, err, "truncated")
	if diff := cmp.Diff(contentCuts(data), lengths(m)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLengthsThatLieTakeNoMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, f := range []struct {
		name string
		data []byte
	}{
		{"m.safetensors", append(binary.LittleEndian.AppendUint64(nil, maxHeader), '{')},
		{"m.gguf", append(binary.LittleEndian.AppendUint32([]byte(ggufMagic), 3), bytes.Repeat([]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0}, 3)...)},
	} {
		c := NewCutter()
		c.BeginFile(f.name, 1<<40)
		_, _ = c.Write(f.data)
		checkFormat(t, c.EndFile(), "ends within its header")
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
		t.Errorf("%d bytes were allocated", grown)
	}
}

// Outside of what is bounded, a file is opaque and not broken.
func TestHeadersBeyondTheBoundAreNoFault(t *testing.T) {
	head := make([]byte, maxHeader+1)
	for i := range head {
		head[i] = ' '
	}
	copy(head, "{}")
	_, err := cutAll("m.safetensors", rawSafetensors(string(head)))
	checkFormat(t, err, "")
	raw := binary.LittleEndian.AppendUint64(nil, 100_000_001)
	c := NewCutter()
	c.BeginFile("m.safetensors", 1<<40)
	_, _ = c.Write(raw)
	checkFormat(t, c.EndFile(), "longer than readers accept")
}

// allKinds writes a blob with files of all kinds, in writes of the sizes that next returns.
func allKinds(t testing.TB, next func() int) *Map {
	t.Helper()
	gguf, _ := ggufFile(binary.LittleEndian, 3, randomBytes(11, 100_000), randomBytes(12, 5000), randomBytes(13, 6000), randomBytes(14, 5<<20))
	weights := safetensorsFile(t, map[string][]byte{
		"a": randomBytes(21, 4<<20+5), "b": randomBytes(22, 300), "c": randomBytes(23, 9000), "d": randomBytes(24, 700_000),
	})
	c, blob := NewCutter(), digest.FromString("all kinds")
	write := func(p []byte) {
		for len(p) > 0 {
			n := min(len(p), next())
			_, _ = c.Write(p[:n])
			p = p[n:]
		}
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{"config.json", []byte(`{"a": 1}`)}, {"model.safetensors", weights}, {"model.gguf", gguf},
		{"small.safetensors", safetensorsFile(t, map[string][]byte{"x": randomBytes(31, 900)})},
		{"broken.safetensors", weights[:len(weights)-9]}, {"broken.gguf", gguf[:len(gguf)-9]}, {"pytorch_model.bin", randomBytes(32, 1<<20)},
	} {
		write(make([]byte, 512))
		c.BeginFile(f.name, int64(len(f.data)))
		write(f.data)
		if err := c.EndFile(); (err != nil) != strings.HasPrefix(f.name, "broken") {
			t.Errorf("%s: %v", f.name, err)
		}
	}
	write(randomBytes(33, 500_000))
	return c.Map(blob)
}

func TestCutterDoesNotDependOnHowTheBytesArrive(t *testing.T) {
	want := allKinds(t, func() int { return 1 << 30 })
	for seed, most := range []int{3000, 70_000, 300_000, 2 << 20} {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		if diff := cmp.Diff(want, allKinds(t, func() int { return 1 + r.IntN(most) })); diff != "" {
			t.Errorf("writes of up to %d bytes (-at once +in parts):\n%s", most, diff)
		}
	}
}

// Whoever changes the rules loses what all blobs cut before share with those cut after.
func TestCuttingIsStable(t *testing.T) {
	m := allKinds(t, func() int { return 1 << 30 })
	if got := digest.FromBytes(m.Encode()).Encoded(); got != "80ff981c52746afcf28fd234781fa7001c74229cc145cdb436bc2abdcde179a7" {
		t.Errorf("the map of the same bytes is another: %s, chunks %d", got, lengths(m))
	}
}

// A map that no reader takes would make the image unreadable.
func TestMapsThatGrowTooLargeLoseTheirChunks(t *testing.T) {
	for chunks, kept := range map[int]bool{3_300_000: true, 3_400_000: false} {
		c := NewCutter()
		c.chunks.list = make([]Chunk, chunks)
		if m := c.Map(digest.FromString("x")); (len(m.Chunks) > 0) != kept {
			t.Errorf("%d chunks: %d were kept", chunks, len(m.Chunks))
		}
	}
}

func FuzzCutter(f *testing.F) {
	gguf, header := ggufFile(binary.BigEndian, 3, randomBytes(1, 20000), randomBytes(2, 10))
	small, _ := ggufFile(binary.LittleEndian, 1, nil)
	weights := safetensorsFile(f, map[string][]byte{"a": randomBytes(1, 20000), "b": nil, "c": randomBytes(2, 9)})
	f.Add(uint8(0), weights, uint32(0), uint16(1000), int64(0))
	f.Add(uint8(0), weights[:len(weights)-20009], uint32(20009), uint16(1), int64(0))
	f.Add(uint8(1), gguf, uint32(0), uint16(77), int64(0))
	f.Add(uint8(1), gguf[:header], uint32(250_000), uint16(777), int64(0))
	f.Add(uint8(2), small, uint32(3), uint16(1), int64(0))
	f.Add(uint8(1), gguf[:300], uint32(0), uint16(5), int64(1<<40))
	f.Add(uint8(2), []byte(nil), uint32(299_000), uint16(60_000), int64(-5))
	tail := randomBytes(3, 300<<10)
	f.Fuzz(func(t *testing.T, kind uint8, data []byte, more uint32, write uint16, off int64) {
		name := []string{"a.safetensors", "a.gguf", "a.bin"}[kind%3]
		data = append(data[:len(data):len(data)], tail[:int(more)%len(tail)]...)
		size := int64(len(data)) + off // a caller may be wrong about it
		cut := func(step int) (*Map, error) {
			c := NewCutter()
			_, _ = c.Write([]byte("before"))
			c.BeginFile(name, size)
			for rest := data; len(rest) > 0; {
				n := min(len(rest), step)
				_, _ = c.Write(rest[:n])
				rest = rest[n:]
			}
			err := c.EndFile()
			_, _ = c.Write([]byte("behind"))
			return c.Map(digest.FromString("x")), err
		}
		m, err := cut(1 << 30)
		checkMap(t, m, slices.Concat([]byte("before"), data, []byte("behind")))
		again, errAgain := cut(1 + int(write))
		if !m.Equal(again) || (err == nil) != (errAgain == nil) || err != nil && err.Error() != errAgain.Error() {
			t.Fatalf("writes of %d bytes: another map or error: %v, %v", write, err, errAgain)
		}
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Fatalf("error without a class: %v", err)
		}
	})
}
