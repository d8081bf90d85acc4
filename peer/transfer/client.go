package transfer

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/tracing"
)

const (
	// DefaultDialTimeout is used when ClientConfig.DialTimeout is zero.
	DefaultDialTimeout = 500 * time.Millisecond
	// DefaultStall is used when ClientConfig.Stall is zero.
	DefaultStall = time.Second
	// DefaultSilence is used when ClientConfig.Silence is zero.
	DefaultSilence = 1500 * time.Millisecond

	idleConnections = 16 // kept to one peer
	maxGroups       = piece.MaxSize / piece.GroupSize
	maxErrorText    = 256
)

var (
	// ErrBusy means that the peer has no upload slot free. It is piece.ErrTransient; the peer is well.
	ErrBusy = fmt.Errorf("peer is busy: %w", piece.ErrTransient)
	// ErrShared means that the peer sent the piece to another one just now, who has it soon. It is piece.ErrTransient.
	ErrShared = fmt.Errorf("peer is sending the piece to another: %w", piece.ErrTransient)
	// ErrStalled means that the peer sent nothing for the stall time. It is piece.ErrTransient; the peer may hang.
	ErrStalled = fmt.Errorf("peer stalled: %w", piece.ErrTransient)
	// ErrProtocol means that the answer is not one to the question asked. It is piece.ErrTransient; asking again is of little use.
	ErrProtocol = fmt.Errorf("peer broke the protocol: %w", piece.ErrTransient)
)

// ClientConfig describes the asking end. The zero ClientConfig is usable in a cluster without a token.
type ClientConfig struct {
	// Token is the cluster's; empty sends none.
	Token string
	// TLS, if not nil, has peers spoken to in TLS by it; it is not copied.
	TLS *tls.Config
	// DialTimeout bounds connecting. Zero is DefaultDialTimeout.
	DialTimeout time.Duration
	// Stall is how long a peer may send nothing, before or within an answer. Zero is DefaultStall.
	Stall time.Duration
	// Silence is how long Watch waits for a frame; peers send one a second at least. Zero is DefaultSilence.
	Silence time.Duration
	// Pacer holds back what is received. The parent is not blamed for the time that takes. Nil receives as fast as it comes.
	Pacer Pacer
	// Dial replaces the dialer, for tests and for other networks. Nil dials TCP.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Registerer receives the metrics. Nil keeps them out of sight.
	Registerer prometheus.Registerer
}

// Validate reports all faults of the configuration at once.
func (c ClientConfig) Validate() error {
	if c.DialTimeout < 0 || c.Stall < 0 || c.Silence < 0 {
		return errors.New("transfer: a time is negative")
	}
	return nil
}

// Client asks other peers. It is safe for concurrent use; each request that runs has a connection of its own, and
// connections are kept for the next. Addresses are HOST:PORT.
type Client struct {
	cfg     ClientConfig
	conns   *conns       // for pieces
	http    *http.Client // for everything else
	close   func()
	metrics *clientMetrics
}

// NewClient returns a client. Close it when the last call has returned.
func NewClient(cfg ClientConfig) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.DialTimeout = cmp.Or(cfg.DialTimeout, DefaultDialTimeout)
	cfg.Stall = cmp.Or(cfg.Stall, DefaultStall)
	cfg.Silence = cmp.Or(cfg.Silence, DefaultSilence)
	if cfg.Pacer == nil {
		cfg.Pacer = unpaced{}
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: cfg.DialTimeout}).DialContext
	}
	transport := &http.Transport{
		DialContext:         cfg.Dial,
		TLSClientConfig:     cfg.TLS,
		TLSHandshakeTimeout: cfg.Stall,
		MaxIdleConnsPerHost: idleConnections,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true,
	}
	return &Client{
		cfg: cfg, metrics: newClientMetrics(cfg.Registerer), close: transport.CloseIdleConnections,
		conns: &conns{dial: cfg.Dial, tls: cfg.TLS, stall: cfg.Stall, idle: map[string][]*conn{}},
		http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // a peer never redirects
		}},
	}, nil
}

// Close closes the connections that are kept.
func (c *Client) Close() {
	c.conns.close()
	c.close()
}

// Wanted is a range of a blob that a peer is asked for.
type Wanted struct {
	Addr   string // of the peer, HOST:PORT
	Digest digest.Digest
	Off    int64  // bytes
	Buf    []byte // as long as the range
	// Demanded is set when a reader waits: the peer does not refuse the range because it is busy, and sends it before others' pieces.
	Demanded bool
	// Alone is set when the caller cannot get the range from another peer who was sent it: the answer is never ErrShared.
	Alone bool
	// Came is called, from the goroutine of Fetch, whenever some bytes of the range have come, with their number; nil is not. It must be quick.
	Came func(n int)
}

// Fetch fills w.Buf from a peer. On an error it holds anything.
func (c *Client) Fetch(ctx context.Context, w Wanted) error {
	if len(w.Buf) == 0 {
		return nil
	}
	if err := c.tryKept(ctx, w); err != nil {
		return fmt.Errorf("bytes [%d, %d) of %s from %s: %w", w.Off, w.Off+int64(len(w.Buf)), w.Digest, w.Addr, c.classed(ctx, err))
	}
	return nil
}

