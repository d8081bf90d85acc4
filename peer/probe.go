package peer

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/shoal-project/shoal/scheduler/api"
)

const (
	// probes is how often a round trip is measured: the shortest counts, since nothing but the way itself makes it longer than it is.
	probes = 3
	// probeTimeout is how long one takes at the most.
	probeTimeout = time.Second
)

// connectTime returns how long a connection to addr takes to come about: one round trip.
func connectTime(ctx context.Context, addr string) (time.Duration, error) {
	began := time.Now()
	c, err := (&net.Dialer{Timeout: probeTimeout}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, err
	}
	took := time.Since(began)
	_ = c.Close() // nothing was said
	return took, nil
}

// roundTrip returns the shortest of a few.
func (p *Peer) roundTrip(ctx context.Context, addr string) (best time.Duration, ok bool) {
	for range probes {
		took, err := p.cfg.RoundTrip(ctx, addr)
		if err != nil {
			return 0, false
		}
		if !ok || took < best {
			best, ok = took, true
		}
	}
	return best, ok
}

// probe measures the round trips to hosts, all at once, and tells the scheduler of those that were reached.
func (l *link) probe(ctx context.Context, s *api.Session, hosts []api.Host) {
	var (
		wg    sync.WaitGroup
		trips = make([]api.Trip, len(hosts))
	)
	for i, h := range hosts {
		wg.Go(func() {
			if took, ok := l.peer.roundTrip(ctx, h.Addr); ok {
				trips[i] = api.Trip{To: h.ID, US: max(took.Microseconds(), 1)}
			}
		})
	}
	wg.Wait()
	out := &api.Probed{Trips: []api.Trip{}}
	for _, t := range trips {
		if t.US > 0 {
			out.Trips = append(out.Trips, t)
		}
	}
	s.Send(api.Event{Probed: out})
}

// prober carries out what schedulers ask to be measured, one after the other, until ctx ends.
func (l *link) prober(ctx context.Context) {
	for {
		select {
		case p := <-l.probes:
			l.probe(ctx, p.session, p.hosts)
		case <-ctx.Done():
			return
		}
	}
}

// probing is what a scheduler asks to be measured.
type probing struct {
	session *api.Session
	hosts   []api.Host
}
