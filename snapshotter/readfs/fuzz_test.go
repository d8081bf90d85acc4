package readfs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"testing"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/snapshotter/readfs"
)

// FuzzReadMutatedBlob changes the blob of an image: each file is as it was, or an error.
func FuzzReadMutatedBlob(f *testing.F) {
	f.Add(uint8(0), uint32(0), []byte{1})
	f.Add(uint8(1), uint32(20_000), []byte{0, 0, 0, 0})
	f.Add(uint8(2), uint32(99), []byte("cut"))
	samples := []*sample{newSample(f, bootstrap.None), newSample(f, bootstrap.LZ4), newSample(f, bootstrap.Zstd)}
	f.Fuzz(func(t *testing.T, kind uint8, at uint32, patch []byte) {
		s := samples[int(kind)%len(samples)]
		blob := bytes.Clone(s.blob)
		if copy(blob[int(at)%len(blob):], patch); len(patch) == 0 {
			blob = blob[:int(at)%len(blob)]
		}
		tree := s.open(t, bytes.NewReader(blob), 1<<14)
		for name, want := range s.files {
			got, err := fs.ReadFile(tree, name)
			if err == nil && !bytes.Equal(got, want) || !bytes.HasPrefix(want, got) {
				t.Fatalf("%s has other bytes", name)
			}
			if err != nil && !errors.Is(err, piece.ErrMismatch) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s: error without a class: %v", name, err)
			}
		}
	})
}

// FuzzReadMutatedImage changes a bootstrap: what can be decoded can be walked and read to the end or to an error.
func FuzzReadMutatedImage(f *testing.F) {
	f.Add(uint8(0), uint32(1024), []byte{1})
	f.Add(uint8(1), uint32(4096*3+8), []byte{255, 255})
	samples := []*sample{newSample(f, bootstrap.None), newSample(f, bootstrap.LZ4), newSample(f, bootstrap.Zstd)}
	f.Fuzz(func(t *testing.T, kind uint8, at uint32, patch []byte) {
		s := samples[int(kind)%len(samples)]
		raw, err := bootstrap.Encode(s.img)
		check(t, err)
		copy(raw[int(at)%len(raw):], patch)
		img, err := bootstrap.Decode(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return
		}
		tree, err := readfs.New(img, readfs.Config{CacheSize: 1 << 16, Open: func(*bootstrap.Blob) (io.ReaderAt, error) {
			return bytes.NewReader(s.blob), nil
		}})
		if err != nil {
			return
		}
		defer tree.Close()
		buf := make([]byte, 1<<16)
		check(t, img.Walk(func(path string, n *bootstrap.Inode) error {
			for _, off := range []int64{0, n.Size / 2, n.Size - 1, n.Size} {
				if got, err := tree.ReadAt(n, path, buf, off); got < len(buf) && err == nil {
					t.Fatalf("%s: %d bytes and no error", path, got)
				}
			}
			if path != "" {
				_, _ = tree.Stat(path) // links may lead nowhere
			}
			return nil
		}))
	})
}
