package readfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/snapshotter/readfs"
)

func noise(seed byte, n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed, 1}).Read(out)
	return out
}

const chunkSize = 4096

// sample is an image of files of known content, and its blob.
type sample struct {
	img   *bootstrap.Image
	blob  []byte
	files map[string][]byte
}

func newSample(t testing.TB, kind bootstrap.Compressor) *sample {
	t.Helper()
	s := &sample{files: map[string][]byte{
		"a": bytes.Repeat([]byte("text "), 5000), "dir/b": noise(1, 3*chunkSize), "dir/sub/c": []byte("short"), "empty": nil,
		"big": append(noise(2, 10_000), bytes.Repeat([]byte{0}, 90_000)...),
	}}
	tree := bootstrap.NewTree()
	var out bytes.Buffer
	p, err := bootstrap.NewPacker(&out, chunkSize, kind, nil)
	check(t, err)
	for _, name := range []string{"a", "big", "dir/b", "dir/sub/c", "empty"} {
		n := &bootstrap.Inode{Mode: bootstrap.TypeRegular | 0o4644, Mtime: 1_700_000_000, Size: int64(len(s.files[name]))}
		check(t, p.Add(n, bytes.NewReader(s.files[name])))
		check(t, tree.Add(name, n))
	}
	for name, target := range map[string]string{
		"link": "dir/sub", "dir/up": "../a", "absolute": "/dir/b", "loop": "loop", "out": "../../../a", "nowhere": "x/y", "dir/self": ".", "through": "a/b",
	} {
		check(t, tree.Add(name, &bootstrap.Inode{Mode: bootstrap.TypeSymlink | 0o777, Link: target}))
	}
	check(t, tree.Link("dir/hard", "a"))
	check(t, tree.Add("null", &bootstrap.Inode{Mode: bootstrap.TypeChar | 0o666, Major: 1, Minor: 3}))
	check(t, tree.Add("caf\xe9", &bootstrap.Inode{Mode: bootstrap.TypeDir | 0o1777}))
	packed, err := p.Finish()
	check(t, err)
	s.img = &bootstrap.Image{ChunkSize: chunkSize, Root: tree.Root}
	bootstrap.NewBuilder(s.img).Add(packed)
	s.blob = out.Bytes()
	return s
}

func (s *sample) open(t testing.TB, blob io.ReaderAt, cache int64) *readfs.FS {
	t.Helper()
	f, err := readfs.New(s.img, readfs.Config{CacheSize: cache, Open: func(*bootstrap.Blob) (io.ReaderAt, error) { return blob, nil }})
	check(t, err)
	t.Cleanup(func() { check(t, f.Close()) })
	return f
}

func TestIsAFileSystem(t *testing.T) {
	s := newSample(t, bootstrap.Zstd)
	for _, name := range []string{"caf\xe9", "null", "loop", "nowhere", "through"} { // what fstest cannot open
		delete(s.img.Root.Children, name)
	}
	check(t, fstest.TestFS(s.open(t, bytes.NewReader(s.blob), 1<<20), "a", "dir/b", "dir/sub/c", "empty", "dir/hard", "link", "absolute"))
}

func TestReadsAnyRange(t *testing.T) {
	for _, kind := range []bootstrap.Compressor{bootstrap.None, bootstrap.LZ4, bootstrap.Zstd} {
		s := newSample(t, kind)
		for _, cache := range []int64{0, 2 * chunkSize, 1 << 20} {
			t.Run(fmt.Sprintf("compressor %d, cache of %d", kind, cache), func(t *testing.T) {
				f := s.open(t, bytes.NewReader(s.blob), cache)
				var wg sync.WaitGroup
				for seed := range uint64(4) {
					wg.Go(func() { readAtRandom(t, s, f, seed) })
				}
				wg.Wait()
			})
		}
	}
}

func readAtRandom(t *testing.T, s *sample, f *readfs.FS, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	for name, want := range s.files {
		file, err := f.Open(name)
		if err != nil {
			t.Error(err)
			return
		}
		for range 50 {
			off, length := r.Int64N(int64(len(want)+2)), r.IntN(4*chunkSize)
			got := make([]byte, length)
			n, err := file.(io.ReaderAt).ReadAt(got, off)
			part := want[min(off, int64(len(want))):]
			part = part[:min(length, len(part))]
			if !bytes.Equal(part, got[:n]) || (n < length) != errors.Is(err, io.EOF) || err != nil && !errors.Is(err, io.EOF) {
				t.Errorf("%s [%d,+%d): %d bytes, %v", name, off, length, n, err)
			}
		}
	}
}

