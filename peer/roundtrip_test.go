package peer

import (
	"context"
	"net"
	"testing"
	"time"
)

func TestRoundTripIsWhatAConnectionTakes(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if took, err := connectTime(t.Context(), l.Addr().String()); err != nil || took <= 0 || took > probeTimeout {
		t.Errorf("took %v, %v", took, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if took, err := connectTime(t.Context(), l.Addr().String()); err == nil {
		t.Errorf("took %v to where nobody listens", took)
	}
}

func TestShortestOfAFewRoundTripsCounts(t *testing.T) {
	p := &Peer{cfg: Config{RoundTrip: sequence(30*time.Millisecond, time.Millisecond, 20*time.Millisecond)}}
	if got, ok := p.roundTrip(t.Context(), "h:1"); got != time.Millisecond || !ok {
		t.Errorf("got %v, %v", got, ok)
	}
}

// sequence answers with the given times, one after the other.
func sequence(times ...time.Duration) func(context.Context, string) (time.Duration, error) {
	return func(context.Context, string) (time.Duration, error) {
		took := times[0]
		times = append(times[1:], took)
		return took, nil
	}
}
