package store_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

// model is the store as a plain map, and the real one beside it. It has four possible blobs and no quota.
type model struct {
	t     *testing.T
	dir   string
	s     *store.Store
	data  [][]byte
	names []digest.Digest
	held  map[digest.Digest]map[piece.Index]bool // nil: not in the store
	bad   map[digest.Digest]map[piece.Index]bool // damaged on disk since Open, not found yet
	pins  map[digest.Digest][]string             // owners in order
}

func (m *model) open(rt *rapid.T, dir string) {
	s, err := store.Open(dir, store.Config{})
	if err != nil {
		rt.Fatal(err)
	}
	m.dir, m.s = dir, s
}

func (m *model) pick(rt *rapid.T) (int, digest.Digest) {
	n := rapid.IntRange(0, len(m.data)-1).Draw(rt, "blob")
	return n, m.names[n]
}

func (m *model) create(rt *rapid.T, n int) *store.Blob {
	b, err := m.s.Create(m.names[n], int64(len(m.data[n])))
	if err != nil {
		rt.Fatal(err)
	}
	if m.held[m.names[n]] == nil {
		m.held[m.names[n]], m.bad[m.names[n]] = map[piece.Index]bool{}, map[piece.Index]bool{}
	}
	return b
}

func (m *model) write(rt *rapid.T) {
	n, d := m.pick(rt)
	b := m.create(rt, n)
	defer b.Close()
	if b.Layout().Count() == 0 {
		return
	}
	i := piece.Index(rapid.IntRange(0, b.Layout().Count()-1).Draw(rt, "piece"))
	part, groups := storetest.Piece(m.data[n], i)
	if err := b.Write(i, part, groups); err != nil {
		rt.Fatal(err)
	}
	m.held[d][i] = true
}

func (m *model) drop(rt *rapid.T) {
	_, d := m.pick(rt)
	b, err := m.s.Get(d)
	if m.held[d] == nil {
		if !errors.Is(err, store.ErrNotFound) {
			rt.Fatalf("get of a missing blob: %v", err)
		}
		return
	}
	if err := errors.Join(err, b.Drop(), b.Close()); err != nil {
		rt.Fatal(err)
	}
	delete(m.held, d)
	delete(m.bad, d)
}

// damage flips a bit of a held piece behind the store's back.
func (m *model) damage(rt *rapid.T) {
	n, d := m.pick(rt)
	if len(m.data[n]) == 0 || m.held[d] == nil {
		return
	}
	l := piece.NewLayout(int64(len(m.data[n])))
	off := int64(rapid.IntRange(0, len(m.data[n])-1).Draw(rt, "offset"))
	i := l.At(off)
	if !m.held[d][i] || m.bad[d][i] {
		return
	}
	overwrite(m.t, fileOf(m.dir, d, "data"), off, []byte{m.data[n][off] ^ 4})
	m.bad[d][i] = true
}

func (m *model) recheck(rt *rapid.T) {
	n, d := m.pick(rt)
	if m.held[d] == nil || len(m.data[n]) == 0 {
		return
	}
	b := m.create(rt, n)
	defer b.Close()
	i := piece.Index(rapid.IntRange(0, b.Layout().Count()-1).Draw(rt, "piece"))
	want := m.held[d][i] && !m.bad[d][i]
	if got := b.Recheck(i); got != want {
		rt.Fatalf("recheck of piece %d: %v, want %v", i, got, want)
	}
	if m.bad[d][i] {
		delete(m.held[d], i)
		delete(m.bad[d], i)
	}
}

// twin is the number of the blob that begins with the bytes of blob 1, from one group on.
const twin = 3

// copyPiece makes the piece of the twin that is piece 0 of blob 1.
func (m *model) copyPiece(rt *rapid.T) {
	const from = 1
	b := m.create(rt, twin)
	defer b.Close()
	want := root(m.data[twin], 1)
	d, source := m.names[twin], m.names[from]
	err := b.Copy(1, []chunkmap.Part{{Blob: source, Off: 0, Length: piece.GroupSize}}, want)
	switch {
	case !m.held[source][0]: // not even looked at
		if !errors.Is(err, piece.ErrAbsent) {
			rt.Fatalf("copy of what is not there: %v", err)
		}
	case m.held[d][1]: // what is held, good or bad, is not looked at either
		if err != nil {
			rt.Fatalf("copy of what is held: %v", err)
		}
	case m.bad[source][0]:
		if !errors.Is(err, piece.ErrMismatch) {
			rt.Fatalf("copy of a bad piece: %v", err)
		}
		delete(m.held[source], 0)
		delete(m.bad[source], 0)
	case err != nil:
		rt.Fatal(err)
	default:
		m.held[d][1] = true
	}
}

