package peer_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/peertest"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/scheduler/api"
)

func TestBlobIsReadableAgainAfterTheOriginWasCorrupt(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		h := s.Host()
		s.Origin.Lock()
		s.Origin.Corrupt = true
		s.Origin.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := h.Read(ctx, b); !errors.Is(err, piece.ErrMismatch) {
			t.Fatalf("error %v, want a mismatch", err)
		}
		s.Origin.Lock()
		s.Origin.Corrupt = false
		s.Origin.Unlock()
		readAll(t, b, data, h)
	})
}

func TestFailedTaskIsTriedAgainForTheNextReader(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		h := s.Host(peertest.Lone)
		s.Origin.Lock()
		s.Origin.Err = piece.ErrAbsent
		s.Origin.Unlock()
		if _, err := h.Read(t.Context(), b); !errors.Is(err, piece.ErrAbsent) {
			t.Fatalf("error %v, want absent", err)
		}
		s.Origin.Lock()
		s.Origin.Err = nil
		s.Origin.Unlock()
		readAll(t, b, data, h)
	})
}

func TestHiccupOfTheOriginFailsNobody(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		for _, h := range []*peertest.Host{s.Host(), s.Host(peertest.Lone)} {
			s.Origin.Lock()
			s.Origin.Err = piece.ErrTransient
			s.Origin.Unlock()
			time.AfterFunc(300*time.Millisecond, func() {
				s.Origin.Lock()
				defer s.Origin.Unlock()
				s.Origin.Err = nil
			})
			readAll(t, b, data, h)
		}
	})
}

func TestLoneHostDoesNotHammerTheOrigin(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, _ := s.Origin.Random(5*mib, 1)
	h := s.Host(peertest.Lone)
	s.Origin.Lock()
	s.Origin.Err = piece.ErrTransient
	s.Origin.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, _ = h.Read(ctx, b) // fails
	if got := h.Counter(t, "shoal_peer_unleased_reads_total", ""); got > 5 {
		t.Errorf("the origin was asked %.0f times within a second", got)
	}
}

// scripted is a scheduler that tells each host the same commands and takes no notice of what it says.
func scripted(t *testing.T, commands ...api.Command) *api.Client {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/events") {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		enc := json.NewEncoder(w)
		_ = enc.Encode(api.Command{Welcome: &api.Welcome{Session: "s"}})
		for _, c := range commands {
			_ = enc.Encode(c)
		}
		for r.Context().Err() == nil {
			_ = http.NewResponseController(w).Flush()
			time.Sleep(200 * time.Millisecond) // a sign of life
			_ = enc.Encode(api.Command{})
		}
	}))
	t.Cleanup(web.Close)
	return api.NewClient(web.URL, "")
}

func lease(b peer.Blob, run api.Run) api.Command {
	spec, _ := json.Marshal(map[string]any{"size": b.Size, "origin": b.Origin})
	return api.Command{Lease: &api.Lease{Task: api.Task{ID: b.Digest.String(), Pieces: piece.NewLayout(b.Size).Count(), Origin: spec}, Run: run}}
}

// runPeer runs a peer over a fresh store with the given scheduler and returns how it ends.
func runPeer(ctx context.Context, t *testing.T, origin *peertest.Origin, scheduler *api.Client) (*peer.Peer, <-chan error) {
	t.Helper()
	st, err := store.Open(t.TempDir(), store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	p, err := peer.New(peer.Config{Host: api.Host{ID: "h", Addr: "127.0.0.1:1"}}, st, nil, origin, peertest.Fixed{scheduler})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }() // ends with ctx, whose cancellation each test waits for
	return p, done
}

