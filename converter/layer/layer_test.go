package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/zeebo/blake3"
)

const chunkSize = 8192

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testConfig() Config {
	return Config{ChunkSize: chunkSize, Table: func(offset int64, chunks iter.Seq[Chunk]) []byte {
		var out []byte
		for c := range chunks {
			out = binary.LittleEndian.AppendUint64(out, uint64(c.Offset))
		}
		return append(out, fmt.Sprintf("table at %d", offset)...)
	}}
}

func fileEntry(name string, data []byte) Entry {
	return Entry{Name: name, Size: int64(len(data)), Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data[offset:])), nil
	}}
}

func noise(seed uint64, n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(out)
	return out
}

func write(ctx context.Context, out io.Writer, entries []Entry) (*Layer, error) {
	w := NewWriter(out, testConfig())
	for i := range entries {
		if err := w.Add(ctx, &entries[i], nil); err != nil {
			return nil, err
		}
	}
	return w.Finish()
}

func build(t testing.TB, entries []Entry) (*Layer, []byte) {
	t.Helper()
	var out bytes.Buffer
	l, err := write(t.Context(), &out, entries)
	check(t, err)
	r, err := l.Open(t.Context(), 0)
	check(t, err)
	defer r.Close()
	again, err := io.ReadAll(r)
	check(t, err)
	if !bytes.Equal(out.Bytes(), again) {
		t.Fatal("the second reading has other bytes")
	}
	return l, again
}

func sampleEntries() []Entry {
	run := fileEntry("models/m/run", []byte("x"))
	run.Executable = true
	return []Entry{
		{Name: "models", Kind: Dir}, {Name: "models/m", Kind: Dir},
		fileEntry("models/m/a", noise(1, 3*chunkSize+5)), fileEntry("models/m/empty", nil),
		{Name: "models/m/link", Kind: Symlink, Link: "a"}, run,
		fileEntry("models/m/"+strings.Repeat("n", 200)+"ä", noise(2, 4096)),
		fileEntry("models/m/z", noise(3, 300_000)),
	}
}

func TestLayerIsATarWhoseFilesLieOn4KiB(t *testing.T) {
	entries := sampleEntries()
	l, raw := build(t, entries)
	if got := digest.FromBytes(raw); got != l.Digest || int64(len(raw)) != l.Size {
		t.Fatalf("%d bytes %s, Build said %d %s", len(raw), got, l.Size, l.Digest)
	}
	check(t, l.Map.Verify(0, raw))
	if l.Map.Blob != l.Digest || l.Map.Size != l.Size {
		t.Errorf("chunk map of %s, %d bytes", l.Map.Blob, l.Map.Size)
	}
	if l.TarSize%Align != 0 || !strings.HasSuffix(string(raw), fmt.Sprintf("table at %d", l.TarSize)) {
		t.Errorf("table at %d", l.TarSize)
	}
	src := bytes.NewReader(raw)
	tr := tar.NewReader(src)
	for i := range entries {
		e := &entries[i]
		hdr, err := tr.Next()
		check(t, err)
		if strings.TrimSuffix(hdr.Name, "/") != e.Name || hdr.Mode != e.Mode() || hdr.Uid != 0 || hdr.ModTime.Unix() != 0 || hdr.Linkname != e.Link {
			t.Errorf("entry %d: %+v", i, hdr)
		}
		if off := src.Size() - int64(src.Len()); e.Size > 0 && off%Align != 0 {
			t.Errorf("%s begins at %d", e.Name, off)
		}
		got, err := io.ReadAll(tr)
		check(t, err)
		if e.Kind != File {
			continue
		}
		r, err := e.Open(t.Context(), 0)
		check(t, err)
		want, err := io.ReadAll(r)
		check(t, err)
		if !bytes.Equal(want, got) {
			t.Errorf("%s: other bytes", e.Name)
		}
	}
	if _, err := tr.Next(); err != io.EOF {
		t.Errorf("after the last entry: %v", err)
	}
}

func TestChunksAreTheContentOfEveryFile(t *testing.T) {
	entries := sampleEntries()
	l, raw := build(t, entries)
	got := make([][]byte, len(entries))
	for c := range l.Chunks() {
		data := raw[c.Offset : c.Offset+int64(c.Size)]
		if c.FileOffset != int64(len(got[c.Entry])) || c.Digest != blake3.Sum256(data) {
			t.Errorf("%s: chunk at %d with digest %x", entries[c.Entry].Name, c.FileOffset, c.Digest)
		}
		got[c.Entry] = append(got[c.Entry], data...)
	}
	for i := range entries {
		var want []byte
		if e := &entries[i]; e.Kind == File {
			r, _ := e.Open(t.Context(), 0)
			want, _ = io.ReadAll(r)
		}
		if !bytes.Equal(want, got[i]) {
			t.Errorf("%s: other bytes", entries[i].Name)
		}
	}
}

