package peer_test

import (
	"testing"
	"time"

	"github.com/shoal-project/shoal/peer/peertest"
)

// What is under way on a connection has left the origin: to close it behind a piece that came meanwhile would waste that.
func TestStreamFromTheOriginIsReadOnBehindAPieceThatCameMeanwhile(t *testing.T) {
	s := peertest.NewSwarm(t)
	s.Origin.Pace = 5 * time.Millisecond
	b, data := s.Origin.Random(16*mib, 9)
	h := s.Host(peertest.Seed)
	whole, err := h.Open(t.Context(), b, "")
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	if _, err := whole.Await(t.Context(), 0, b.Size); err != nil {
		t.Fatal(err)
	}
	if err := readRange(t.Context(), h, b, 12*mib, data[12*mib:][:4096]); err != nil {
		t.Fatal(err)
	}
	if have := h.Counter(t, "shoal_peer_read_bytes_total", "source"); have > 11*mib {
		t.Fatalf("the range came after %.0f bytes, with the stream", have)
	}
	readAll(t, b, data, h)
	s.Origin.Lock()
	defer s.Origin.Unlock()
	if got := len(s.Origin.Shown); got != 2 {
		t.Errorf("the origin was asked %d times, want once for all and once for the range", got)
	}
	const piece = 256 << 10
	if got := s.Origin.Served[b.Digest]; got != b.Size+piece {
		t.Errorf("%d bytes left the origin, want the %d of the blob and %d for the range", got, b.Size, piece)
	}
	if got := h.Counter(t, "shoal_peer_read_bytes_total", "source"); int64(got) != b.Size+piece {
		t.Errorf("the host counts %.0f bytes from the origin, want %d", got, b.Size+piece)
	}
}