// tryKept asks on a connection that is kept, and once more on a new one when the kept one turns out to be dead.
func (c *Client) tryKept(ctx context.Context, w Wanted) error {
	cn, err := c.conns.take(ctx, w.Addr)
	if err != nil {
		return err
	}
	answered, err := c.ask(ctx, cn, w)
	if answered || !cn.used || ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	c.conns.forget(w.Addr)
	if cn, err = c.conns.connect(ctx, w.Addr); err != nil {
		return err
	}
	_, err = c.ask(ctx, cn, w)
	return err
}

// request returns the request for a range of a blob as it goes over the wire.
func (c *Client) request(ctx context.Context, w Wanted) []byte {
	b := fmt.Appendf(make([]byte, 0, 512), "GET /v1/blobs/%s HTTP/1.1\r\nHost: %s\r\nRange: bytes=%d-%d\r\n",
		w.Digest, w.Addr, w.Off, w.Off+int64(len(w.Buf))-1)
	if w.Demanded {
		b = append(b, demandHeader+": 1\r\n"...)
	}
	if w.Alone {
		b = append(b, aloneHeader+": 1\r\n"...)
	}
	if parent := tracing.Parent(ctx); parent != "" {
		b = append(append(append(b, "Traceparent: "...), parent...), "\r\n"...)
	}
	if c.cfg.Token != "" {
		b = append(append(append(b, "Authorization: Bearer "...), c.cfg.Token...), "\r\n"...)
	}
	return append(b, "\r\n"...)
}

// ask sends a request on a connection, reads the answer into the buffer, and keeps or closes the connection. answered is set when the peer
// answered anything.
func (c *Client) ask(ctx context.Context, cn *conn, w Wanted) (answered bool, err error) {
	whole := false // the answer was read to its end
	cn.came = w.Came
	stop := context.AfterFunc(ctx, func() { _ = cn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if stop() && whole && cn.r.Buffered() == 0 {
			c.conns.give(cn)
		} else {
			_ = cn.Close() // what it still has to say is not wanted
		}
	}()
	resp, err := cn.exchange(ctx, c.request(ctx, w), c.cfg.Stall) //nolint:bodyclose // its body has nothing to close, and closing it would wait for bytes
	if err != nil {
		return false, noEOF(err)
	}
	if resp.StatusCode >= 300 {
		err := statusError(resp)
		_, more := resp.Body.Read(make([]byte, 1))
		whole = errors.Is(more, io.EOF) && !resp.Close
		return true, err
	}
	if err := checkRange(resp, w.Off, int64(len(w.Buf))); err != nil {
		return true, err
	}
	n, err := c.receive(ctx, cn, w.Digest.String(), w.Buf)
	c.metrics.received.Add(float64(n))
	whole = err == nil && !resp.Close
	return true, err
}

// receive reads the body into buf at the pacer's rate. The time that takes is not the parent's.
func (c *Client) receive(ctx context.Context, cn *conn, task string, buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		m, err := cn.fill(ctx, buf[n:min(len(buf), n+c.cfg.Pacer.Step())], c.cfg.Stall)
		n += m
		if err != nil {
			return n, err
		}
		if err := c.cfg.Pacer.Pace(ctx, task, m); err != nil {
			return n, err
		}
	}
	return n, nil
}

// checkRange makes sure that the answer is the range that was asked for, before a byte of it is read.
func checkRange(resp *http.Response, off, length int64) error {
	if resp.StatusCode != http.StatusPartialContent {
		return fmt.Errorf("%w: status %s to a range", ErrProtocol, resp.Status)
	}
	if resp.ContentLength != length {
		return fmt.Errorf("%w: %d bytes announced, want %d", ErrProtocol, resp.ContentLength, length)
	}
	got, want := resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/", off, off+length-1)
	if !strings.HasPrefix(got, want) {
		return fmt.Errorf("%w: Content-Range %q, want %q", ErrProtocol, got, want)
	}
	return nil
}

// readFull is io.ReadFull that puts the alarm off after each read.
func readFull(r io.Reader, buf []byte, alarm *alarm) (int, error) {
	n := 0
	for n < len(buf) {
		m, err := r.Read(buf[n:])
		n += m
		if m > 0 {
			alarm.reset()
		}
		if err != nil && n < len(buf) {
			return n, fmt.Errorf("after %d of %d bytes: %w", n, len(buf), noEOF(err))
		}
	}
	return n, nil
}