func TestFileIsOneRunOfChunksOfTheMap(t *testing.T) {
	data := noise(7, 100_000)
	one, _ := build(t, []Entry{fileEntry("a", data)})
	two, _ := build(t, []Entry{fileEntry("other", noise(8, 5000)), fileEntry("renamed", data)})
	seen := map[chunkmap.ID]bool{}
	for _, c := range one.Map.Chunks {
		seen[c.ID] = true
	}
	shared := int64(0)
	for _, c := range two.Map.Chunks {
		if seen[c.ID] {
			shared += int64(c.Length)
		}
	}
	if shared < int64(len(data)) {
		t.Errorf("%d of %d bytes were found again", shared, len(data))
	}
}

func TestTarReadsTheLayer(t *testing.T) {
	path, err := exec.LookPath("tar")
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") == "1" {
			t.Fatal("tar is missing and REQUIRE_TOOLS=1")
		}
		t.Skip("SKIPPED: tar is missing; install it to run this test")
	}
	_, raw := build(t, sampleEntries())
	cmd := exec.Command(path, "-tf", "-")
	cmd.Stdin = bytes.NewReader(raw)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "\n") != len(sampleEntries()) {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestLayerWithoutDataHasNoTable(t *testing.T) {
	l, raw := build(t, []Entry{{Name: "d", Kind: Dir}, fileEntry("d/empty", nil)})
	if l.ChunkCount() != 0 || int64(len(raw)) != l.TarSize {
		t.Errorf("%d chunks, %d bytes, tar %d", l.ChunkCount(), len(raw), l.TarSize)
	}
}

// flaky is a file whose content differs in each pass.
func flaky(passes ...[]byte) Entry {
	n := 0
	return Entry{Name: "weights", Size: int64(len(passes[0])), Open: func(context.Context, int64) (io.ReadCloser, error) {
		data := passes[min(n, len(passes)-1)]
		n++
		if data == nil {
			return nil, &fs.PathError{Op: "open", Path: "weights", Err: fs.ErrNotExist}
		}
		return io.NopCloser(iotest.HalfReader(bytes.NewReader(data))), nil
	}}
}

func TestChangedFilesAreNamed(t *testing.T) {
	data := noise(4, 1<<20)
	other := bytes.Clone(data)
	other[len(other)-1] ^= 1
	for _, tc := range []struct {
		name   string
		second []byte
		want   error
	}{
		{"a bit", other, ErrChanged},
		{"shorter", data[:len(data)-1], ErrChanged},
		{"longer", append(bytes.Clone(data), 0), ErrChanged},
		{"gone", nil, os.ErrNotExist},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := write(t.Context(), io.Discard, []Entry{flaky(data, tc.second)})
			check(t, err)
			r, err := l.Open(t.Context(), 0)
			check(t, err)
			_, err = io.Copy(io.Discard, r)
			if !errors.Is(err, tc.want) || strings.Count(fmt.Sprint(err), "weights") != 1 {
				t.Errorf("second pass: want %v of weights, got %v", tc.want, err)
			}
			if _, again := r.Read(make([]byte, 1)); again == nil {
				t.Error("the reader goes on after its error")
			}
			check(t, r.Close())
			if tc.name == "a bit" {
				return // the first pass cannot know
			}
			e := flaky(tc.second)
			e.Size = int64(len(data))
			if _, err := write(t.Context(), io.Discard, []Entry{e}); !errors.Is(err, tc.want) || strings.Count(fmt.Sprint(err), "weights") != 1 {
				t.Errorf("first pass: want %v of weights, got %v", tc.want, err)
			}
		})
	}
}

// A connection that was cut is no file that was changed, whatever it wraps.
func TestCutConnectionIsNoChangedFile(t *testing.T) {
	cut := fmt.Errorf("weights: its connection was cut: %w", io.ErrUnexpectedEOF)
	e := Entry{Name: "models/weights", Size: 1 << 20, Open: func(context.Context, int64) (io.ReadCloser, error) {
		return io.NopCloser(iotest.ErrReader(cut)), nil
	}}
	if _, err := write(t.Context(), io.Discard, []Entry{e}); fmt.Sprint(err) != cut.Error() {
		t.Errorf("want %v, got %v", cut, err)
	}
}

func TestBuildEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := write(ctx, io.Discard, []Entry{fileEntry("a", noise(1, 10*chunkSize))}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestReaderMayBeClosedAnywhere(t *testing.T) {
	l, raw := build(t, sampleEntries())
	for _, n := range []int64{0, 1, 4096, 9000, int64(len(raw))} {
		r, err := l.Open(t.Context(), 0)
		check(t, err)
		_, err = io.CopyN(io.Discard, r, n)
		check(t, err)
		check(t, r.Close())
		if _, err := r.Read(make([]byte, 1)); err == nil {
			t.Error("read after Close")
		}
	}
}

func FuzzContentIsAlwaysAligned(f *testing.F) {
	f.Add("a", "b", uint16(1), uint16(5000))
	f.Fuzz(func(t *testing.T, one, two string, n, m uint16) {
		entries := []Entry{fileEntry(one, noise(1, int(n))), fileEntry(two, noise(2, int(m)))}
		var raw bytes.Buffer
		l, err := write(t.Context(), &raw, entries)
		if err != nil {
			return // a name tar cannot hold
		}
		for c := range l.Chunks() {
			if c.FileOffset == 0 && c.Offset%Align != 0 {
				t.Fatalf("%q at %d", entries[c.Entry].Name, c.Offset)
			}
		}
		if diff := cmp.Diff(l.Digest, digest.FromBytes(raw.Bytes())); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestLayerHoldsNoHeaders(t *testing.T) {
	const files = 4000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	w := NewWriter(io.Discard, testConfig())
	for i := range files {
		check(t, w.Add(t.Context(), &Entry{Name: fmt.Sprintf("models/m/file-%d", i), Size: 1}, strings.NewReader("x")))
	}
	l, err := w.Finish()
	check(t, err)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if per := int64(after.HeapAlloc-before.HeapAlloc) / files; per > 300 {
		t.Errorf("%d bytes a file are held", per)
	}
	runtime.KeepAlive(l)
}

func TestReadingBeginsAnywhere(t *testing.T) {
	l, raw := build(t, sampleEntries())
	for _, offset := range []int64{0, 1, 511, 4096, 4097, 262143, 262144, 262145, int64(len(raw)) - 1, int64(len(raw))} {
		r, err := l.Open(t.Context(), offset)
		check(t, err)
		got, err := io.ReadAll(r)
		check(t, err)
		if !bytes.Equal(raw[offset:], got) {
			t.Errorf("from %d: other bytes", offset)
		}
		check(t, r.Close())
	}
	if _, err := l.Open(t.Context(), int64(len(raw))+1); err == nil {
		t.Error("behind the end")
	}
}

func TestContentThatIsReadOnceMakesTheSameLayer(t *testing.T) {
	entries := sampleEntries()
	want, _ := build(t, entries)
	w := NewWriter(io.Discard, testConfig())
	for _, e := range entries {
		var content io.Reader
		if e.Kind == File {
			r, err := e.Open(t.Context(), 0)
			check(t, err)
			content = iotest.OneByteReader(r)
			e.Open = nil
		}
		check(t, w.Add(t.Context(), &e, content))
	}
	got, err := w.Finish()
	check(t, err)
	if diff := cmp.Diff(want.Digest, got.Digest); diff != "" {
		t.Error(diff)
	}
}

func TestFaultOfTheOutputEndsTheLayer(t *testing.T) {
	full := errors.New("no space")
	_, err := write(t.Context(), &limitedWriter{left: 100_000, err: full}, sampleEntries())
	if !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

type limitedWriter struct {
	left int
	err  error
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, w.err
	}
	return len(p), nil
}

func TestEmptyModelFilesAreBroken(t *testing.T) {
	for name, broken := range map[string]bool{"model.safetensors": true, "a.gguf": true, "config.json": false} {
		for _, anyFormat := range []bool{false, true} {
			w := NewWriter(io.Discard, Config{ChunkSize: 4096, Table: func(int64, iter.Seq[Chunk]) []byte { return nil }, AnyFormat: anyFormat})
			err := w.Add(t.Context(), &Entry{Name: name}, nil)
			if (err != nil) != (broken && !anyFormat) {
				t.Errorf("%s, any format %v: %v", name, anyFormat, err)
			}
		}
	}
}
