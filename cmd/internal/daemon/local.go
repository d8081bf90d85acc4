package daemon

import (
	"context"
	"net/http"

	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/peer"
)

// registerLocal adds what users of this machine may ask of the node.
func (n *node) registerLocal(mux *http.ServeMux) {
	mux.Handle("POST /v1/content", local.Guard(local.Content(local.ContentConfig{Probe: n.origin.Probe, Open: n.openContent,
		Log: n.component("local")})))
	mux.Handle("/v2/", local.Guard(n.mirror))
}

// openContent opens what a URL has in the cluster.
func (n *node) openContent(ctx context.Context, b peer.Blob) (local.Blob, error) {
	return n.peer.Open(ctx, b, "")
}
