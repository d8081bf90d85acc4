package store_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

// chunksOf cuts data into chunks of n bytes.
func chunksOf(data []byte, n int) []chunkmap.Chunk {
	b := chunkmap.NewBuilder()
	for len(data) > 0 {
		k := min(n, len(data))
		_, _ = b.Write(data[:k]) // never fails
		b.Cut()
		data = data[k:]
	}
	return b.Map(digest.FromString("any")).Chunks
}

// root returns the digest of piece i of data.
func root(data []byte, i piece.Index) piece.Digest {
	_, groups := storetest.Piece(data, i)
	return piece.Root(groups)
}

const chunk = 100_000 // bytes; divides no group

// sourced returns a store with a blob whose chunks are known, and its bytes.
func sourced(t *testing.T, dir string) (*store.Store, digest.Digest, []byte) {
	t.Helper()
	s := open(t, dir, store.Config{})
	data, _ := storetest.Content(1, 5*piece.GroupSize+17)
	d := storetest.Fill(t, s, data)
	if err := get(t, s, d).SetChunks(chunksOf(data, chunk)); err != nil {
		t.Fatal(err)
	}
	return s, d, data
}

func TestChunksAreFoundWhereAllTheirBytesAreHeld(t *testing.T) {
	dir := t.TempDir()
	s, d, data := sourced(t, dir)
	overwrite(t, fileOf(dir, d, "data"), 2*piece.GroupSize, []byte{^data[2*piece.GroupSize]})
	get(t, s, d).Recheck(2) // drops bytes [524288, 786432), which are in chunks 5, 6 and 7
	_ = s.Close()
	s = open(t, dir, store.Config{}) // the index is on the disk
	chunks := chunksOf(data, chunk)
	unknown := chunkmap.Chunk{Length: 5, ID: chunkmap.ID{1}}
	found := s.FindChunks(append(chunks, unknown), digest.FromString("another"))
	for i, c := range chunks {
		place, ok := found[c.ID]
		if want := i < 5 || i > 7; ok != want || ok && place != (chunkmap.Place{Blob: d, Off: int64(i * chunk)}) {
			t.Errorf("chunk %d: found %v at %+v, want %v", i, ok, place, want)
		}
	}
	if len(found) != len(chunks)-3 {
		t.Errorf("found %d of %d", len(found), len(chunks))
	}
	if got := s.FindChunks(chunks, d); len(got) != 0 {
		t.Errorf("the blob itself was searched: %v", got)
	}
}

func TestDamagedChunkFilesArePassedOver(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"truncated": func(b []byte) []byte { return b[:len(b)-5] },
		"garbage":   func(b []byte) []byte { return bytes.Repeat([]byte{0xff}, len(b)) },
		"no magic":  func(b []byte) []byte { b[0] ^= 1; return b },
		"huge":      func(b []byte) []byte { copy(b[12:], "\xff\xff\xff\xff"); return b },
		"too long":  func(b []byte) []byte { copy(b[16:], "\xff\xff\xff\xff"); return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, d, data := sourced(t, dir)
			path := fileOf(dir, d, "chunks")
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(raw), 0o600); err != nil {
				t.Fatal(err)
			}
			l := piece.NewLayout(int64(len(data)))
			for _, place := range s.FindChunks(chunksOf(data, chunk), "") {
				if place.Off < 0 || place.Off >= l.Size {
					t.Errorf("a chunk at %d of %d bytes", place.Off, l.Size)
				}
			}
			if !get(t, s, d).Complete() {
				t.Error("the blob itself suffered")
			}
		})
	}
}

// shifted is a blob of which all but the first bytes are those of data, moved by n.
func shifted(data []byte, n int) []byte {
	head, _ := storetest.Content(9, n)
	return append(head, data...)
}

