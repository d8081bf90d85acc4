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
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/peer/piece"
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
	// ErrShared means that the peer is sending the piece to another one, who will have it in a moment. It is piece.ErrTransient.
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
	http    *http.Client
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
		http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // a peer never redirects
		}},
	}, nil
}

// Close closes the connections that are kept.
func (c *Client) Close() { c.close() }

// Piece fills buf with the bytes of the blob from off on, from the peer at addr. On an error buf holds anything.
func (c *Client) Piece(ctx context.Context, addr string, d digest.Digest, off int64, buf []byte) error {
	return c.piece(ctx, call{addr: addr, header: http.Header{}}, d, off, buf)
}

// Demanded is Piece for what a reader waits for: the peer neither refuses it because it is busy nor sends others' pieces first.
func (c *Client) Demanded(ctx context.Context, addr string, d digest.Digest, off int64, buf []byte) error {
	return c.piece(ctx, call{addr: addr, header: http.Header{demandHeader: {"1"}}}, d, off, buf)
}

func (c *Client) piece(ctx context.Context, r call, d digest.Digest, off int64, buf []byte) error {
	if len(buf) == 0 {
		return nil
	}
	r.path = "/v1/blobs/" + d.String()
	r.header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(buf))-1))
	err := c.do(ctx, r,
		func(resp *http.Response, alarm *alarm) error {
			if err := checkRange(resp, off, int64(len(buf))); err != nil {
				return err
			}
			n, err := c.readPaced(ctx, d.String(), resp.Body, buf, alarm)
			c.metrics.received.Add(float64(n))
			return err
		})
	if err != nil {
		return fmt.Errorf("bytes [%d, %d) of %s from %s: %w", off, off+int64(len(buf)), d, r.addr, err)
	}
	return nil
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

// readPaced is readFull at the pacer's rate; the alarm sleeps while that makes it wait.
func (c *Client) readPaced(ctx context.Context, task string, r io.Reader, buf []byte, alarm *alarm) (int, error) {
	n := 0
	for n < len(buf) {
		m, err := readFull(r, buf[n:min(len(buf), n+c.cfg.Pacer.Step())], alarm)
		n += m
		if err != nil {
			return n, err
		}
		alarm.stop()
		if err := c.cfg.Pacer.Pace(ctx, task, m); err != nil {
			return n, err
		}
		alarm.reset()
	}
	return n, nil
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

// stop holds the time until the next reset: nothing is expected of the peer.
func (a *alarm) stop() { a.timer.Stop() }

// do sends a request and hands a good answer to read, which resets the alarm whenever bytes came; nothing for the stall time
// is ErrStalled. Every error has a class of piece, except that of an ended ctx.
func (c *Client) do(ctx context.Context, r call, read func(resp *http.Response, alarm *alarm) error) error {
	stall := cmp.Or(r.stall, c.cfg.Stall)
	watched, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := &alarm{timer: time.AfterFunc(stall, func() { cancel(ErrStalled) }), stall: stall}
	defer watchdog.stop()

	err := c.exchange(watched, r, func(resp *http.Response) error {
		return read(resp, watchdog)
	})
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	case errors.Is(context.Cause(watched), ErrStalled):
		c.metrics.stalls.Inc()
		return fmt.Errorf("%w: nothing for %s", ErrStalled, stall)
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
