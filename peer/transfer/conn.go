package transfer

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	idleTime  = time.Minute // of a connection; servers wait longer
	maxHeader = 64 << 10    // bytes of an answer's
	// maxAwaited is the most bytes a reader sleeps for. A window larger than that the kernel may not open.
	maxAwaited = 256 << 10
)

// conn is a connection to a peer for one request after the other, without the two goroutines that net/http's client has for each: a piece
// is a short answer, and waking them costs more than receiving it. It is used by one goroutine at a time.
type conn struct {
	net.Conn
	addr    string
	head    io.LimitedReader // of Conn: bounds what is read for a header
	r       *bufio.Reader    // of head
	raw     syscall.RawConn  // nil when the socket cannot be told how many bytes are worth waking for
	awaited int              // that number, as the socket knows it
	used    bool             // it has answered a request
	since   time.Time        // when it became idle
	came    func(n int)      // told of bytes of an answer that came; nil tells nobody
}

func newConn(c net.Conn, addr string) *conn {
	out := &conn{Conn: c, addr: addr, head: io.LimitedReader{R: c}, awaited: 1}
	out.r = bufio.NewReader(&out.head)
	if tcp, ok := c.(*net.TCPConn); ok { // in TLS the bytes in the socket are not those that are wanted
		out.raw, _ = tcp.SyscallConn() // without it every packet wakes the reader
	}
	return out
}

// await has the kernel wake the reader when n bytes are there, or the connection ends, and not for fewer.
func (c *conn) await(n int) {
	if n = max(min(n, maxAwaited), 1); c.raw == nil || n == c.awaited {
		return
	}
	err := c.raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, n) == nil {
			c.awaited = n
		}
	})
	if err != nil {
		c.raw = nil // closed
	}
}

// exchange sends a request and returns the answer's header; its body is what the connection has next. The peer may be silent for the
// stall time.
func (c *conn) exchange(ctx context.Context, request []byte, stall time.Duration) (*http.Response, error) {
	c.await(1)
	if err := c.until(ctx, stall); err != nil {
		return nil, err
	}
	if _, err := c.Write(request); err != nil {
		return nil, err
	}
	c.head.N = maxHeader
	resp, err := http.ReadResponse(c.r, nil)
	c.head.N = math.MaxInt64
	return resp, err
}

// until gives the next reads and writes d to end in, unless ctx has ended, which is for good.
func (c *conn) until(ctx context.Context, d time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	return ctx.Err() // last: whoever ends ctx now sets the deadline that counts
}

// fill reads bytes of the body until b is full. The peer may be silent for the stall time. On an error n bytes were read.
func (c *conn) fill(ctx context.Context, b []byte, stall time.Duration) (n int, err error) {
	for n < len(b) {
		c.await(len(b) - n - c.r.Buffered())
		patience := stall
		if c.awaited > 1 {
			patience = stall / 2
		}
		if err := c.until(ctx, patience); err != nil {
			return n, err
		}
		m, err := c.r.Read(b[n:])
		if m == 0 && c.awaited > 1 && errors.Is(err, os.ErrDeadlineExceeded) {
			// The peer may be slow, not silent: take what there is.
			c.await(1)
			if err := c.until(ctx, stall-patience); err != nil {
				return n, err
			}
			m, err = c.r.Read(b[n:])
		}
		if n += m; m > 0 && c.came != nil {
			c.came(m)
		}
		if err != nil && n < len(b) {
			return n, fmt.Errorf("after %d of %d bytes: %w", n, len(b), noEOF(err))
		}
	}
	return n, nil
}

// conns keeps connections for the next request. It is safe for concurrent use.
type conns struct {
	dial  func(ctx context.Context, network, addr string) (net.Conn, error)
	tls   *tls.Config // nil for plain TCP
	stall time.Duration

	mu     sync.Mutex // guards what follows
	idle   map[string][]*conn
	sweeps *time.Timer // nil while nothing is idle
	closed bool
}

// take returns a connection that answered before, or a new one.
func (p *conns) take(ctx context.Context, addr string) (*conn, error) {
	p.mu.Lock()
	if idle := p.idle[addr]; len(idle) > 0 {
		c := idle[len(idle)-1]
		p.idle[addr] = idle[:len(idle)-1]
		p.mu.Unlock()
		return c, nil
	}
	p.mu.Unlock()
	return p.connect(ctx, addr)
}

// connect makes a new connection.
func (p *conns) connect(ctx context.Context, addr string) (*conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.stall, ErrStalled)
	defer cancel()
	plain, err := p.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, stalled(ctx, err)
	}
	if p.tls == nil {
		return newConn(plain, addr), nil
	}
	cfg := p.tls.Clone()
	if cfg.ServerName == "" {
		if cfg.ServerName, _, err = net.SplitHostPort(addr); err != nil {
			_ = plain.Close() // nothing was sent
			return nil, err
		}
	}
	secure := tls.Client(plain, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = plain.Close() // it is of no use
		return nil, stalled(ctx, err)
	}
	return newConn(secure, addr), nil
}

// stalled returns err, or ErrStalled if that is what ended ctx.
func stalled(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), ErrStalled) {
		return fmt.Errorf("%w: %w", ErrStalled, err)
	}
	return err
}

// give keeps a connection whose answer was read to its end.
func (p *conns) give(c *conn) {
	c.used, c.since = true, time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle[c.addr]) >= idleConnections {
		_ = c.Close() // nothing is expected of it
		return
	}
	p.idle[c.addr] = append(p.idle[c.addr], c)
	if p.sweeps == nil {
		p.sweeps = time.AfterFunc(idleTime, p.sweep)
	}
}

// forget closes the idle connections to a peer: one of them was dead, so the others probably are.
func (p *conns) forget(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	closeAll(p.idle[addr])
	delete(p.idle, addr)
}

// sweep closes what has been idle for too long, and comes again while anything is idle.
func (p *conns) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for addr, idle := range p.idle {
		n := 0
		for n < len(idle) && time.Since(idle[n].since) >= idleTime { // the oldest are first
			n++
		}
		closeAll(idle[:n])
		if p.idle[addr] = idle[n:]; n == len(idle) {
			delete(p.idle, addr)
		}
	}
	p.sweeps = nil
	if len(p.idle) > 0 && !p.closed {
		p.sweeps = time.AfterFunc(idleTime, p.sweep)
	}
}

// close closes what is idle, and what is given back later.
func (p *conns) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.sweeps != nil {
		p.sweeps.Stop()
	}
	for _, idle := range p.idle {
		closeAll(idle)
	}
	clear(p.idle)
}

func closeAll(conns []*conn) {
	for _, c := range conns {
		_ = c.Close() // nothing is expected of them
	}
}
