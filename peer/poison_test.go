package peer_test

import (
	"testing"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/peertest"
	"github.com/shoal-project/shoal/peer/piece"
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
