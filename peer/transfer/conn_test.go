package transfer

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// kept returns a connection that conns holds as idle, and its other end.
func kept(t *testing.T, p *conns, addr string, idle time.Duration) net.Conn {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() {
		_ = near.Close()
		_ = far.Close()
	})
	p.give(newConn(near, addr))
	list := p.idle[addr]
	list[len(list)-1].since = time.Now().Add(-idle)
	return far
}

// closed reports whether the other end of a pipe was closed; who has not been must not be read from.
func closed(far net.Conn) bool {
	_ = far.SetReadDeadline(time.Now().Add(time.Millisecond)) // a pipe has deadlines
	_, err := far.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

func TestConnectionsIdleForTooLongAreClosed(t *testing.T) {
	p := &conns{idle: map[string][]*conn{}}
	defer p.close()
	old, young, lone := kept(t, p, "a", 2*idleTime), kept(t, p, "a", 0), kept(t, p, "b", 2*idleTime)
	p.sweep()
	if !closed(old) || closed(young) || !closed(lone) {
		t.Errorf("closed are %v, %v and %v, want the old ones", closed(old), closed(young), closed(lone))
	}
	if len(p.idle) != 1 || len(p.idle["a"]) != 1 || p.sweeps == nil {
		t.Errorf("left are %v, swept again %v", p.idle, p.sweeps != nil)
	}
	c, err := p.take(t.Context(), "a")
	if err != nil || !c.used {
		t.Fatalf("the young one is not used again: %v", err)
	}
}

func TestNothingIsKeptAfterClose(t *testing.T) {
	p := &conns{idle: map[string][]*conn{}}
	before := kept(t, p, "a", 0)
	p.close()
	near, after := net.Pipe()
	p.give(newConn(near, "a"))
	if !closed(before) || !closed(after) || len(p.idle) > 0 {
		t.Errorf("closed are %v and %v, kept %d", closed(before), closed(after), len(p.idle))
	}
}

func TestConnectionsToOnePeerAreBounded(t *testing.T) {
	p := &conns{idle: map[string][]*conn{}}
	defer p.close()
	for range idleConnections {
		kept(t, p, "a", 0)
	}
	near, far := net.Pipe()
	p.give(newConn(near, "a"))
	if !closed(far) || len(p.idle["a"]) != idleConnections {
		t.Errorf("%d are kept, want %d", len(p.idle["a"]), idleConnections)
	}
	p.forget("a")
	if len(p.idle) > 0 {
		t.Errorf("%d are kept of a peer whose connections are dead", len(p.idle["a"]))
	}
}

func TestHavesPauseUntilTwoPiecesCanBeExpected(t *testing.T) {
	const interval = 20 * time.Millisecond
	for _, test := range []struct {
		name   string
		since  time.Duration
		gained int
		want   time.Duration
	}{
		{"many pieces in an interval", interval, 8, interval},
		{"a piece in 15 ms", 30 * time.Millisecond, 2, 30 * time.Millisecond},
		{"a piece in an interval", interval, 1, 2 * interval},
		{"a piece a second", time.Second, 1, 3 * interval},
		{"pieces were lost", interval, -3, 2 * interval},
	} {
		if got := pauseAfter(test.since, test.gained, interval); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}