func (m *model) pin(rt *rapid.T) {
	_, d := m.pick(rt)
	owner := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "owner")
	i, found := slices.BinarySearch(m.pins[d], owner)
	if rapid.Bool().Draw(rt, "unpin") {
		if err := m.s.Unpin(d, owner); err != nil {
			rt.Fatal(err)
		}
		if found {
			m.pins[d] = slices.Delete(m.pins[d], i, i+1)
		}
		if len(m.pins[d]) == 0 {
			delete(m.pins, d)
		}
		return
	}
	if err := m.s.Pin(d, owner); err != nil {
		rt.Fatal(err)
	}
	if !found {
		m.pins[d] = slices.Insert(m.pins[d], i, owner)
	}
}

// setChunks names the groups of a blob as its chunks; find looks all of them up.
func (m *model) setChunks(rt *rapid.T) {
	n, d := m.pick(rt)
	if m.held[d] == nil {
		return
	}
	b := m.create(rt, n)
	defer b.Close()
	if err := b.SetChunks(chunksOf(m.data[n], piece.GroupSize)); err != nil {
		rt.Fatal(err)
	}
	for i, c := range chunksOf(m.data[n], piece.GroupSize) {
		place, ok := m.s.FindChunks([]chunkmap.Chunk{c}, "")[c.ID]
		if ok && !m.held[place.Blob][piece.Index(place.Off/piece.GroupSize)] || !ok && m.held[d][piece.Index(i)] {
			rt.Fatalf("chunk %d of blob %d: found %v at %+v", i, n, ok, place)
		}
	}
}

// reopen ends the store in order, or clones its files while it is in use and goes on with the clone, as after kill -9.
func (m *model) reopen(rt *rapid.T) {
	dir := m.dir
	if rapid.Bool().Draw(rt, "crash") {
		dir = m.t.TempDir()
		if err := os.CopyFS(filepath.Join(dir, "clone"), os.DirFS(m.dir)); err != nil {
			rt.Fatal(err)
		}
		dir = filepath.Join(dir, "clone")
	}
	if err := m.s.Close(); err != nil {
		rt.Fatal(err)
	}
	m.open(rt, dir)
	// What is damaged is still claimed, but the first use finds it.
	for n, d := range m.names {
		if m.held[d] == nil {
			continue
		}
		b := m.create(rt, n)
		for i := range m.held[d] {
			off, length := b.Layout().Range(i)
			if err := b.EnsureVerified(off, length); errors.Is(err, piece.ErrMismatch) != m.bad[d][i] || err != nil && !m.bad[d][i] {
				rt.Fatalf("piece %d, damaged %v: error %v", i, m.bad[d][i], err)
			}
			if m.bad[d][i] {
				delete(m.held[d], i)
				delete(m.bad[d], i)
			}
		}
		if err := b.Close(); err != nil {
			rt.Fatal(err)
		}
	}
}

// check compares the whole store with the model.
func (m *model) check(rt *rapid.T) {
	want, got := map[string]int64{}, map[string]int64{}
	for n, d := range m.names {
		if m.held[d] == nil {
			continue
		}
		var bytes int64
		l := piece.NewLayout(int64(len(m.data[n])))
		for i := range m.held[d] {
			_, length := l.Range(i)
			bytes += length
		}
		want[fmt.Sprintf("%s complete=%v", d, len(m.held[d]) == l.Count())] = bytes
	}
	for _, info := range m.s.List() {
		got[fmt.Sprintf("%s complete=%v", info.Digest, info.Complete)] = info.Held
		if info.Open {
			rt.Fatalf("%s is opened by nobody", info.Digest)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		rt.Fatalf("store (-model +store):\n%s", diff)
	}
	if diff := cmp.Diff(m.pins, m.s.Pins()); diff != "" {
		rt.Fatalf("pins (-model +store):\n%s", diff)
	}
}

func TestStoreBehavesAsItsModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{t: t, held: map[digest.Digest]map[piece.Index]bool{}, bad: map[digest.Digest]map[piece.Index]bool{},
			pins: map[digest.Digest][]string{}}
		for n, size := range []int{0, 3*piece.GroupSize + 1, 600} {
			data, d := storetest.Content(uint64(n), size)
			m.data, m.names = append(m.data, data), append(m.names, d)
		}
		copied := append(make([]byte, piece.GroupSize), m.data[1]...) // the twin
		m.data, m.names = append(m.data, copied), append(m.names, digest.FromBytes(copied))
		m.open(rt, t.TempDir())
		defer func() { _ = m.s.Close() }()
		rt.Repeat(map[string]func(*rapid.T){
			"write": m.write, "drop": m.drop, "damage": m.damage, "recheck": m.recheck, "reopen": m.reopen,
			"copy": m.copyPiece, "pin": m.pin, "chunks": m.setChunks, "": m.check,
		})
	})
}
