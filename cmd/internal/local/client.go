package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/source"
)

// DefaultAddress is where a node serves the users of its machine.
const DefaultAddress = "127.0.0.1:7703"

// ErrNoNode means that no node answers at the address.
var ErrNoNode = errors.New("no shoal node answers")

// headTime is how long a node may take to begin its answer: its own patience for the origin and for the first bytes, and a little more.
const headTime = 30 * time.Second

// Client asks the node of this machine. It is safe for concurrent use.
type Client struct {
	address string
	http    *http.Client
	stall   time.Duration
}

// NewClient returns a client of the node at address, HOST:PORT. Close it after the last call.
func NewClient(address string) *Client {
	dialer := &net.Dialer{Timeout: time.Second}
	return &Client{address: address, stall: 20 * time.Second, http: &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext,
		DisableCompression: true, ResponseHeaderTimeout: headTime}}}
}

// Close closes the connections that are kept.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Stream is content on its way.
type Stream struct {
	Identity  digest.Digest
	Size      int64 // of the whole content, in bytes
	Validator source.Validator
	Stale     string        // since when the origin's word is believed, which is down now; empty when it is not
	Body      io.ReadCloser // nil after a request with Head
}

// Content asks for what a URL has. The error is ErrNoNode or an *Error, or tells of a broken connection. The body ends in
// io.ErrUnexpectedEOF when the node cannot go on, and in an error when it says nothing for 20 s.
func (c *Client) Content(ctx context.Context, req ContentRequest) (*Stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	resp, err := c.post(ctx, "/v1/content", req)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	s := &Stream{Identity: digest.Digest(resp.Header.Get(identityHeader)), Stale: resp.Header.Get(staleHeader),
		Validator: source.Validator{ETag: resp.Header.Get("ETag"), Modified: resp.Header.Get("Last-Modified")}}
	s.Size, err = strconv.ParseInt(resp.Header.Get(sizeHeader), 10, 64)
	if err != nil || s.Identity == "" {
		err = fmt.Errorf("what answers at %s is no shoal node of this version", c.address)
	}
	if err != nil || req.Head || resp.ContentLength == 0 {
		_ = resp.Body.Close() // empty
		cancel(nil)
		return s, err
	}
	watchdog := time.AfterFunc(c.stall, func() { cancel(fmt.Errorf("the node says nothing for %v", c.stall)) })
	s.Body = &watched{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, watchdog: watchdog, stall: c.stall}
	return s, nil
}

// watched is a body under a watchdog that runs while a Read waits.
type watched struct {
	io.ReadCloser
	ctx      context.Context // of the request, which the watchdog ends
	cancel   context.CancelCauseFunc
	watchdog *time.Timer
	stall    time.Duration
}

func (w *watched) Read(p []byte) (int, error) {
	w.watchdog.Reset(w.stall)
	n, err := w.ReadCloser.Read(p)
	w.watchdog.Stop()
	if cause := context.Cause(w.ctx); err != nil && cause != nil {
		err = cause
	}
	return n, err
}

func (w *watched) Close() error {
	w.watchdog.Stop()
	w.cancel(nil)
	return w.ReadCloser.Close()
}

// post sends a request and returns an answer that is none of an error.
func (c *Client) post(ctx context.Context, path string, body any) (*http.Response, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.address+path, bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("address %q of the node: want HOST:PORT", c.address)
	}
	req.Header.Set("Content-Type", "application/json")
	return c.do(req)
}

func (c *Client) do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("%w at %s; start one with shoal node", ErrNoNode, c.address)
		}
		if opErr, ok := errors.AsType[*net.OpError](err); ok && opErr.Op == "dial" {
			return nil, fmt.Errorf("%w at %s: %w", ErrNoNode, c.address, opErr.Err)
		}
		return nil, fmt.Errorf("node at %s: %w", c.address, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // only for the message
	e := &Error{}
	if json.Unmarshal(text, e) != nil || e.Code == "" {
		return nil, fmt.Errorf("what answers at %s is no shoal node of this version: %s: %s", c.address, resp.Status, strings.TrimSpace(string(text)))
	}
	return nil, e
}