// copyFrom makes a blob out of the parts of another, moved by n bytes.
func copyFrom(t *testing.T, s *store.Store, from digest.Digest, data []byte, n int) {
	t.Helper()
	moved := shifted(data, n)
	b, err := s.Create(digest.FromBytes(moved), int64(len(moved)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	storetest.WritePiece(t, b, moved, 0)
	for i := 1; i < b.Layout().Count(); i++ {
		off, length := b.Layout().Range(piece.Index(i))
		at := off - int64(n)
		parts := []chunkmap.Part{{Blob: from, Off: at, Length: 1000}, {Blob: from, Off: at + 1000, Length: length - 1000}}
		if length <= 1000 {
			parts = []chunkmap.Part{{Blob: from, Off: at, Length: length}}
		}
		if err := b.Copy(piece.Index(i), parts, root(moved, piece.Index(i))); err != nil {
			t.Fatal(err)
		}
	}
	got, err := io.ReadAll(io.NewSectionReader(b, 0, int64(len(moved))))
	if err != nil || !bytes.Equal(got, moved) || !b.Complete() {
		t.Errorf("moved by %d: read %d bytes, %v", n, len(got), err)
	}
}

func TestCopiedPiecesAreThoseOfTheOtherBlob(t *testing.T) {
	s, d, data := sourced(t, t.TempDir())
	for _, n := range []int{1, 4096, 5000, 8192 + 512} {
		copyFrom(t, s, d, data, n)
	}
}

func TestCopyRefusesWhatIsNotThere(t *testing.T) {
	s, d, data := sourced(t, t.TempDir())
	other, od := storetest.Content(3, 3*piece.GroupSize)
	b, err := s.Create(od, int64(len(other)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	whole := func(off int64) []chunkmap.Part {
		return []chunkmap.Part{{Blob: d, Off: off, Length: piece.GroupSize}}
	}
	for _, c := range []struct {
		name  string
		index piece.Index
		parts []chunkmap.Part
		want  error
	}{
		{"other bytes", 0, whole(0), piece.ErrMismatch},
		{"an unknown blob", 0, []chunkmap.Part{{Blob: digest.FromString("none"), Length: piece.GroupSize}}, piece.ErrAbsent},
		{"itself", 0, []chunkmap.Part{{Blob: od, Length: piece.GroupSize}}, nil},
		{"too few bytes", 0, []chunkmap.Part{{Blob: d, Length: 10}}, nil},
		{"nothing", 0, nil, nil},
		{"bytes behind the end", 0, whole(int64(len(data)) - 10), nil},
		{"bytes before the start", 0, whole(-1), nil},
		{"a piece there is not", 3, whole(0), nil},
	} {
		err := b.Copy(c.index, c.parts, root(other, 0))
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		}
		if b.Held() != 0 {
			t.Errorf("%s: %d bytes are held", c.name, b.Held())
		}
	}
	if !get(t, s, d).Complete() {
		t.Error("a sound source lost pieces")
	}
}

func TestBadSourceOfACopyIsDropped(t *testing.T) {
	dir := t.TempDir()
	s, d, data := sourced(t, dir)
	overwrite(t, fileOf(dir, d, "data"), piece.GroupSize+3, []byte{^data[piece.GroupSize+3]})
	b, err := s.Create(digest.FromString("new"), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	parts := []chunkmap.Part{{Blob: d, Off: piece.GroupSize, Length: piece.GroupSize}}
	if err := b.Copy(1, parts, root(data, 1)); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("error %v", err)
	}
	if from := get(t, s, d); from.Has(1) || !from.Has(0) || b.Has(1) {
		t.Errorf("source has the bad piece: %v, its neighbour: %v; the copy is held: %v", from.Has(1), from.Has(0), b.Has(1))
	}
}

// TestRootCopiesShareTheirBytesWhereTheFileSystemCan needs mkfs.xfs or mkfs.btrfs.
func TestRootCopiesShareTheirBytesWhereTheFileSystemCan(t *testing.T) {
	dir := reflinking(t)
	s := open(t, dir, store.Config{MaxPercent: 100})
	data, _ := storetest.Content(1, 64<<20)
	d := storetest.Fill(t, s, data)
	before := freeBytes(t, dir)
	copyFrom(t, s, d, data, piece.GroupSize)
	if used := before - freeBytes(t, dir); used > 8<<20 {
		t.Errorf("a copy of %d bytes took %d", len(data), used)
	}
}

// freeBytes syncs, since file systems count what is not yet written only roughly.
func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	unix.Sync()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// reflinking mounts a file system that can share bytes between files.
func reflinking(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	for _, kind := range []string{"xfs", "btrfs"} {
		mkfs, err := exec.LookPath("mkfs." + kind)
		if err != nil {
			continue
		}
		image, dir := t.TempDir()+"/disk", t.TempDir()
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 512<<20)); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), mkfs, "-q", image).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", mkfs, err, out)
		}
		if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
			t.Logf("mount %s: %v: %s", kind, err, out) // this kernel may not have it
			continue
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		return dir
	}
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatal("neither mkfs.xfs nor mkfs.btrfs is installed and REQUIRE_TOOLS=1")
	}
	t.Skip("neither mkfs.xfs nor mkfs.btrfs is installed")
	return ""
}

// manyChunks fills a store with blobs, n chunks in all, without their bytes: only what is read at start and for a search.
func manyChunks(tb testing.TB, dir string, blobs, chunksEach int) []chunkmap.Chunk {
	tb.Helper()
	s := open(tb, dir, store.Config{})
	groups := piece.HashGroups(make([]byte, piece.GroupSize))
	zeros := make([]byte, piece.GroupSize)
	var last []chunkmap.Chunk
	for i := range blobs {
		b, err := s.Create(digest.FromString(strconv.Itoa(i)), int64(chunksEach)*piece.GroupSize)
		if err != nil {
			tb.Fatal(err)
		}
		last = make([]chunkmap.Chunk, chunksEach)
		for j := range last {
			last[j] = chunkmap.Chunk{Length: piece.GroupSize, ID: chunkmap.ID{byte(i), byte(j), byte(j >> 8), byte(i >> 8)}}
		}
		if err := b.SetChunks(last); err != nil {
			tb.Fatal(err)
		}
		for j := range b.Layout().Count() {
			if _, length := b.Layout().Range(piece.Index(j)); length != piece.GroupSize {
				tb.Fatalf("pieces of %d bytes", length)
			}
			if j%100 == 0 { // the rest is holes: bytes cost time here and nothing there
				if err := b.Write(piece.Index(j), zeros, groups); err != nil {
					tb.Fatal(err)
				}
			}
		}
		if err := b.Close(); err != nil {
			tb.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		tb.Fatal(err)
	}
	markAll(tb, dir, piece.Root(groups), groups[0])
	return last
}

// markAll marks every piece of every blob as held, with the same digest.
func markAll(tb testing.TB, dir string, root, group piece.Digest) {
	tb.Helper()
	s := open(tb, dir, store.Config{})
	list := s.List()
	_ = s.Close()
	for _, info := range list {
		overwrite(tb, fileOf(dir, info.Digest, "index"), 64, bytes.Repeat(root[:], info.Layout.Count()))
		overwrite(tb, fileOf(dir, info.Digest, "groups"), 0, bytes.Repeat(group[:], info.Layout.Groups()))
	}
}