func TestLeaseOfPiecesThatDoNotExistIsHarmless(t *testing.T) {
	origin := peertest.NewOrigin()
	b, data := origin.Random(mib, 1)
	b = origin.WithMap(t, b, data)
	ctx, cancel := context.WithCancel(t.Context())
	layer := peer.Blob{Digest: b.Origin.Map.Layer, Size: b.Origin.Map.Size, Origin: peer.Origin{Registry: "origin", Repository: "r"}}
	_, done := runPeer(ctx, t, origin, scripted(t, lease(layer, api.Run{0, 1}), lease(b, api.Run{-5, 2}), lease(b, api.Run{3, 1000}), lease(b, api.Run{7, 7}), lease(b, api.Run{3, 1})))
	for i := 0; origin.Copies(b) < 0.75 && i < 3000; i++ {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := origin.Copies(b); got != 0.75 {
		t.Errorf("%.2f of the blob was read, want the three pieces that exist", got)
	}
}

func TestLeaseDuringShutdownDoesNotHoldItUp(t *testing.T) {
	origin := peertest.NewOrigin()
	var commands []api.Command
	for i := range 500 {
		commands = append(commands, lease(peer.Blob{Digest: digest.FromString(fmt.Sprint(i)), Size: mib,
			Origin: peer.Origin{Registry: "origin", Repository: "r"}}, api.Run{0, 1}))
	}
	ctx, cancel := context.WithCancel(t.Context())
	p, done := runPeer(ctx, t, origin, scripted(t, commands...))
	for i := 0; !p.Connected() && i < 3000; i++ {
		time.Sleep(time.Millisecond)
	}
	cancel()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the peer still runs 10 s after it was told to stop")
	}
}

func TestSeedThatClaimsPiecesBehindTheEndIsHarmless(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(3*mib, 1)
	s.Host(peertest.Seed, peertest.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/haves") {
				next.ServeHTTP(w, r)
				return
			}
			all := []byte{1, 0, 0, 0, 4 + 128, 0, 0, 4, 0} // a bitmap of 1024 pieces, all held
			all = append(all, make([]byte, 128)...)
			for i := range 128 {
				all[9+i] = 0xff
			}
			binary.BigEndian.PutUint32(all[1:], 4+128)
			_, _ = w.Write(all)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
	}))
	h := s.Host()
	s.Scheduler.Kill()
	for h.Connected() {
		time.Sleep(time.Millisecond)
	}
	readAll(t, b, data, h)
}

func TestPiecesThatContradictTheReadersDigestsAreDropped(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(5*mib, 1)
	h := s.Host()
	st, err := h.Store.Create(b.Digest, b.Size)
	if err != nil {
		t.Fatal(err)
	}
	wrong := make([]byte, 256<<10) // left by a reader that never came to the end
	if err := st.Write(0, wrong, piece.HashGroups(wrong)); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	seed := s.Host(peertest.Seed)
	readAll(t, b, data, seed)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if got, err := h.Read(ctx, b); err == nil && string(got) != string(data) {
		t.Error("wrong bytes were delivered as a whole blob")
	}
	readAll(t, b, data, h)
}

func TestOriginThatStoodStillIsNotReadByEverybodyToTheEnd(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(60*mib, 1)
	b = s.Origin.WithMap(t, b, data)
	layer := peer.Blob{Digest: b.Origin.Map.Layer, Size: b.Origin.Map.Size, Origin: peer.Origin{Registry: "origin", Repository: "r"}}
	impatient := peertest.SelfAfter(100 * time.Millisecond)
	hosts := []*peertest.Host{s.Host(peertest.Seed), s.Host(impatient), s.Host(impatient), s.Host(impatient)}
	for _, h := range hosts {
		if _, err := h.Read(t.Context(), layer); err != nil {
			t.Fatal(err)
		}
	}
	shut := make(chan struct{})
	s.Origin.Lock()
	s.Origin.Gate, s.Origin.Pace = shut, time.Millisecond
	s.Origin.Unlock()
	time.AfterFunc(1500*time.Millisecond, func() { close(shut) })
	readAll(t, b, data, hosts[1:]...)
	if got := s.Origin.Copies(b); got > 2.5 { // each host has begun two runs of 4 MiB
		t.Errorf("%.2f copies left the origin", got)
	}
}
