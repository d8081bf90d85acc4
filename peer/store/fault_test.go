package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/piece"
)

// badDisk lets a number of operations pass and fails all others with err.
type badDisk struct {
	left atomic.Int64
	err  error
}

type badFile struct {
	diskFile
	disk *badDisk
	name string
}

func (d *badDisk) open(dir *os.Root, name string) (diskFile, error) {
	f, err := openFile(dir, name)
	return badFile{f, d, name}, err
}

func (d *badDisk) fails() error {
	if d.left.Add(-1) < 0 {
		return d.err
	}
	return nil
}

func (f badFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.disk.fails(); err != nil && !errors.Is(err, unix.ENOSPC) { // a full disk is read
		return 0, &os.PathError{Op: "read", Path: f.name, Err: err}
	}
	return f.diskFile.ReadAt(p, off)
}

func (f badFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.disk.fails(); err != nil {
		n, _ := f.diskFile.WriteAt(p[:len(p)/2], off) // half of it arrives
		return n, &os.PathError{Op: "write", Path: f.name, Err: err}
	}
	return f.diskFile.WriteAt(p, off)
}

// TestDiskThatFailsAnywhereLeavesOnlyWhatIsRight has each single operation of a write, a copy and a read back fail, with an error of the
// device and with a full disk, and looks at what a new process finds.
func TestDiskThatFailsAnywhereLeavesOnlyWhatIsRight(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 2*piece.GroupSize/16)
	groups := piece.HashGroups(data[:piece.GroupSize])
	root, d, from := piece.Root(groups), digest.FromString("new"), digest.FromBytes(data)
	for _, fault := range []error{unix.EIO, unix.ENOSPC} {
		for pass := range int64(14) {
			dir := t.TempDir()
			s, err := Open(dir, Config{})
			if err != nil {
				t.Fatal(err)
			}
			source, err := s.Create(from, int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			if err := source.Write(0, data[:piece.GroupSize], groups); err != nil {
				t.Fatal(err)
			}
			disk := &badDisk{err: fault}
			disk.left.Store(pass)
			s.openFile = disk.open
			b, err := s.Create(d, int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			for i, err := range []error{
				b.Write(0, data[:piece.GroupSize], groups),
				b.Copy(1, []chunkmap.Part{{Blob: from, Length: piece.GroupSize}}, root),
			} {
				if held := b.Has(piece.Index(i)); held != (err == nil) {
					t.Errorf("%v after %d operations: piece %d held %v, error %v", fault, pass, i, held, err)
				}
				if err != nil && !errors.Is(err, fault) || errors.Is(err, ErrNoSpace) != (err != nil && errors.Is(fault, unix.ENOSPC)) {
					t.Errorf("%v after %d operations: piece %d: error %v has the wrong class", fault, pass, i, err)
				}
			}
			held := b.Have()
			if err := errors.Join(b.Close(), source.Close(), s.Close()); err != nil {
				t.Fatal(err)
			}
			checkHealed(t, dir, d, held, data)
		}
	}
}

// checkHealed opens the store anew, on a disk that works, and finds at least the pieces of held, and no wrong one.
func checkHealed(t *testing.T, dir string, d digest.Digest, held *piece.Set, data []byte) {
	t.Helper()
	s, err := Open(dir, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := s.Get(d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for i := range held.All() {
		if !b.Has(i) {
			t.Errorf("piece %d was said to be held and is lost", i)
		}
	}
	for i := range b.Have().All() {
		off, length := b.Layout().Range(i)
		got, err := io.ReadAll(io.NewSectionReader(b, off, length))
		if err == nil && !bytes.Equal(got, data[off:off+length]) {
			t.Errorf("piece %d has wrong bytes", i)
		}
	}
}

func TestPieceThatCannotBeReadIsDroppedAndFetchedAgain(t *testing.T) {
	data := make([]byte, piece.GroupSize)
	groups := piece.HashGroups(data)
	s, err := Open(t.TempDir(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	disk := &badDisk{err: unix.EIO}
	disk.left.Store(1000)
	s.openFile = disk.open
	b, err := s.Create(digest.FromBytes(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Write(0, data, groups); err != nil {
		t.Fatal(err)
	}
	disk.left.Store(0)
	if b.Recheck(0) || b.Has(0) {
		t.Error("a piece that cannot be read is held")
	}
	disk.left.Store(1000)
	if err := b.Write(0, data, groups); err != nil || !b.Recheck(0) {
		t.Errorf("writing it again: %v", err)
	}
}

func FuzzChunks(f *testing.F) {
	f.Add(encodeChunks(nil))
	f.Add(encodeChunks([]chunkmap.Chunk{{Length: 1, ID: chunkmap.ID{1}}, {Length: 1 << 31}}))
	f.Add([]byte(chunksMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		var chunks []chunkmap.Chunk
		err := decodeChunks(bytes.NewReader(data), func(c chunkmap.Chunk) bool {
			chunks = append(chunks, c)
			return true
		})
		if err != nil {
			if !errors.Is(err, errFormat) {
				t.Fatalf("error %v is not errFormat", err)
			}
			return
		}
		if again := encodeChunks(chunks); !bytes.Equal(again, data[:len(again)]) {
			t.Fatalf("%d chunks do not encode to what they were decoded from", len(chunks))
		}
	})
}

func FuzzPins(f *testing.F) {
	for _, s := range []string{"", "one\ntwo\n", "one\r\n\xff", "\x00\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		owners := decodePins(data)
		if len(owners) == 0 {
			t.Fatal("the blob is let go")
		}
		var file []byte
		for _, o := range owners {
			file = append(file, o+"\n"...)
		}
		if again := decodePins(file); len(again) != len(owners) {
			t.Fatalf("%q is read back as %q", owners, again)
		}
	})
}
