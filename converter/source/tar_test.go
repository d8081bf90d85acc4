package source

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// entry is a tar header and its content.
type entry struct {
	tar.Header
	data string
}

func regular(name, data string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, data}
}

func symlink(name, to string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}, ""}
}

func folder(name string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, ""}
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		e.Size = int64(len(e.data))
		check(t, w.WriteHeader(&e.Header))
		_, err := w.Write([]byte(e.data))
		check(t, err)
	}
	check(t, w.Close())
	return out.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(data)
	check(t, err)
	check(t, w.Close())
	return out.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	check(t, err)
	return w.EncodeAll(data, nil)
}

// readAll returns what a model holds: "path=content", "path -> link", "path/".
func readAll(t testing.TB, m *Model) ([]string, error) {
	t.Helper()
	var got []string
	err := m.Each(t.Context(), func(f *File, content io.Reader) error {
		switch {
		case f.Mode.IsDir():
			got = append(got, f.Path+"/")
		case f.Link != "":
			got = append(got, f.Path+" -> "+f.Link)
		default:
			data, err := io.ReadAll(content)
			if err != nil {
				return err
			}
			if int64(len(data)) != f.Size {
				return fmt.Errorf("%s: %d bytes, the size is %d", f.Path, len(data), f.Size)
			}
			got = append(got, f.Path+"="+string(data))
		}
		return nil
	})
	return got, err
}

func readTarModel(t testing.TB, raw []byte, cfg Config) ([]string, error) {
	t.Helper()
	cfg.Stdin = bytes.NewReader(raw)
	m, err := Open(t.Context(), "-", cfg)
	check(t, err)
	return readAll(t, m)
}

func TestTarIsReadHoweverItIsCompressed(t *testing.T) {
	raw := tarOf(t, folder("./"), folder("./sub/"), regular("./sub/a", "1"), regular("b", ""), symlink("l", "sub/a"), folder("none"))
	want := []string{"sub/a=1", "b=", "l -> sub/a", "none/"}
	if got, err := readTarModel(t, tarOf(t, regular("GGUF", "1"), regular("PK\x03\x04", "2")), Config{}); err != nil || len(got) != 2 {
		t.Errorf("names like other formats: %v", err)
	}
	for name, data := range map[string][]byte{"plain": raw, "gzip": gzipped(t, raw), "zstd": zstded(t, raw)} {
		got, err := readTarModel(t, data, Config{})
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		dir := t.TempDir()
		write(t, dir+"/llama.v2.tar.gz", string(data), 0o600)
		m, err := Open(t.Context(), dir+"/llama.v2.tar.gz", Config{})
		check(t, err)
		for range 2 { // a local archive can be read again
			got, err = readAll(t, m)
			if diff := cmp.Diff(want, got); diff != "" || err != nil || m.Name != "llama.v2" {
				t.Errorf("%s, local: %v, %q (-want +got):\n%s", name, err, m.Name, diff)
			}
		}
	}
}

func TestStandardInputIsReadOnce(t *testing.T) {
	m, err := Open(t.Context(), "-", Config{Stdin: bytes.NewReader(tarOf(t, regular("a", "1")))})
	check(t, err)
	_, err = readAll(t, m)
	check(t, err)
	if _, err = readAll(t, m); err == nil || !strings.Contains(err.Error(), "already") || !m.Once {
		t.Errorf("got %v", err)
	}
}

func TestStandardInputThatFallsSilentEndsWithTheContext(t *testing.T) {
	raw := tarOf(t, regular("a", strings.Repeat("1", 1<<20)))
	for name, begin := range map[string][]byte{"before the first byte": nil, "within a file": raw[:700<<10]} {
		t.Run(name, func(t *testing.T) {
			r, w := io.Pipe()
			defer w.Close()
			m, err := Open(t.Context(), "-", Config{Stdin: r})
			check(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				ended <- m.Each(ctx, func(_ *File, content io.Reader) error {
					_, err := io.Copy(io.Discard, content)
					return err
				})
			}()
			_, err = w.Write(begin)
			check(t, err)
			cancel()
			select {
			case err := <-ended:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
			case <-time.After(20 * time.Second):
				t.Error("it still waits for standard input")
			}
		})
	}
}

