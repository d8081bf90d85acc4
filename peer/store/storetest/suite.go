package storetest

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
)

// Open makes an empty store for one test and closes it when the test ends.
type Open func(t *testing.T) *store.Store

// Run is what holds for every store, wherever its folder is. Each case gets a store of its own.
func Run(t *testing.T, open Open) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *store.Store)
	}{
		{"UnknownBlobIsNotFound", unknownBlob},
		{"ReservedBlobHoldsNothing", reservedBlob},
		{"PiecesWrittenInAnyOrderMakeACompleteBlob", anyOrder},
		{"MissingPieceIsAbsent", missingPiece},
		{"WritingTwiceChangesNothing", writeTwice},
		{"OtherBytesReplaceThePiece", otherBytes},
		{"WriteOfTheWrongShapeIsRefused", wrongShape},
		{"OtherSizeIsRefused", otherSize},
		{"EmptyBlobIsComplete", emptyBlob},
		{"EachReferenceHasItsOwnFile", ownFile},
		{"WaiterWakesWhenAPieceComes", waiterWakes},
		{"DroppedBlobIsGoneForAll", dropped},
		{"ConcurrentWritersAgree", concurrentWriters},
		{"HostileDigestsAreRefused", hostileDigests},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

// sample has five pieces, the last one short.
func sample() ([]byte, digest.Digest) { return Content(7, 4*piece.GroupSize+99) }

func create(t *testing.T, s *store.Store, d digest.Digest, size int) *store.Blob {
	t.Helper()
	b, err := s.Create(d, int64(size))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}

func wantIs(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func unknownBlob(t *testing.T, s *store.Store) {
	_, d := sample()
	_, err := s.Get(d)
	wantIs(t, err, store.ErrNotFound)
	wantIs(t, err, piece.ErrAbsent)
}

func reservedBlob(t *testing.T, s *store.Store) {
	data, d := sample()
	b := create(t, s, d, len(data))
	if b.Complete() || b.Held() != 0 || b.Have().Count() != 0 {
		t.Errorf("holds %d bytes, complete %v", b.Held(), b.Complete())
	}
	want := []store.Info{{Digest: d, Layout: piece.NewLayout(int64(len(data))), Open: true}}
	got := s.List()
	got[0].LastUse = want[0].LastUse
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}

func anyOrder(t *testing.T, s *store.Store) {
	data, d := sample()
	b := create(t, s, d, len(data))
	for _, i := range []piece.Index{3, 0, 4, 2, 1} {
		if b.Complete() || b.Has(i) {
			t.Fatalf("before piece %d: complete %v, has it %v", i, b.Complete(), b.Has(i))
		}
		WritePiece(t, b, data, i)
	}
	if !b.Complete() || b.Held() != int64(len(data)) {
		t.Fatalf("holds %d of %d bytes, complete %v", b.Held(), len(data), b.Complete())
	}
	got, err := io.ReadAll(io.NewSectionReader(b, 0, int64(len(data))))
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read %d bytes, error %v", len(got), err)
	}
	_, want := Piece(data, 4)
	groups, err := b.Groups(4)
	if diff := cmp.Diff(want, groups); err != nil || diff != "" {
		t.Errorf("groups of piece 4: %v (-want +got):\n%s", err, diff)
	}
}

func missingPiece(t *testing.T, s *store.Store) {
	data, d := sample()
	b := create(t, s, d, len(data))
	WritePiece(t, b, data, 1)
	if err := b.EnsureVerified(piece.GroupSize, piece.GroupSize); err != nil {
		t.Errorf("held piece: %v", err)
	}
	for _, r := range [][2]int64{{0, 1}, {piece.GroupSize - 1, 2}, {2*piece.GroupSize - 1, 2}, {0, int64(len(data))}} {
		wantIs(t, b.EnsureVerified(r[0], r[1]), piece.ErrAbsent)
	}
	_, err := b.Groups(0)
	wantIs(t, err, piece.ErrAbsent)
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, int64(len(data)) + 1}, {1 << 62, 1 << 62}} {
		if err := b.EnsureVerified(r[0], r[1]); err == nil || errors.Is(err, piece.ErrAbsent) {
			t.Errorf("range %v outside the blob: error %v", r, err)
		}
	}
	if b.Recheck(0) || !b.Recheck(1) {
		t.Error("recheck does not tell held from missing")
	}
}

func writeTwice(t *testing.T, s *store.Store) {
	data, d := sample()
	b := create(t, s, d, len(data))
	WritePiece(t, b, data, 2)
	again := create(t, s, d, len(data))
	WritePiece(t, again, data, 2)
	if got := b.Have().Count(); got != 1 || b.Held() != piece.GroupSize {
		t.Errorf("holds %d pieces of %d bytes", got, b.Held())
	}
}

