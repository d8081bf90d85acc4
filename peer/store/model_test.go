package store_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

// model is the store as a plain map, and the real one beside it. It has three possible blobs and no quota.
type model struct {
	t     *testing.T
	dir   string
	s     *store.Store
	data  [][]byte
	names []digest.Digest
	held  map[digest.Digest]map[piece.Index]bool // nil: not in the store
	bad   map[digest.Digest]map[piece.Index]bool // damaged on disk since Open, not found yet
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
}

func TestStoreBehavesAsItsModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{t: t, held: map[digest.Digest]map[piece.Index]bool{}, bad: map[digest.Digest]map[piece.Index]bool{}}
		for n, size := range []int{0, 3*piece.GroupSize + 1, 600} {
			data, d := storetest.Content(uint64(n), size)
			m.data, m.names = append(m.data, data), append(m.names, d)
		}
		m.open(rt, t.TempDir())
		defer func() { _ = m.s.Close() }()
		rt.Repeat(map[string]func(*rapid.T){
			"write": m.write, "drop": m.drop, "damage": m.damage, "recheck": m.recheck, "reopen": m.reopen, "": m.check,
		})
	})
}