func TestHostileTarsAreRefused(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, tc := range []struct {
		name    string
		entries []entry
		want    string
	}{
		{"parent", []entry{regular("../a", "1")}, "leads out"},
		{"hidden parent", []entry{regular("a/../../b", "1")}, "leads out"},
		{"absolute", []entry{regular("/etc/passwd", "1")}, "absolute"},
		{"not UTF-8", []entry{regular("a\xff", "1")}, "UTF-8"},
		{"NUL", []entry{{tar.Header{Name: "x", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"path": "a\x00b"}}, ""}}, "model"},
		{"long part", []entry{regular(long, "1")}, "255"},
		{"deep", []entry{regular(strings.Repeat("x/", 2500)+"y", "1")}, "4000"},
		{"whiteout", []entry{regular(".wh.a", "")}, "hides"},
		{"twice", []entry{regular("a", "1"), regular("./a", "2")}, "twice"},
		{"file and folder", []entry{regular("a", "1"), regular("a/b", "2")}, "both"},
		{"folder and file", []entry{regular("a/b", "1"), regular("a", "2")}, "both"},
		{"file and empty folder", []entry{regular("a", "1"), folder("a")}, "both"},
		{"below a link", []entry{regular("d/x", "1"), symlink("l", "d"), regular("l/x", "2")}, "below the symbolic link"},
		{"link out", []entry{regular("a", "1"), symlink("l", "../a")}, "leads out"},
		{"absolute link", []entry{regular("a", "1"), symlink("l", "/a")}, "absolute"},
		{"link to nothing", []entry{regular("a", "1"), symlink("l", "b")}, "not in the model"},
		{"links in a ring", []entry{regular("a", "1"), symlink("l", "m"), symlink("m", "l")}, "too many links"},
		{"link through links out", []entry{regular("d/e/a", "1"), symlink("l", "d/e/up"), symlink("d/e/up", "../.."), symlink("m", "l/../x")}, "out of the model"},
		{"link through a file", []entry{regular("a", "1"), symlink("l", "a/b")}, "no folder"},
		{"hard link", []entry{regular("a", "1"), {tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}, ""}}, "hard-dereference"},
		{"device", []entry{regular("a", "1"), {tar.Header{Name: "b", Typeflag: tar.TypeChar}, ""}}, "neither file"},
		{"fifo", []entry{regular("a", "1"), {tar.Header{Name: "b", Typeflag: tar.TypeFifo}, ""}}, "neither file"},
		{"nothing", nil, "no file"},
		{"folders only", []entry{folder("a")}, "no file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := readTarModel(t, tarWithNUL(t, tc.entries...), Config{})
			if !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("want ErrModel with %q, got %v", tc.want, err)
			}
		})
	}
}

// tarWithNUL writes PAX records that the library would not.
func tarWithNUL(t testing.TB, entries ...entry) []byte {
	if len(entries) != 1 || entries[0].PAXRecords == nil {
		return tarOf(t, entries...)
	}
	raw := tarOf(t, regular("aab", "1"), entry{tar.Header{Name: strings.Repeat("n", 120), Typeflag: tar.TypeReg, Format: tar.FormatPAX}, ""})
	return bytes.Replace(raw, []byte(strings.Repeat("n", 120)+"\n"), []byte(strings.Repeat("n", 60)+"\x00"+strings.Repeat("n", 59)+"\n"), 1)
}

func TestBrokenStreamsAreErrors(t *testing.T) {
	raw := tarOf(t, regular("a", strings.Repeat("0123456789abcdef", 1000)), regular("b", "22"))
	zipped := gzipped(t, raw)
	flipped := bytes.Clone(zipped)
	flipped[len(flipped)-6] ^= 1 // in the checksum
	for _, tc := range []struct {
		name  string
		data  []byte
		class error
		want  string
	}{
		{"empty", nil, ErrModel, "empty"},
		{"no tar", []byte(strings.Repeat("no tar at all ", 100)), ErrModel, "no tar archive"},
		{"cut in a file", raw[:5000], ErrModel, "cut off"},
		{"cut behind a file", raw[:512+16384-384], ErrModel, "cut off"},
		{"without its end", raw[:len(raw)-1024], ErrModel, "cut off"},
		{"cut gzip", zipped[:len(zipped)-20], ErrModel, "cut off"},
		{"cut zstd", zstded(t, raw)[:100], ErrModel, "cut off"},
		{"flipped gzip", flipped, ErrDigest, "checksum"},
		{"xz", []byte("\xfd7zXZ" + strings.Repeat("x", 1000)), ErrModel, "xz -dc"},
		{"zip", []byte("PK\x03\x04" + strings.Repeat("x", 1000)), ErrModel, ".zip"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := readTarModel(t, tc.data, Config{})
			if !errors.Is(err, tc.class) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("want %v with %q, got %v", tc.class, tc.want, err)
			}
		})
	}
}

