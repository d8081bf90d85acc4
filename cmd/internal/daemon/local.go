package daemon

import (
	"context"
	"net/http"

	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/peer"
)

// registerLocal adds what users of this machine may ask of the node.
func (n *node) registerLocal(mux *http.ServeMux) {
	content := local.ContentConfig{Probe: n.origin.Probe, Open: n.openContent, Log: n.component("local")}
	mux.Handle("POST /v1/content", local.Guard(local.Content(content)))
	mux.Handle("POST /v1/preheat", local.Guard(local.Preheat(local.PreheatConfig{Content: content, Seeds: n.allSeeds, Find: n.peer.Find, Preheat: n.peer.Preheat})))
	mux.Handle("GET /v1/status", local.GuardPage(local.ServeStatus(n.status)))
	mux.Handle("GET /v1/accessed", local.Guard(local.ServeAccessed(n.snapshots.accessed)))
	mux.Handle("GET /{$}", local.ServePage(n.status))
	mux.Handle("/v2/", local.Guard(n.mirror))
	pins := local.Guard(servePins(n.store))
	mux.Handle("/pins", pins)
	mux.Handle("/pins/", pins)
	mux.Handle(limitsPath, local.Guard(serveSettings(n.limits.Rates, setLimits(n.limits, n.log))))
}

// openContent opens what a URL has in the cluster.
func (n *node) openContent(ctx context.Context, b peer.Blob) (local.Blob, error) {
	return n.peer.Open(ctx, b, "")
}

// status describes the node.
func (n *node) status(ctx context.Context) local.Status {
	usage := n.store.Usage()
	s := local.Status{Name: n.cfg.Name, Version: n.version, Seed: n.cfg.Seed, Addr: n.cfg.Peer.Advertise, Schedulers: n.peer.Links(),
		Peers: n.peer.Seeds(), Tasks: n.peer.Tasks(ctx), Uploads: n.uploads.list(),
		Store: local.StoreStatus{Blobs: usage.Blobs, Held: usage.Held, Reserved: usage.Reserved, Beside: usage.Beside, MaxBytes: int64(n.cfg.Store.MaxBytes),
			MaxPercent: n.cfg.Store.MaxPercent},
		Limits: n.limits.Rates(), Share: n.limits.SourceShare(), Snapshotter: n.snapshots.status()}
	// Lists are never null, so that scripts can walk them.
	s.Schedulers, s.Peers, s.Tasks = append([]peer.LinkStatus{}, s.Schedulers...), append([]string{}, s.Peers...), append([]peer.TaskStatus{}, s.Tasks...)
	return s
}

// allSeeds returns the piece servers of the seeds, with this node's own if it is one.
func (n *node) allSeeds() []string {
	seeds := n.peer.Seeds()
	if n.cfg.Seed {
		seeds = append(seeds, n.cfg.Peer.Advertise)
	}
	return seeds
}
