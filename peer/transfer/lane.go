package transfer

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lane is a connection as the serving end sees it: what was sent there last, and whether that has come. A handler is done with a range when
// the kernel has taken it, which may be long before.
type lane struct {
	raw syscall.RawConn

	// guarded by handler.mu
	busy  bool // last may be on its way
	sends bool // not all of it was sent yet
	last  upRange
	left  int       // bytes that were not acknowledged when they were counted last; 0 when they were not
	moved time.Time // when they were seen to become fewer
}

type laneKey struct{}

// ConnContext is for http.Server.ConnContext.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return ctx
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return ctx // closed already
	}
	return context.WithValue(ctx, laneKey{}, &lane{raw: raw})
}

// laneOf returns the connection of a request, nil when it is not known.
func laneOf(r *http.Request) *lane {
	l, _ := r.Context().Value(laneKey{}).(*lane)
	return l
}

// carry notes what is sent on the connection from now on.
func (l *lane) carry(r upRange) {
	if l != nil {
		l.busy, l.sends, l.last, l.left = true, true, r, 0
	}
}

// sent notes that all of what is carried was sent, or as much as will be.
func (l *lane) sent() {
	if l != nil {
		l.sends = false
	}
}

// carries reports whether a range that was sent on the connection is on its way still: it is being sent, if slowly because of a limit, or bytes of
// it have not been acknowledged and others were not long ago; and nothing else was asked for since.
func (l *lane) carries(now time.Time, r upRange) bool {
	if l == nil || !l.busy || l.last != r {
		return false
	}
	left := 0
	err := l.raw.Control(func(fd uintptr) {
		left, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) // zero when it fails
	})
	if err != nil || left <= 0 {
		return err == nil && l.sends
	}
	if l.left == 0 || left < l.left {
		l.left, l.moved = left, now
	}
	return now.Sub(l.moved) < DefaultStall // a receiver waits no longer either
}