func TestPathsAreFollowedWithinTheTree(t *testing.T) {
	s := newSample(t, bootstrap.None)
	f := s.open(t, bytes.NewReader(s.blob), 0)
	for name, want := range map[string]string{
		"link/c": "dir/sub/c", "dir/up": "a", "absolute": "dir/b", "out": "a", "dir/self/self/b": "dir/b", "dir/hard": "a",
	} {
		got, err := fs.ReadFile(f, name)
		if err != nil || !bytes.Equal(got, s.files[want]) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for name, want := range map[string]error{
		"x": fs.ErrNotExist, "nowhere": fs.ErrNotExist, "/a": fs.ErrInvalid, "dir/../a": fs.ErrInvalid, "": fs.ErrInvalid, "a/": fs.ErrInvalid,
	} {
		if _, err := f.Open(name); !errors.Is(err, want) {
			t.Errorf("%q: want %v, got %v", name, want, err)
		}
	}
	for _, name := range []string{"loop", "loop/x", "a/b", "through"} {
		if _, err := f.Stat(name); err == nil {
			t.Errorf("%q was found", name)
		}
	}
	if info, err := f.Stat("caf\xe9"); err != nil || info.Mode() != fs.ModeDir|fs.ModeSticky|0o777 || info.Sys() != s.img.Root.Children["caf\xe9"] {
		t.Errorf("a name that is no UTF-8: %v, %v", info, err)
	}
	if info, err := f.Stat("a"); err != nil || info.Mode() != fs.ModeSetuid|0o644 || info.ModTime().Unix() != 1_700_000_000 {
		t.Errorf("a: %v, %v", info, err)
	}
	if link, err := f.ReadLink("link"); err != nil || link != "dir/sub" {
		t.Errorf("link: %q, %v", link, err)
	}
	for what, err := range map[string]error{
		"read a device": func() error { _, err := fs.ReadFile(f, "null"); return err }(),
		"read a folder": func() error { _, err := fs.ReadFile(f, "dir"); return err }(),
		"list a file":   func() error { _, err := f.ReadDir("a"); return err }(),
		"link of file":  func() error { _, err := f.ReadLink("a"); return err }(),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func TestHostileBlobsGiveErrorsAndNoBytes(t *testing.T) {
	for _, kind := range []bootstrap.Compressor{bootstrap.None, bootstrap.LZ4, bootstrap.Zstd} {
		for _, tc := range []struct {
			name   string
			mutate func(s *sample)
			want   error
		}{
			{"a flipped bit", func(s *sample) { s.blob[s.img.Chunks[0].Offset+3] ^= 4 }, piece.ErrMismatch},
			{"a wrong digest", func(s *sample) { s.img.Chunks[0].Digest[0]++ }, piece.ErrMismatch},
			{"a truncated blob", func(s *sample) { s.blob = s.blob[:1] }, io.ErrUnexpectedEOF},
			{"a chunk behind the blob", func(s *sample) { s.img.Chunks[0].Offset = int64(len(s.blob)) + 1<<30 }, io.ErrUnexpectedEOF},
			{"another chunk's bytes", func(s *sample) {
				s.img.Chunks[0].Offset, s.img.Chunks[0].Length = s.img.Chunks[5].Offset, s.img.Chunks[5].Length
			}, piece.ErrMismatch},
			{"another compressor", func(s *sample) { s.img.Blobs[0].Compressor = bootstrap.Gzip; s.img.Chunks[0].Length = 99 }, piece.ErrMismatch},
		} {
			t.Run(fmt.Sprintf("%s, compressor %d", tc.name, kind), func(t *testing.T) {
				s := newSample(t, kind)
				tc.mutate(s)
				f := s.open(t, bytes.NewReader(s.blob), 1<<20)
				for _, length := range []int{10, chunkSize, 3 * chunkSize} {
					got := make([]byte, length)
					n, err := f.ReadAt(s.img.Root.Children["a"], "a", got, 0)
					if n != 0 || !errors.Is(err, tc.want) {
						t.Errorf("%d bytes, %v; want %v", n, err, tc.want)
					}
					if err == nil || !strings.Contains(err.Error(), "read a: ") || !strings.Contains(err.Error(), s.img.Blobs[0].Digest.String()) {
						t.Errorf("the error does not name file and blob: %v", err)
					}
					if !bytes.Equal(got, make([]byte, length)) {
						t.Error("bytes that were not verified")
					}
				}
			})
		}
	}
}

func TestABlobThatCannotBeOpenedIsNamedAndTriedAgain(t *testing.T) {
	s := newSample(t, bootstrap.None)
	tries := 0
	f, err := readfs.New(s.img, readfs.Config{Open: func(*bootstrap.Blob) (io.ReaderAt, error) {
		if tries++; tries == 1 {
			return nil, piece.ErrTransient
		}
		return bytes.NewReader(s.blob), nil
	}})
	check(t, err)
	defer f.Close()
	if _, err := fs.ReadFile(f, "a"); !errors.Is(err, piece.ErrTransient) || !strings.Contains(err.Error(), s.img.Blobs[0].Digest.String()) {
		t.Errorf("got %v", err)
	}
	for range 2 {
		if _, err := fs.ReadFile(f, "a"); err != nil || tries != 2 {
			t.Errorf("%d tries, %v", tries, err)
		}
	}
}

func TestImagesWithForeignBlobsAreRefusedByName(t *testing.T) {
	for bit, name := range map[uint32]string{0x8: "zran", 0x40: "tarfs", 0x80: "batch", 0x100: "encrypted", 0x10: "separate"} {
		s := newSample(t, bootstrap.None)
		s.img.Blobs[0].Features = 1 | bit
		if _, err := readfs.New(s.img, readfs.Config{}); !errors.Is(err, bootstrap.ErrUnsupported) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// counting counts reads.
type counting struct {
	io.ReaderAt
	reads int
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	return c.ReaderAt.ReadAt(p, off)
}

func TestCacheKeepsWhatWasReadLast(t *testing.T) {
	s := newSample(t, bootstrap.Zstd)
	blob := &counting{ReaderAt: bytes.NewReader(s.blob)}
	f := s.open(t, blob, 2*chunkSize)
	n, small := s.img.Root.Children["dir"].Children["b"], make([]byte, 10)
	for _, step := range []struct{ chunk, reads int }{{0, 1}, {0, 1}, {1, 2}, {0, 2}, {2, 3}, {0, 3}, {1, 4}, {2, 5}} {
		_, err := f.ReadAt(n, "b", small, int64(step.chunk)*chunkSize+5)
		if err != nil || blob.reads != step.reads {
			t.Errorf("chunk %d: %d reads, want %d; %v", step.chunk, blob.reads, step.reads, err)
		}
	}
}
