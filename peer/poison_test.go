package peer_test

import (
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/peertest"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
)

// poison has a host store other bytes under the digest of b, as an image does whose maker has a registry that serves them and a chunk
// map that fits them.
func poison(t *testing.T, h *peertest.Host, b peer.Blob) {
	t.Helper()
	st, err := h.Store.Create(b.Digest, b.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for i := range piece.Index(st.Layout().Count()) {
		_, n := st.Layout().Range(i)
		evil := make([]byte, n)
		if err := st.Write(i, evil, piece.HashGroups(evil)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestChunkMapOfOneImageDoesNotDecideForAnother(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		h := s.Host()
		poison(t, h, b)
		readAll(t, b, data, h)
	})
}

func TestSeedDoesNotTellTheDigestsOfAnotherImagesChunkMap(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		dead := s.Host(peertest.Seed)
		poison(t, dead, b)
		dead.Kill()
		s.Host(peertest.Seed, peertest.Dir(dead.Dir)) // announces what it finds
		s.Host(peertest.Seed)
		readAll(t, b, data, s.Host())
	})
}

// An image that is mounted has a pin, and reads on by what it said.
func TestSizeThatOneImageClaimsDropsNothingThatIsPinned(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		h := s.Host(peertest.Lone)
		if err := readRange(t.Context(), h, b, mib, data[mib:][:4096]); err != nil {
			t.Fatal(err)
		}
		if err := h.Store.Pin(b.Digest, "test"); err != nil {
			t.Fatal(err)
		}
		wrong := b
		wrong.Size, wrong.Origin.Map = 7, nil
		for range 2 { // the second finds no task that might not have ended
			if _, err := h.Read(t.Context(), wrong); err == nil {
				t.Error("seven bytes were read of it")
			}
		}
		held, err := h.Store.Get(b.Digest)
		if err != nil {
			t.Fatalf("what is pinned is gone: %v", err)
		}
		defer held.Close()
		if held.Layout().Size != b.Size || held.Held() == 0 {
			t.Errorf("%d of %d bytes are held", held.Held(), held.Layout().Size)
		}
		readAll(t, b, data, h)
	})
}

func TestSizeThatOneImageClaimsDoesNotDecideForAnother(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		h := s.Host(peertest.Lone)
		st, err := h.Store.Create(b.Digest, 7)
		if err != nil {
			t.Fatal(err)
		}
		short := make([]byte, 7)
		if err := st.Write(0, short, piece.HashGroups(short)); err != nil {
			t.Fatal(err)
		}
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
		readAll(t, b, data, h)
	})
}

// While a blob is read by the chunk map of one image, another image's reader joins only if its map says the same.
func TestReadersWithOtherChunkMapsAreRefusedWhileTheBlobIsRead(t *testing.T) {
	s := peertest.NewSwarm(t)
	plain, data := s.Origin.Random(3*mib, 1)
	good, evil := s.Origin.WithMap(t, plain, data), s.Origin.WithMap(t, plain, make([]byte, len(data)))
	same := good // of another image: another layer with the same map
	layer, err := s.Origin.Fetch(t.Context(), source.Blob{Digest: good.Origin.Map.Layer}, 0, good.Origin.Map.Size, "")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(layer)
	if err != nil {
		t.Fatal(err)
	}
	other := s.Origin.Add(append(raw, make([]byte, 1024)...))
	same.Origin.Map = &peer.MapRef{Layer: other.Digest, Size: other.Size}
	h := s.Host(peertest.Lone)
	for _, tc := range []struct{ first, second peer.Blob }{{evil, good}, {good, evil}} {
		first, err := h.Open(t.Context(), tc.first, "")
		if err != nil {
			t.Fatal(err)
		}
		if second, err := h.Open(t.Context(), tc.second, ""); !errors.Is(err, piece.ErrMismatch) {
			t.Errorf("opened by another map: %v, %v", second, err)
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
	}
	first, err := h.Open(t.Context(), good, "")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	readAll(t, same, data, h)
}

func TestPinnedBlobIsNotDroppedForAnotherImage(t *testing.T) {
	s := peertest.NewSwarm(t)
	plain, data := s.Origin.Random(3*mib, 1)
	good, evil := s.Origin.WithMap(t, plain, data), s.Origin.WithMap(t, plain, make([]byte, len(data)))
	first := s.Host(peertest.Lone)
	readAll(t, good, data, first)
	if err := first.Store.Pin(good.Digest, "test"); err != nil {
		t.Fatal(err)
	}
	first.Kill()
	h := s.Host(peertest.Lone, peertest.Dir(first.Dir))
	if r, err := h.Open(t.Context(), evil, ""); !errors.Is(err, piece.ErrMismatch) {
		t.Errorf("opened by another map: %v, %v", r, err)
	}
	s.Origin.Lock()
	s.Origin.Err = errors.New("down")
	s.Origin.Unlock()
	readAll(t, good, data, h)
}

func TestCredentialsGoToNoOtherRegistry(t *testing.T) {
	s := peertest.NewSwarm(t)
	good, data := s.Origin.Random(3*mib, 1)
	elsewhere := good
	elsewhere.Origin = peer.Origin{Registry: "elsewhere", Repository: "x"}
	h := s.Host(peertest.Lone)
	first, err := h.Open(t.Context(), elsewhere, "")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := h.Open(t.Context(), good, "Basic secret")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	readAll(t, good, data, h)
	s.Origin.Lock()
	defer s.Origin.Unlock()
	if slices.Contains(s.Origin.Shown, "elsewhere/x Basic secret") || !slices.Contains(s.Origin.Shown, "origin/r Basic secret") && !slices.Contains(s.Origin.Shown, "origin/r ") {
		t.Errorf("read with %q", s.Origin.Shown)
	}
}

// TestBlobIsNotReadByAnotherSize opens a blob by a manifest that lies of its size: whoever got the blob's start for all of it would have wrong bytes.
func TestBlobIsNotReadByAnotherSize(t *testing.T) {
	s := peertest.NewSwarm(t)
	good, data := s.Origin.Random(3*mib, 1)
	h := s.Host(peertest.Lone)
	readAll(t, good, data, h)
	for _, size := range []int64{7, 1 << 40} {
		wrong := good
		wrong.Size = size
		if r, err := h.Open(t.Context(), wrong, ""); err == nil {
			t.Errorf("opened with %d bytes while the task of the right size lingers, or after it: %v", size, r.Close())
		}
		first, err := h.Open(t.Context(), good, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Open(t.Context(), wrong, ""); !errors.Is(err, piece.ErrMismatch) {
			t.Errorf("opened with %d bytes beside a reader: %v", size, err)
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
	}
	readAll(t, good, data, h)
}

// Group digests are asked for to find what is wrong in a piece: from who knows that its own are right.
func TestGroupDigestsThatNobodyVouchedForAreNotTold(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(mib, 1)
	h := s.Host(peertest.Lone)
	poison(t, h, b)
	if _, err := h.Served().Groups(b.Digest, 0); !errors.Is(err, piece.ErrAbsent) {
		t.Errorf("error %v, want that there are none", err)
	}
	readAll(t, b, data, h) // finds what is wrong, reads it again, and vouches for it
	if got, err := h.Served().Groups(b.Digest, 0); err != nil || piece.Root(got) != piece.Root(piece.HashGroups(data[:256<<10])) {
		t.Errorf("digests %v, error %v; want those of what is right", got, err)
	}
}
