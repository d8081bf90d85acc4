package local

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/piece"
)

const (
	// blobsAtOnce is how many blobs one host is asked to fetch at a time.
	blobsAtOnce = 4
	// tellEvery is how often the caller hears of progress.
	tellEvery = 200 * time.Millisecond
)

// PreheatRequest asks to bring blobs, or what a URL has, to other hosts.
type PreheatRequest struct {
	// Content is set for a URL; nobody gets its bytes by that.
	Content *ContentRequest `json:"content,omitempty"`
	// Blobs are of a registry, which the hosts read with credentials of their own.
	Blobs []peer.Blob `json:"blobs,omitempty"`
	// Nodes are the hosts, by name or by the HOST:PORT of their piece servers. None are the seeds.
	Nodes []string `json:"nodes,omitempty"`
	// Patience is how long a host may gain nothing.
	Patience time.Duration `json:"patience"`
}

// PreheatState is how far a preheating has come. The last one has Done or Error.
type PreheatState struct {
	Nodes []string `json:"nodes"`
	Blobs int      `json:"blobs"`
	Held  int64    `json:"held"`  // bytes, over all nodes
	Total int64    `json:"total"` // bytes, over all nodes
	Done  bool     `json:"done,omitempty"`
	Error *Error   `json:"error,omitempty"`
}

// PreheatConfig configures Preheat.
type PreheatConfig struct {
	// Content resolves URLs.
	Content ContentConfig
	// Seeds returns the piece servers of the seeds.
	Seeds func() []string
	// Find returns the piece server of a host of the cluster, and an error for any other.
	Find func(ctx context.Context, node string) (addr string, err error)
	// Preheat brings a blob to the host at an address; *peer.Peer has it.
	Preheat func(ctx context.Context, addr string, b peer.Blob, patience time.Duration, told func(held int64)) error
}

// Preheat serves POST /v1/preheat.
func Preheat(cfg PreheatConfig) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req PreheatRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req); err != nil {
			refuse(w, http.StatusBadRequest, &Error{CodeBad, "request: " + err.Error()})
			return
		}
		run, err := cfg.prepare(r.Context(), req)
		if err != nil {
			refuseError(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		run.serve(r.Context(), w)
	})
}

// heating is one request that is carried out.
type heating struct {
	cfg      PreheatConfig
	patience time.Duration
	blobs    []peer.Blob

	mu    sync.Mutex // guards state
	state PreheatState
}

func (cfg PreheatConfig) prepare(ctx context.Context, req PreheatRequest) (*heating, error) {
	h := &heating{cfg: cfg, patience: max(req.Patience, time.Second), blobs: req.Blobs}
	if req.Content != nil {
		b, _, err := (&contents{cfg: cfg.Content, seen: map[string]seen{}}).resolve(ctx, *req.Content)
		if err != nil {
			return nil, err
		}
		h.blobs = append(h.blobs, b)
	}
	nodes := slices.Clone(req.Nodes)
	if len(nodes) == 0 {
		nodes = cfg.Seeds()
	}
	if len(nodes) == 0 {
		return nil, &Error{CodeUnavailable, "this node knows no seed; name the piece servers of the nodes to preheat with --nodes HOST:PORT"}
	}
	for i, n := range nodes {
		addr, err := cfg.Find(ctx, n)
		if errors.Is(err, piece.ErrAbsent) {
			return nil, &Error{CodeBad, err.Error()}
		} else if err != nil {
			return nil, err
		}
		nodes[i] = addr
	}
	var total int64
	for _, b := range h.blobs {
		total += b.Size
	}
	h.state = PreheatState{Nodes: nodes, Blobs: len(h.blobs), Total: total * int64(len(nodes))}
	return h, nil
}

// serve carries it out and tells how it goes on.
func (h *heating) serve(ctx context.Context, w http.ResponseWriter) {
	done := make(chan error, 1)
	go func() { done <- h.run(ctx) }() // ends with ctx, waited for below
	enc, rc := json.NewEncoder(w), http.NewResponseController(w)
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		var err error
		ended := false
		select {
		case err = <-done:
			ended = true
		case <-tick.C:
		}
		h.mu.Lock()
		state := h.state
		h.mu.Unlock()
		if state.Done = ended && err == nil; ended && err != nil {
			_, code := classify(err)
			state.Error = &Error{code, err.Error()}
		}
		_ = enc.Encode(state) // a caller that has left ends ctx
		_ = rc.Flush()
		if ended {
			return
		}
	}
}

func (h *heating) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, node := range h.state.Nodes {
		group.Go(func() error {
			blobs, ctx := errgroup.WithContext(ctx)
			blobs.SetLimit(blobsAtOnce)
			for _, b := range h.blobs {
				blobs.Go(func() error {
					var before int64
					err := h.cfg.Preheat(ctx, node, b, h.patience, func(held int64) {
						h.mu.Lock()
						defer h.mu.Unlock()
						h.state.Held += held - before
						before = held
					})
					if err != nil {
						return fmt.Errorf("%s: %w", b.Digest, err)
					}
					return nil
				})
			}
			return blobs.Wait()
		})
	}
	return group.Wait()
}

// Preheat brings blobs or a URL's content to other hosts and waits until they hold all. told hears how it goes on. The error is
// ErrNoNode, an *Error, or tells of a broken connection.
func (c *Client) Preheat(ctx context.Context, req PreheatRequest, told func(PreheatState)) (PreheatState, error) {
	var state PreheatState
	resp, err := c.post(ctx, "/v1/preheat", req)
	if err != nil {
		return state, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxRequest)
	for lines.Scan() {
		if err := json.Unmarshal(lines.Bytes(), &state); err != nil {
			return state, fmt.Errorf("what answers at %s is no shoal node of this version: %w", c.address, err)
		}
		told(state)
		switch {
		case state.Error != nil:
			return state, state.Error
		case state.Done:
			return state, nil
		}
	}
	return state, errors.Join(errors.New("the node stopped before all was there"), lines.Err())
}
