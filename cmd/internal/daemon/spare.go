package daemon

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"
)

// turnAwayFor is how long callers are turned away after the process could open no more files, before it is seen whether it can again.
const turnAwayFor = 100 * time.Millisecond

// sparing is a listener that keeps a descriptor in reserve. When the process may open no more files, it accepts callers by that one and
// closes their connections at once: containerd then goes to the origin, where else it would wait in the queue for as long as that lasts.
type sparing struct {
	*net.TCPListener

	spare *os.File // nil when it was lost to somebody else
	log   *slog.Logger
}

// newSparing returns l as a sparing listener, if it is one of TCP. Only one goroutine may accept.
func newSparing(l net.Listener, log *slog.Logger) net.Listener {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return l
	}
	s := &sparing{TCPListener: tcp, log: log}
	s.reserve()
	return s
}

// Accept implements net.Listener.
func (l *sparing) Accept() (net.Conn, error) {
	for {
		conn, err := l.TCPListener.Accept()
		if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
			return conn, err
		}
		if l.spare == nil {
			l.reserve()
		}
		if l.spare == nil {
			return nil, err // the server tries again a little later
		}
		l.turnAway()
	}
}

// Close implements net.Listener.
func (l *sparing) Close() error {
	return l.TCPListener.Close() // the spare goes with the process: Accept may be using it
}

func (l *sparing) turnAway() {
	_ = l.spare.Close() // opened for reading
	l.spare = nil
	turned := 0
	_ = l.SetDeadline(time.Now().Add(turnAwayFor)) // a closed listener fails Accept too
	for {
		conn, err := l.TCPListener.Accept()
		if err != nil {
			break
		}
		_ = conn.Close() // nothing was written
		turned++
	}
	_ = l.SetDeadline(time.Time{})
	l.reserve()
	if turned > 0 {
		l.log.Error("callers turned away: this daemon may open no more files; raise LimitNOFILE", "callers", turned)
	}
}

func (l *sparing) reserve() {
	if f, err := os.Open(os.DevNull); err == nil {
		l.spare = f
	}
}
