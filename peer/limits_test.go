package peer_test

import (
	"testing"
	"time"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/limits"
	"github.com/shoal-project/shoal/peer/peertest"
)

// atMost fails when n bytes came faster than the rate lets them, with a tenth for what was read ahead.
func atMost(t *testing.T, began time.Time, n int64, rate limits.Rate) {
	t.Helper()
	got, least := time.Since(began), time.Duration(float64(n)/float64(rate)*float64(time.Second))
	t.Logf("%d bytes in %v, at the rate %v", n, got, least)
	if got < least*9/10 {
		t.Errorf("%d bytes came in %v, at the rate it takes %v", n, got, least)
	}
}

func TestAllReadersTogetherKeepToTheClustersOriginRate(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		const rate = 2 << 20
		s.Server.SetOriginRate(rate)
		s.Host(peertest.Seed)
		s.Host(peertest.Seed)
		h := s.Host()
		began := time.Now()
		readAll(t, b, data, h)
		atMost(t, began, b.Size-mib/2, rate)
		if got := s.Origin.Copies(b); got != 1 {
			t.Errorf("%.2f copies left the origin", got)
		}
	})
}

func TestDiskLimitHoldsBackWhatOthersSend(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(5*mib, 1)
	b = s.Origin.WithMap(t, b, data)
	readAll(t, b, data, s.Host(peertest.Seed))
	l, err := limits.New(limits.Rates{DiskWrite: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	readAll(t, b, data, s.Host(peertest.Limits(l)))
	atMost(t, began, b.Size-mib/2, 2<<20)
	if got := s.Origin.Copies(b); got != 1 {
		t.Errorf("%.2f copies left the origin: the limit was taken for a dead parent", got)
	}
}

func TestLoneHostKeepsToItsSourceLimit(t *testing.T) {
	s := peertest.NewSwarm(t)
	b, data := s.Origin.Random(5*mib, 1)
	l, err := limits.New(limits.Rates{Source: 10 << 20, SourcePerTask: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	readAll(t, b, data, s.Host(peertest.Lone, peertest.Limits(l)))
	atMost(t, began, b.Size-mib/2, 2<<20)
}
