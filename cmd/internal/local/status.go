package local

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/limits"
)

// Status is the state of a node.
type Status struct {
	Name       string            `json:"name"`
	Version    string            `json:"version"`
	Seed       bool              `json:"seed"`
	Addr       string            `json:"addr,omitempty"` // of its piece server; empty when it has none
	Schedulers []peer.LinkStatus `json:"schedulers"`
	Peers      []string          `json:"peers"` // known without a scheduler, or the seeds it named
	Store      StoreStatus       `json:"store"`
	Tasks      []peer.TaskStatus `json:"tasks"`
	Uploads    []Upload          `json:"uploads"`
	Limits     limits.Rates      `json:"limits"`                 // bytes a second; 0 is no limit
	Share      limits.Rate       `json:"source_share,omitempty"` // of the cluster's rate of reading origins, as schedulers told
	// Snapshotter is what containerd asks for file systems.
	Snapshotter SnapshotterStatus `json:"snapshotter"`
}

// SnapshotterStatus is the state of a node's snapshotter.
type SnapshotterStatus struct {
	Address string `json:"address,omitempty"` // of its socket; empty when it does not run
	Driver  string `json:"driver,omitempty"`  // erofs, fuse, or none: images are unpacked
	Mounted int    `json:"mounted"`           // images
	Off     string `json:"off,omitempty"`     // why it does not run, or why images are unpacked
	// Failed are images that are to be mounted and are not, each with the reason.
	Failed []string `json:"failed,omitempty"`
}

// StoreStatus is what a node keeps, in bytes.
type StoreStatus struct {
	Blobs    int   `json:"blobs"`
	Held     int64 `json:"held"`
	Reserved int64 `json:"reserved"` // sizes of all that is kept, complete or not
	// Beside is what expanded files of mounted images take, which counts against the same limits.
	Beside   int64 `json:"beside,omitempty"`
	MaxBytes int64 `json:"max_bytes,omitempty"`
	// MaxPercent is of what other files leave of the disk.
	MaxPercent int `json:"max_percent,omitempty"`
}

// Upload is what a node gave to another host.
type Upload struct {
	ID    digest.Digest `json:"id"`
	Host  string        `json:"host"` // its address, without a port
	Bytes int64         `json:"bytes"`
}

// ServeStatus serves GET /v1/status.
func ServeStatus(status func(context.Context) Status) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status(r.Context())) // the caller may have left
	})
}

// Status asks for the node's state. The error is ErrNoNode or tells of a broken connection.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var s Status
	if err := c.get(ctx, "/v1/status", &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// get asks for what is at a path and decodes it into a value.
func (c *Client) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.address+path, nil)
	if err != nil {
		return fmt.Errorf("address %q of the node: want HOST:PORT", c.address)
	}
	resp, err := c.do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("what answers at %s is no shoal node of this version: %w", c.address, err)
	}
	return nil
}