func TestExpansionIsBounded(t *testing.T) {
	bomb := func() []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		w := tar.NewWriter(z)
		check(t, w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Size: freeBytes + 1<<20}))
		_, err := io.Copy(w, io.LimitReader(zeros{}, freeBytes+1<<20))
		check(t, err)
		check(t, errors.Join(w.Close(), z.Close()))
		return out.Bytes()
	}()
	skip := func(*File, io.Reader) error { return nil }
	read := func(cfg Config) error {
		cfg.Stdin = bytes.NewReader(bomb)
		m, err := Open(t.Context(), "-", cfg)
		check(t, err)
		return m.Each(t.Context(), skip)
	}
	if err := read(Config{}); !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), "200 times") {
		t.Errorf("ratio: %v", err)
	}
	if err := read(Config{MaxExpanded: 1 << 20}); !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), "limit") {
		t.Errorf("size: %v", err)
	}
	if err := read(Config{MaxRatio: -1}); err != nil {
		t.Errorf("allowed: %v", err)
	}
	if _, err := readTarModel(t, tarOf(t, regular("a", "1"), regular("b", "2"), regular("c", "3")), Config{MaxFiles: 2}); !errors.Is(err, ErrModel) {
		t.Errorf("names: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestTarsOfOtherToolsAreRead(t *testing.T) {
	tool, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("SKIPPED: tar is missing")
	}
	dir := t.TempDir()
	long := strings.Repeat("n", 255)
	write(t, dir+"/"+long, "long", 0o755)
	write(t, dir+"/d/small", "s", 0o600)
	check(t, os.Truncate(dir+"/d/small", 1))
	sparse, err := os.Create(dir + "/sparse")
	check(t, err)
	_, err = sparse.WriteAt([]byte("end"), 1<<20)
	check(t, errors.Join(err, sparse.Close()))
	for _, format := range []string{"--format=gnu", "--format=pax", "--format=gnu --sparse", "--format=pax --sparse"} {
		t.Run(format, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), tool, append(strings.Fields(format), "-C", dir, "-cf", "-", ".")...).Output()
			check(t, err)
			got, err := readTarModel(t, out, Config{})
			check(t, err)
			want := map[string]bool{long + "=long": true, "d/small=s": true, "sparse=" + strings.Repeat("\x00", 1<<20) + "end": true}
			for _, g := range got {
				delete(want, g)
			}
			if len(got) != 3 || len(want) != 0 {
				t.Errorf("got %d entries, %d are missing", len(got), len(want))
			}
		})
	}
}

func FuzzTar(f *testing.F) {
	f.Add(tarOf(f, folder("a"), regular("a/b", "1"), symlink("l", "a/b")))
	f.Add(gzipped(f, tarOf(f, regular("a", "1"))))
	f.Add(zstded(f, tarOf(f, regular("../a", "1"))))
	f.Add([]byte("\x28\xb5\x2f\xfd"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := Open(t.Context(), "-", Config{Stdin: bytes.NewReader(raw), MaxFiles: 1000, MaxExpanded: 1 << 24})
		check(t, err)
		seen := map[string]bool{}
		err = m.Each(t.Context(), func(f *File, content io.Reader) error {
			if seen[f.Path] || filepath.IsAbs(f.Path) || !filepath.IsLocal(f.Path) {
				t.Errorf("%q was passed on", f.Path)
			}
			seen[f.Path] = true
			if content != nil {
				n, err := io.Copy(io.Discard, content)
				if err == nil && n != f.Size {
					t.Errorf("%q: %d bytes, its size is %d", f.Path, n, f.Size)
				}
			}
			return nil
		})
		if err != nil && !hasClass(err) {
			t.Errorf("no class: %v", err)
		}
	})
}
