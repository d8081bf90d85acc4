package peer_test

import (
	"testing"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/peertest"
)

func TestListedHostsShareWithoutAScheduler(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		s.Scheduler.Kill()
		hosts := s.Listed(4)
		readAll(t, b, data, hosts...)
		if got := s.Origin.Copies(b); got != 1 {
			t.Errorf("%.2f copies left the origin, want 1", got)
		}
	})
}

func TestListedHostsShareAURLAndWhatTheyHoldWhenTheOriginIsGone(t *testing.T) {
	s, site := peertest.NewSwarm(t), newWebsite(t, 3*mib)
	hosts := s.Listed(3)
	b := site.blob(t, nil)
	readAll(t, b, site.data, hosts[:2]...)
	if got := site.copies(b); !near(got) {
		t.Errorf("%.3f copies left the origin", got)
	}
	site.CloseClientConnections()
	site.Close()
	readAll(t, b, site.data, hosts[2])
}

func TestListedHostThatIsDeadStopsNobody(t *testing.T) {
	kinds(t, func(t *testing.T, s *peertest.Swarm, b peer.Blob, data []byte) {
		hosts := s.Listed(3)
		for _, dead := range hosts[1:] { // whoever wins, it is dead in some of the runs
			dead.Kill()
		}
		readAll(t, b, data, hosts[0])
	})
}

func TestListedHostsDoNotFetchWhatNobodyThereWants(t *testing.T) {
	s := peertest.NewSwarm(t)
	hosts := s.Listed(6)
	b, data := s.Origin.Random(3*mib, 9)
	readAll(t, b, data, hosts[0])
	holders := 0
	for _, h := range hosts {
		holders += len(h.Store.List())
	}
	if holders > 2 {
		t.Errorf("%d hosts hold what one wanted; its reader and its seed are enough", holders)
	}
}
