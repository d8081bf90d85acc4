package store_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

const writerEnv = "SHOAL_TEST_STORE_WRITER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerEnv); dir != "" {
		if err := writeForever(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1) // it is meant to be killed
	}
	goleak.VerifyTestMain(m)
}

const crashPieces = 64

func crashContent() []byte {
	data, _ := storetest.Content(5, crashPieces*piece.GroupSize)
	return data
}

// writeForever writes the pieces in two goroutines, every other one as a copy out of a blob that it has made before, and prints the number
// of each that is said to be held. It pins the blob first.
func writeForever(dir string) error {
	data := crashContent()
	_, d := storetest.Content(5, crashPieces*piece.GroupSize)
	s, err := store.Open(dir, store.Config{})
	if err != nil {
		return err
	}
	if err := s.Pin(d, "writer"); err != nil {
		return err
	}
	source, err := writeSource(s, data)
	if err != nil {
		return err
	}
	b, err := s.Create(d, int64(len(data)))
	if err != nil {
		return err
	}
	if err := b.SetChunks(chunksOf(data, piece.GroupSize)); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := piece.Index(w); i < crashPieces; i += 2 {
				part, groups := storetest.Piece(data, i)
				err := error(nil)
				if i%4 < 2 {
					err = b.Write(i, part, groups)
				} else {
					off, length := b.Layout().Range(i)
					err = b.Copy(i, []chunkmap.Part{{Blob: source, Off: off, Length: length}}, piece.Root(groups))
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				fmt.Println(i)
			}
		})
	}
	wg.Wait()
	return nil
}

// writeSource makes a blob that begins with data.
func writeSource(s *store.Store, data []byte) (digest.Digest, error) {
	longer := append(bytes.Clone(data), 1)
	d := digest.FromBytes(longer)
	b, err := s.Create(d, int64(len(longer)))
	if err != nil {
		return d, err
	}
	defer b.Close()
	for i := range piece.Index(b.Layout().Count()) {
		part, groups := storetest.Piece(longer, i)
		if err := b.Write(i, part, groups); err != nil {
			return d, err
		}
	}
	return d, nil
}

// TestKilledWriterLosesNothing kills a writing process after some pieces and finds all of them, right.
func TestKilledWriterLosesNothing(t *testing.T) {
	data := crashContent()
	_, d := storetest.Content(5, len(data))
	for _, after := range []int{1, 7, 30} {
		dir := t.TempDir()
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), writerEnv+"="+dir)
		stdout, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		var confirmed []piece.Index
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var i piece.Index
			if _, err := fmt.Sscan(lines.Text(), &i); err != nil {
				t.Fatal(err)
			}
			if confirmed = append(confirmed, i); len(confirmed) == after {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = child.Wait() // killed
		if len(confirmed) < after {
			t.Fatalf("the writer ended after %d pieces", len(confirmed))
		}
		s := open(t, dir, store.Config{})
		if len(s.Pins()[d]) != 1 || len(s.FindChunks(chunksOf(data, piece.GroupSize), "")) == 0 {
			t.Errorf("killed after %d pieces: pins %v, or no chunk is found", after, s.Pins())
		}
		b := get(t, s, d)
		for _, i := range confirmed {
			if !b.Has(i) || !b.Recheck(i) {
				t.Errorf("killed after %d pieces: piece %d was confirmed and is lost", after, i)
			}
		}
		for i := range b.Have().All() {
			if !b.Recheck(i) {
				t.Errorf("killed after %d pieces: piece %d is claimed and bad", after, i)
			}
		}
	}
}
