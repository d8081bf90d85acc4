package store_test

import (
	"errors"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

// fillOne puts a blob of n bytes into s.
func fillOne(t testing.TB, s *store.Store, seed uint64, n int) digest.Digest {
	t.Helper()
	data, _ := storetest.Content(seed, n)
	return storetest.Fill(t, s, data)
}

func digests(s *store.Store) map[digest.Digest]bool {
	out := map[digest.Digest]bool{}
	for _, info := range s.List() {
		out[info.Digest] = true
	}
	return out
}

func TestLeastRecentlyUsedBlobMakesRoom(t *testing.T) {
	s := open(t, t.TempDir(), store.Config{MaxBytes: 3000})
	a, b, c := fillOne(t, s, 1, 1000), fillOne(t, s, 2, 1000), fillOne(t, s, 3, 1000)
	if err := get(t, s, a).Close(); err != nil { // used again: b is now the oldest
		t.Fatal(err)
	}
	d := fillOne(t, s, 4, 900)
	if diff := cmp.Diff(map[digest.Digest]bool{a: true, c: true, d: true}, digests(s)); diff != "" {
		t.Errorf("blobs (-want +got):\n%s", diff)
	}
	if _, err := s.Get(b); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("evicted blob: %v", err)
	}
	if got := s.Usage().Reserved; got != 2900 {
		t.Errorf("reserved %d bytes, want 2900", got)
	}
}

func TestOpenBlobIsNeverEvicted(t *testing.T) {
	s := open(t, t.TempDir(), store.Config{MaxBytes: 2000})
	a := fillOne(t, s, 1, 1000)
	pinned := get(t, s, a)
	b := fillOne(t, s, 2, 1000)
	if _, err := s.Create(digest.FromString("too large beside a"), 1001); !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("error %v, want ErrNoSpace", err)
	}
	if !digests(s)[b] {
		t.Error("a blob was evicted for one that could not fit")
	}
	c := fillOne(t, s, 3, 1000)
	if diff := cmp.Diff(map[digest.Digest]bool{a: true, c: true}, digests(s)); diff != "" {
		t.Errorf("blobs (-want +got):\n%s", diff)
	}
	if err := pinned.EnsureVerified(0, 1000); err != nil {
		t.Error(err)
	}
}

func TestOrderOfUseSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, store.Config{})
	a, b := fillOne(t, s, 1, 1000), fillOne(t, s, 2, 1000)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for d, used := range map[digest.Digest]time.Time{a: now, b: now.Add(-time.Hour)} {
		if err := os.Chtimes(fileOf(dir, d, "index"), used, used); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir, store.Config{MaxBytes: 2000})
	c := fillOne(t, s, 3, 1000)
	if diff := cmp.Diff(map[digest.Digest]bool{a: true, c: true}, digests(s)); diff != "" {
		t.Errorf("blobs (-want +got):\n%s", diff)
	}
}

func TestPercentBoundsToAShareOfTheFileSystem(t *testing.T) {
	s := open(t, t.TempDir(), store.Config{MaxPercent: 1})
	var st unix.Statfs_t
	if err := unix.Statfs(t.TempDir(), &st); err != nil {
		t.Fatal(err)
	}
	free := int64(st.Bavail) * st.Bsize
	if _, err := s.Create(digest.FromString("two percent"), free/50); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("error %v, want ErrNoSpace", err)
	}
	fillOne(t, s, 1, 1000)
}

// tmpfs mounts a small file system and returns its folder.
func tmpfs(t *testing.T, size int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+strconv.Itoa(size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestRootStoreConformsOnTmpfs(t *testing.T) {
	storetest.Run(t, func(t *testing.T) *store.Store { return open(t, tmpfs(t, 32<<20), store.Config{}) })
}

func TestRootFullDiskEvictsThenRefusesAndKeepsWhatItHas(t *testing.T) {
	dir := tmpfs(t, 4<<20)
	s := open(t, dir, store.Config{MaxPercent: 100})
	old := fillOne(t, s, 1, piece.GroupSize)

	// Others take the disk after the blob was given room: half of it is lost to both.
	data, d := storetest.Content(2, 3<<20)
	b, err := s.Create(d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := os.WriteFile(dir+"/others", make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range b.Layout().Count() {
		part, groups := storetest.Piece(data, piece.Index(i))
		if err = b.Write(piece.Index(i), part, groups); err != nil {
			break
		}
	}
	if !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("error %v, want ErrNoSpace", err)
	}
	if digests(s)[old] {
		t.Error("gave up before evicting the blob that nobody uses")
	}
	if n := b.Have().Count(); n == 0 || b.Complete() {
		t.Errorf("holds %d pieces, complete %v", n, b.Complete())
	}
	for i := range b.Have().All() {
		if !b.Recheck(i) {
			t.Errorf("piece %d is bad", i)
		}
	}
	if err := os.Remove(dir + "/others"); err != nil {
		t.Fatal(err)
	}
	for i := range b.Have().Missing() {
		storetest.WritePiece(t, b, data, i)
	}
	if !b.Complete() {
		t.Error("not complete although the disk has room again")
	}
}

func TestWhatIsBesideTheBlobsCountsAndEvicts(t *testing.T) {
	s := open(t, t.TempDir(), store.Config{MaxBytes: 3000})
	a, b := fillOne(t, s, 1, 1000), fillOne(t, s, 2, 1000)
	held := get(t, s, b)
	if err := s.Reserve(1500); err != nil {
		t.Fatal(err)
	}
	if digests(s)[a] || !digests(s)[b] {
		t.Errorf("blobs %v, want only the one that is in use", digests(s))
	}
	if err := s.Reserve(501); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("error %v, want ErrNoSpace", err)
	}
	if _, err := s.Create(digest.FromString("too large"), 501); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("error %v, want ErrNoSpace", err)
	}
	s.Count(-1500)
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if got := s.Usage(); got.Beside != 0 || got.Reserved != 1000 {
		t.Errorf("%d bytes of blobs and %d beside, want 1000 and 0", got.Reserved, got.Beside)
	}
	fillOne(t, s, 3, 2000)
}
