package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

const (
	// silence is how long the other side may say nothing before the session counts as dead.
	silence = 3 * Beat
	// batchDelay is the mean time between two batches of events, which gather meanwhile. After a pause batchBurst of them go at once: somebody
	// waits for what they say.
	batchDelay = 20 * time.Millisecond
	batchBurst = 4
	// maxBatch is the length of a batch, in bytes, beyond which no event is added to it.
	maxBatch = 4 << 20
	// maxLine bounds one command, in bytes.
	maxLine = 64 << 20
)

// Client talks to one scheduler. It is safe for concurrent use.
type Client struct {
	url   string
	token string
	http  *http.Client
}

// Option changes how a client speaks.
type Option func(*http.Transport)

// WithTLS has an https URL spoken to by this configuration, which is not copied.
func WithTLS(cfg *tls.Config) Option { return func(t *http.Transport) { t.TLSClientConfig = cfg } }

// NewClient returns a client of the scheduler at url, such as http://10.0.0.1:7700.
func NewClient(url, token string, options ...Option) *Client {
	dialer := &net.Dialer{Timeout: time.Second}
	t := &http.Transport{DialContext: dialer.DialContext, TLSHandshakeTimeout: silence, MaxIdleConnsPerHost: 2, ResponseHeaderTimeout: silence}
	for _, o := range options {
		o(t)
	}
	// A scheduler never redirects, and nobody else gets the token.
	return &Client{url: strings.TrimSuffix(url, "/"), token: token, http: &http.Client{Transport: t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// URL returns the address the client was made with.
func (c *Client) URL() string { return c.url }

// Handler takes what a scheduler says. Its methods are called one after the other, from the goroutine of Run; meanwhile nothing else is
// heard of the scheduler, which waits a few seconds before it gives up.
type Handler interface {
	// Opened is called when the session is live; the host now announces its tasks through s.
	Opened(s *Session)
	// Command is called for each command but signs of life.
	Command(s *Session, c Command)
}

// Session is one live connection to a scheduler.
type Session struct {
	client *Client
	id     string
	wake   chan struct{}

	mu     sync.Mutex // guards queue
	queue  []Event
	closed bool
}

// Send queues events; they leave in order, in batches. After the session has ended they are dropped, since the next one
// begins with a full announcement. It never blocks.
func (s *Session) Send(events ...Event) {
	s.mu.Lock()
	if !s.closed {
		s.queue = append(s.queue, events...)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Session) take() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.queue
	s.queue = nil
	return out
}

// Run opens a session for host and serves it until it breaks or ctx ends; the error says why. All that it started has ended when
// it returns.
func (c *Client) Run(ctx context.Context, host Host, h Handler) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body, err := json.Marshal(host)
	if err != nil {
		return err
	}
	resp, err := c.post(ctx, "/v1/sessions", body)
	if err != nil {
		return fmt.Errorf("scheduler %s: %w", c.url, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		if resp.StatusCode == http.StatusNotFound {
			return fmt.Errorf("scheduler %s: what answers there is no scheduler (%s); check the URL", c.url, resp.Status)
		}
		return c.statusError(resp)
	}
	watchdog := time.AfterFunc(silence, func() { cancel(fmt.Errorf("scheduler %s: silent for %v", c.url, silence)) })
	defer watchdog.Stop()
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return c.read(gctx, resp.Body, h, watchdog, group)
	})
	err = group.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// read hands on what the scheduler says. The watchdog runs while the scheduler is waited for, not while h works.
func (c *Client) read(ctx context.Context, body io.Reader, h Handler, watchdog *time.Timer, group *errgroup.Group) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 4<<10), maxLine)
	var session *Session
	for ; lines.Scan(); watchdog.Reset(silence) {
		watchdog.Stop()
		var cmd Command
		if err := json.Unmarshal(lines.Bytes(), &cmd); err != nil {
			return fmt.Errorf("scheduler %s: command: %w", c.url, err)
		}
		switch {
		case cmd.Welcome != nil && session == nil:
			session = &Session{client: c, id: cmd.Welcome.Session, wake: make(chan struct{}, 1)}
			defer session.close()
			group.Go(func() error { return session.flush(ctx) })
			h.Opened(session)
		case session == nil:
			return fmt.Errorf("scheduler %s: no welcome", c.url)
		case cmd.Ended != nil:
			return fmt.Errorf("scheduler %s: session ended: %s", c.url, cmd.Ended.Why)
		case cmd != (Command{}):
			h.Command(session, cmd)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("scheduler %s: %w", c.url, err)
	}
	return fmt.Errorf("scheduler %s: session ended: %w", c.url, io.EOF)
}

func (s *Session) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.queue = true, nil
}

// flush sends queued events soon after they came, and an empty batch as a sign of life when there are none.
func (s *Session) flush(ctx context.Context) error {
	beat := time.NewTicker(Beat)
	defer beat.Stop()
	batch := rate.NewLimiter(rate.Every(batchDelay), batchBurst)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-beat.C:
		case <-s.wake:
			if err := batch.Wait(ctx); err != nil {
				return err
			}
		}
		batches, err := split(s.take())
		if err != nil {
			return err
		}
		for _, batch := range batches {
			if err := s.post(ctx, batch); err != nil {
				return err
			}
		}
	}
}

// split encodes events in batches that the other side takes: a seed with much to announce has more than one. There is always
// one, if only as a sign of life.
func split(events []Event) ([][]json.RawMessage, error) {
	batches, size := [][]json.RawMessage{{}}, 0
	for _, ev := range events {
		data, err := json.Marshal(ev)
		if err != nil {
			return nil, err
		}
		if size += len(data); size > maxBatch && size > len(data) {
			batches, size = append(batches, nil), len(data)
		}
		last := len(batches) - 1
		batches[last] = append(batches[last], data)
	}
	return batches, nil
}

func (s *Session) post(ctx context.Context, events []json.RawMessage) error {
	body, err := json.Marshal(events)
	if err != nil {
		return err
	}
	resp, err := s.client.post(ctx, "/v1/sessions/"+s.id+"/events", body)
	if err != nil {
		return fmt.Errorf("scheduler %s: %w", s.client.url, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return s.client.statusError(resp)
	}
	return nil
}

// Hosts returns the hosts that have a session with the scheduler.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) {
	resp, err := c.do(ctx, http.MethodGet, "/v1/hosts", nil)
	if err != nil {
		return nil, fmt.Errorf("scheduler %s: %w", c.url, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, c.statusError(resp)
	}
	var hosts []Host
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxLine)).Decode(&hosts); err != nil {
		return nil, fmt.Errorf("scheduler %s: hosts: %w", c.url, err)
	}
	return hosts, nil
}

func (c *Client) post(ctx context.Context, path string, body []byte) (*http.Response, error) {
	return c.do(ctx, http.MethodPost, path, body)
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	return c.http.Do(req)
}

func (c *Client) statusError(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // best effort: the status alone says enough
	if resp.StatusCode == http.StatusUnauthorized {
		return fmt.Errorf("scheduler %s: wrong cluster token; give host and scheduler the same cluster.token_file", c.url)
	}
	return fmt.Errorf("scheduler %s: %s: %s", c.url, resp.Status, strings.TrimSpace(string(text)))
}