// Groups returns the group digests of piece i, as the peer claims them.
func (c *Client) Groups(ctx context.Context, addr string, d digest.Digest, i piece.Index) ([]piece.Digest, error) {
	var groups []piece.Digest
	err := c.do(ctx, call{addr: addr, path: "/v1/blobs/" + d.String() + "/groups?piece=" + strconv.Itoa(int(i))},
		func(resp *http.Response, alarm *alarm) error {
			const size = int64(len(piece.Digest{}))
			n := resp.ContentLength
			if resp.StatusCode != http.StatusOK || n <= 0 || n%size != 0 || n/size > maxGroups {
				return fmt.Errorf("%w: status %s with %d bytes of group digests", ErrProtocol, resp.Status, n)
			}
			buf := make([]byte, n)
			if _, err := readFull(resp.Body, buf, alarm); err != nil {
				return err
			}
			for g := range n / size {
				groups = append(groups, piece.Digest(buf[g*size:]))
			}
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("group digests of piece %d of %s from %s: %w", i, d, addr, err)
	}
	return groups, nil
}

// Suspect tells the peer that it sent piece i with the wrong digest; it verifies the piece on its disk.
func (c *Client) Suspect(ctx context.Context, addr string, d digest.Digest, i piece.Index) error {
	err := c.do(ctx, call{method: http.MethodPost, addr: addr, path: "/v1/blobs/" + d.String() + "/suspect?piece=" + strconv.Itoa(int(i))},
		func(*http.Response, *alarm) error { return nil })
	if err != nil {
		return fmt.Errorf("suspect piece %d of %s at %s: %w", i, d, addr, err)
	}
	return nil
}

// Watch tells the peer of a task and calls fn with each frame of what it holds, the first one with everything. It
// returns, always with an error, when the stream breaks, when no frame came for ClientConfig.Silence, when fn returns an
// error (that one), or when ctx ends. fn must return well within that time: the next frame is awaited meanwhile.
func (c *Client) Watch(ctx context.Context, addr string, d digest.Digest, spec json.RawMessage, fn func(Have) error) error {
	header := http.Header{"Content-Type": {"application/json"}}
	var fnErr error
	path := "/v1/tasks/" + d.String() + "/haves"
	err := c.do(ctx, call{method: http.MethodPost, addr: addr, path: path, header: header, body: spec, stall: c.cfg.Silence},
		func(resp *http.Response, alarm *alarm) error {
			frames := newFrameReader(resp.Body)
			for {
				have, err := frames.next()
				if err != nil {
					return fmt.Errorf("haves: %w", noEOF(err))
				}
				alarm.reset()
				if fnErr = fn(have); fnErr != nil {
					return fnErr
				}
			}
		})
	if fnErr != nil {
		return fnErr
	}
	return fmt.Errorf("watch %s at %s: %w", d, addr, err)
}

// call is one request to a peer. An empty method is GET, no stall is that of the client.
type call struct {
	method, addr, path string
	header             http.Header
	body               []byte
	stall              time.Duration
}

// alarm ends a request whose peer sends nothing for the stall time.
type alarm struct {
	timer *time.Timer
	stall time.Duration
}

// reset starts the time anew: bytes came, or may come again.
func (a *alarm) reset() { a.timer.Reset(a.stall) }

// do sends a request and hands a good answer to read, which resets the alarm whenever bytes came; nothing for the stall time
// is ErrStalled. Every error has a class of piece, except that of an ended ctx.
func (c *Client) do(ctx context.Context, r call, read func(resp *http.Response, alarm *alarm) error) error {
	stall := cmp.Or(r.stall, c.cfg.Stall)
	watched, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := &alarm{timer: time.AfterFunc(stall, func() { cancel(ErrStalled) }), stall: stall}
	defer watchdog.timer.Stop()

	err := c.exchange(watched, r, func(resp *http.Response) error {
		return read(resp, watchdog)
	})
	if err != nil && errors.Is(context.Cause(watched), ErrStalled) {
		err = fmt.Errorf("%w: nothing for %s", ErrStalled, stall)
	}
	return c.classed(ctx, err)
}

// classed gives an error its class; that of an ended ctx is its cause.
func (c *Client) classed(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	case errors.Is(err, ErrStalled):
		c.metrics.stalls.Inc()
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.metrics.stalls.Inc()
		return fmt.Errorf("%w: nothing for %s", ErrStalled, c.cfg.Stall)
	case errors.Is(err, piece.ErrAbsent), errors.Is(err, piece.ErrDenied), errors.Is(err, piece.ErrTransient):
		return err
	}
	return fmt.Errorf("%w: %w", piece.ErrTransient, err)
}

func (c *Client) exchange(ctx context.Context, r call, read func(*http.Response) error) error {
	scheme := "http://"
	if c.cfg.TLS != nil {
		scheme = "https://"
	}
	req, err := http.NewRequestWithContext(ctx, r.method, scheme+r.addr+r.path, bytes.NewReader(r.body))
	if err != nil {
		return err
	}
	maps.Copy(req.Header, r.header)
	tracing.Inject(ctx, req.Header)
	if c.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return statusError(resp)
	}
	return read(resp)
}

// statusError gives a refusal its class.
func statusError(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorText)) // only for the message
	class := piece.ErrTransient
	switch {
	case resp.StatusCode == http.StatusNotFound:
		class = piece.ErrAbsent
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		class = piece.ErrDenied
	case resp.Header.Get(busyHeader) == busyPiece:
		return ErrShared
	case resp.Header.Get(busyHeader) != "":
		return ErrBusy
	}
	return fmt.Errorf("%w: status %s: %s", class, resp.Status, bytes.TrimSpace(text))
}
