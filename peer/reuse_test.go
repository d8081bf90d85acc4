package peer_test

import (
	"bytes"
	"io"
	"path/filepath"
	"testing"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/limits"
	"github.com/shoal-project/shoal/peer/peertest"
	"github.com/shoal-project/shoal/peer/piece"
)

// versions returns two versions of a blob, of which the second has one MiB rewritten and some bytes put in behind that.
func versions(t *testing.T, s *peertest.Swarm, size int) (v1, v2 peer.Blob, data1, data2 []byte) {
	t.Helper()
	v1, data1 = s.Origin.Random(size, 1)
	_, change := peertest.NewOrigin().Random(mib+100, 2)
	at := size / 2
	data2 = bytes.Join([][]byte{data1[:at], change, data1[at+mib:]}, nil)
	v2 = s.Origin.Add(data2)
	return s.Origin.WithMap(t, v1, data1), s.Origin.WithMap(t, v2, data2), data1, data2
}

func read(t *testing.T, h *peertest.Host, from string) int64 {
	t.Helper()
	return int64(h.Counter(t, "shoal_peer_read_bytes_total", from))
}

// TestOnlyTheChangedChunksOfANewVersionTravel brings a second version to hosts that hold the first.
func TestOnlyTheChangedChunksOfANewVersionTravel(t *testing.T) {
	s := peertest.NewSwarm(t)
	v1, v2, data1, data2 := versions(t, s, 32*mib)
	hosts := []*peertest.Host{s.Host(peertest.Seed), s.Host(), s.Host(), s.Host()}
	readAll(t, v1, data1, hosts...)
	before := map[*peertest.Host][3]int64{}
	for _, h := range hosts {
		before[h] = [3]int64{read(t, h, "peer"), read(t, h, "source"), read(t, h, "local")}
	}
	readAll(t, v2, data2, hosts...)

	// A change reaches to the ends of the pieces it touches, and the chunks at its ends, of 64 KiB in the mean and 256 KiB at most, are new.
	const most = mib + 100 + 2*256<<10 + 2*piece.GroupSize
	served := int64(s.Origin.Copies(v2) * float64(v2.Size))
	t.Logf("of %d bytes %d left the origin", v2.Size, served)
	if served > most {
		t.Errorf("%d bytes of the new version left the origin, want at most %d", served, most)
	}
	for i, h := range hosts {
		peers, source := read(t, h, "peer")-before[h][0], read(t, h, "source")-before[h][1]
		maps := v2.Origin.Map.Size // the layer with the chunk map is new
		if got := peers + source - maps; got > most {
			t.Errorf("host %d received %d bytes of the new version, want at most %d", i, got, most)
		}
		if got := read(t, h, "local") - before[h][2]; got < v2.Size-most {
			t.Errorf("host %d put %d bytes together itself, want at least %d", i, got, v2.Size-most)
		}
	}
}

func TestDamagedSourceOfAReusedChunkIsFoundAndTheBytesFetched(t *testing.T) {
	s := peertest.NewSwarm(t)
	v1, v2, data1, data2 := versions(t, s, 8*mib)
	h := s.Host()
	readAll(t, v1, data1, h)
	flipAt(t, h.Dir, len(data1), 100)
	readAll(t, v2, data2, h)
	if got := h.Counter(t, "shoal_store_verify_failures_total", ""); got != 1 {
		t.Errorf("%v bad pieces were found, want 1", got)
	}
	readAll(t, v1, data1, h) // it is repaired
}

func TestReuseFindsWhatTheDiskHoldsAfterARestart(t *testing.T) {
	s := peertest.NewSwarm(t)
	v1, v2, data1, data2 := versions(t, s, 8*mib)
	h := s.Host()
	readAll(t, v1, data1, h)
	h.Kill()
	again := s.Host(peertest.Dir(h.Dir))
	readAll(t, v2, data2, again)
	if got := read(t, again, "local"); got < v2.Size*3/4 {
		t.Errorf("%d of %d bytes were put together", got, v2.Size)
	}
}

func TestGarbageInTheChunkIndexOnlyCostsTheReuse(t *testing.T) {
	s := peertest.NewSwarm(t)
	v1, v2, data1, data2 := versions(t, s, 8*mib)
	h := s.Host()
	readAll(t, v1, data1, h)
	path := filepath.Join(h.Dir, v1.Digest.Algorithm().String()+"-"+v1.Digest.Encoded(), "chunks")
	overwriteFile(t, path, func(data []byte) { // the second chunk claims to be the first
		copy(data[16+36:16+36+36], data[16:16+36])
	})
	readAll(t, v2, data2, h)
}

func TestReaderOfTheChangeDoesNotWaitForTheCopies(t *testing.T) {
	s := peertest.NewSwarm(t)
	v1, v2, data1, data2 := versions(t, s, 16*mib)
	l := limits.None()
	h := s.Host(peertest.Limits(l))
	readAll(t, v1, data1, h)
	if err := l.Set(limits.Rates{DiskWrite: 4 << 20}); err != nil { // the copies take four seconds
		t.Fatal(err)
	}
	r, err := h.Open(t.Context(), v2, "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	buf := make([]byte, 1000)
	if _, err := r.ReadAt(t.Context(), buf, 8*mib+mib/2); err != nil || !bytes.Equal(buf, data2[8*mib+mib/2:][:1000]) {
		t.Fatalf("the changed bytes: %v", err)
	}
	if got := read(t, h, "local"); got > 12*mib {
		t.Errorf("the reader waited for %d bytes of copies", got)
	}
	if err := l.Set(limits.Rates{}); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r.Section(t.Context())); err != nil || !bytes.Equal(got, data2) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}