// otherBytes is a blob whose origin lied at first: its pieces cannot be verified one by one.
func otherBytes(t *testing.T, s *store.Store) {
	data, d := sample()
	lie, _ := Content(9, len(data))
	b := create(t, s, d, len(data))
	WritePiece(t, b, lie, 1)
	WritePiece(t, b, data, 1)
	got := make([]byte, piece.GroupSize)
	if _, err := b.ReadAt(got, piece.GroupSize); err != nil || !bytes.Equal(got, data[piece.GroupSize:2*piece.GroupSize]) {
		t.Errorf("the bytes written last are not read back, error %v", err)
	}
	if !b.Recheck(1) || b.Held() != piece.GroupSize {
		t.Errorf("held %v, %d bytes", b.Has(1), b.Held())
	}
}

func wrongShape(t *testing.T, s *store.Store) {
	data, d := sample()
	b := create(t, s, d, len(data))
	part, groups := Piece(data, 0)
	for name, err := range map[string]error{
		"short data":       b.Write(0, part[1:], groups),
		"short last piece": b.Write(4, part, groups),
		"no groups":        b.Write(0, part, nil),
		"negative index":   b.Write(-1, part, groups),
		"index too high":   b.Write(5, part, groups),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if b.Held() != 0 {
		t.Errorf("holds %d bytes", b.Held())
	}
}

func otherSize(t *testing.T, s *store.Store) {
	data, d := sample()
	create(t, s, d, len(data))
	_, err := s.Create(d, int64(len(data))+1)
	wantIs(t, err, store.ErrSize)
}

func emptyBlob(t *testing.T, s *store.Store) {
	b := create(t, s, digest.FromBytes(nil), 0)
	if !b.Complete() {
		t.Error("not complete")
	}
	if err := b.EnsureVerified(0, 0); err != nil {
		t.Error(err)
	}
}

func ownFile(t *testing.T, s *store.Store) {
	data, _ := sample()
	d := Fill(t, s, data)
	one, two := create(t, s, d, len(data)), create(t, s, d, len(data))
	fileOf := func(b *store.Blob) io.ReadSeeker {
		f, err := b.File()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if _, err := fileOf(one).Seek(100, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(fileOf(two))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("the second file is moved by the first: read %d of %d bytes, error %v", len(got), len(data), err)
	}
}

func waiterWakes(t *testing.T, s *store.Store) {
	data, d := sample()
	b := create(t, s, d, len(data))
	woken := make(chan bool)
	changed := b.Changed()
	go func() { // ends when the piece below comes
		<-changed
		woken <- b.Has(3)
	}()
	WritePiece(t, b, data, 3)
	if !<-woken {
		t.Error("woken before the piece was there")
	}
}

func dropped(t *testing.T, s *store.Store) {
	data, _ := sample()
	d := Fill(t, s, data)
	b, other := create(t, s, d, len(data)), create(t, s, d, len(data))
	changed := other.Changed()
	if err := errors.Join(b.Drop(), b.Drop()); err != nil {
		t.Fatal(err)
	}
	<-changed
	_, err := s.Get(d)
	wantIs(t, err, store.ErrNotFound)
	wantIs(t, other.EnsureVerified(0, 1), store.ErrNotFound)
	part, groups := Piece(data, 0)
	wantIs(t, other.Write(0, part, groups), store.ErrNotFound)

	fresh := create(t, s, d, len(data))
	if fresh.Held() != 0 {
		t.Errorf("the new blob holds %d bytes of the dropped one", fresh.Held())
	}
	WritePiece(t, fresh, data, 0)
	if other.Has(0) || !fresh.Has(0) {
		t.Error("the dropped blob and the new one are mixed up")
	}
}

func concurrentWriters(t *testing.T, s *store.Store) {
	data, d := Content(8, 24*piece.GroupSize-5)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			b, err := s.Create(d, int64(len(data)))
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Close()
			count := b.Layout().Count()
			for n := range count {
				i := piece.Index((n*(2*w+1) + w) % count) // overlapping, in different orders; count is even
				part, groups := Piece(data, i)
				if err := b.Write(i, part, groups); err != nil {
					t.Error(err)
				}
				off, length := b.Layout().Range(i)
				if err := b.EnsureVerified(off, length); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b := create(t, s, d, len(data))
	for i := range b.Layout().Count() {
		WritePiece(t, b, data, piece.Index(i))
		if !b.Recheck(piece.Index(i)) {
			t.Errorf("piece %d is bad on disk", i)
		}
	}
	if !b.Complete() {
		t.Errorf("holds %d of %d bytes", b.Held(), len(data))
	}
}

func hostileDigests(t *testing.T, s *store.Store) {
	for _, d := range []digest.Digest{"", "sha256:", "sha256:../../etc", "../x", "sha256:" + digest.Digest(bytes.Repeat([]byte("Z"), 64))} {
		if _, err := s.Create(d, 1); err == nil {
			t.Errorf("create %q: no error", d)
		}
		if _, err := s.Get(d); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("get %q: error %v", d, err)
		}
	}
	if _, err := s.Create(digest.FromString("x"), -1); err == nil {
		t.Error("negative size: no error")
	}
}
