package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/cmd/internal/config"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/limits"
	"github.com/shoal-project/shoal/peer/source"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/transfer"
	mirror "github.com/shoal-project/shoal/registry-mirror"
	"github.com/shoal-project/shoal/registry-mirror/upstream"
	"github.com/shoal-project/shoal/scheduler/api"
	"github.com/shoal-project/shoal/scheduler/identity"
	"github.com/shoal-project/shoal/tracing"
)

// originStall is how long the origin may say nothing in the middle of an answer: longer than a peer may, since there is nobody else to
// ask.
const originStall = 3 * time.Second

// node holds the parts of shoal node in the order they are closed in, last first.
type node struct {
	cfg       config.Node
	log       *slog.Logger
	version   string
	admin     *admin
	tracer    tracer
	token     string
	limits    *limits.Limits
	identity  *identity.Identity // nil without certificates
	store     *store.Store
	records   *mirror.Records
	uploads   *uploads
	endpoints *source.Endpoints
	origin    *source.Source
	wire      *transfer.Client
	peer      *peer.Peer
	seeds     *mirror.Seeds
	mirror    *mirror.Handler
	piece     http.Handler
	snapshots snapshots

	mirrorListener, pieceListener, adminListener net.Listener
}

// RunNode runs the daemon of a node until ctx ends. It logs to w.
func RunNode(ctx context.Context, cfg config.Node, version string, w io.Writer) error {
	n := &node{cfg: cfg, version: version, log: cfg.Log.Logger(w), admin: newAdmin(version)}
	defer n.close()
	limitMemory(n.log)
	var err error
	if n.tracer, err = newTracer(cfg.Tracing, "shoal-node", cfg.Name, version, n.component("tracing")); err != nil {
		return err
	}
	if err := n.open(ctx); err != nil {
		return err
	}
	n.log.Info("node ready", "mirror", n.mirrorListener.Addr().String(), "peer", n.cfg.Peer.Advertise, "admin",
		n.adminListener.Addr().String(), "schedulers", cfg.Schedulers, "seed", cfg.Seed, "version", version)
	n.admin.ready.Store(true)
	err = n.run(ctx)
	n.log.Info("node stopped")
	return err
}

// open takes ports and files, so that whatever is wrong with them is known before anything runs.
func (n *node) open(ctx context.Context) error {
	var err error
	if n.token, err = n.cfg.Cluster.Token(); err != nil {
		return err
	}
	if n.identity, err = n.cfg.Cluster.TLS.Identity(identity.Node, n.component("identity")); err != nil {
		return err
	}
	if n.mirrorListener, err = listen(ctx, "mirror.listen", n.cfg.Mirror.Listen); err != nil {
		return err
	}
	if n.adminListener, err = listen(ctx, "admin.listen", n.cfg.Admin.Listen); err != nil {
		return err
	}
	if len(n.cfg.Schedulers)+len(n.cfg.Peers) > 0 { // a lone host has nobody to serve
		if n.pieceListener, err = listen(ctx, "peer.listen", n.cfg.Peer.Listen); err != nil {
			return err
		}
		if n.cfg.Peer.Advertise, err = advertised(ctx, n.cfg, n.pieceListener.Addr()); err != nil {
			return err
		}
	}
	if err := n.openData(); err != nil {
		return err
	}
	if err := n.build(); err != nil {
		return err
	}
	return n.openSnapshots(ctx, images{n.mirror, blobs{n.peer}, n.cfg.Snapshotter.Mounts})
}

// openData opens what is on disk.
func (n *node) openData() error {
	if err := os.MkdirAll(n.cfg.DataDir, 0o700); err != nil {
		return dataDirError(err)
	}
	var err error
	n.store, err = store.Open(filepath.Join(n.cfg.DataDir, "blobs"), store.Config{MaxBytes: int64(n.cfg.Store.MaxBytes),
		MaxPercent: n.cfg.Store.MaxPercent, Log: n.component("store"), Registerer: n.admin.registry})
	if err != nil {
		return dataDirError(err)
	}
	n.records, err = mirror.OpenRecords(filepath.Join(n.cfg.DataDir, "mirror.db"), n.component("mirror"))
	if err != nil {
		return dataDirError(err)
	}
	return nil
}

// dataDirError says what to do about a data folder that cannot be used.
func dataDirError(err error) error {
	if errors.Is(err, store.ErrLocked) {
		return fmt.Errorf("data_dir: %w; stop that one or give each node a data_dir of its own", err)
	}
	return fmt.Errorf("data_dir: %w; run as root or set data_dir to a folder you may write", err)
}

// build constructs the parts over the files; nothing runs yet.
func (n *node) build() error {
	registries := map[string]source.RegistryConfig{}
	for host, r := range n.cfg.Registries {
		registries[host] = source.RegistryConfig{URL: r.URL, PlainHTTP: r.PlainHTTP, CAFile: r.CAFile}
	}
	var err error
	if n.limits, err = limits.New(n.cfg.Limits); err != nil {
		return err
	}
	if n.endpoints, err = source.NewEndpoints(registries); err != nil {
		return fmt.Errorf("registries: %w", err)
	}
	n.origin, err = source.New(source.Config{Resolve: n.endpoints.Resolve, Web: n.endpoints.Web, Keychain: authn.DefaultKeychain,
		Stall: originStall, Registerer: n.admin.registry})
	if err != nil {
		return err
	}
	if n.wire, err = transfer.NewClient(transfer.ClientConfig{Token: n.token, TLS: clientTLS(n.identity, identity.Node),
		Pacer: n.limits.FromPeer(), Registerer: n.admin.registry}); err != nil {
		return err
	}
	var schedulers peer.Schedulers
	if len(n.cfg.Schedulers) > 0 {
		schedulers = api.NewMembers(n.cfg.Schedulers, func(u string) *api.Client {
			return api.NewClient(u, n.token, api.WithTLS(clientTLS(n.identity, identity.Scheduler)))
		}, nil, n.component("peer"))
	}
	id := n.cfg.Name
	if len(n.cfg.Peers) > 0 && !slices.Contains(n.cfg.Peers, n.cfg.Peer.Advertise) {
		n.log.Warn("this node is not in peers under the address it tells, so that others read the origin besides it; add it there, or set peer.advertise",
			"advertise", n.cfg.Peer.Advertise)
	}
	if len(n.cfg.Peers) > 0 {
		id = n.cfg.Peer.Advertise // what the others' list calls it
	}
	n.peer, err = peer.New(peer.Config{Peers: n.cfg.Peers, Host: api.Host{ID: id, Addr: n.cfg.Peer.Advertise, Zone: n.cfg.Peer.Zone,
		Rack: n.cfg.Peer.Rack, Group: n.cfg.Peer.Group, Seed: n.cfg.Seed}, Limits: n.limits, Log: n.component("peer"), Registerer: n.admin.registry}, n.store, n.wire, n.origin, schedulers)
	if err != nil {
		return err
	}
	return n.buildHandlers()
}

func (n *node) buildHandlers() error {
	manifests, err := upstream.New(upstream.Config{Resolve: n.endpoints.Resolve})
	if err != nil {
		return err
	}
	n.seeds = mirror.NewSeeds(mirror.SeedConfig{Addrs: n.peer.Seeds, Token: n.token, TLS: clientTLS(n.identity, identity.Node),
		Log: n.component("mirror")})
	n.mirror = mirror.New(mirror.Config{DefaultRegistry: n.cfg.Mirror.DefaultRegistry, Registries: slices.Collect(maps.Keys(n.cfg.Registries)), TagTTL: orNever(n.cfg.Mirror.TagTTL),
		VerdictTTL: orNever(n.cfg.Mirror.VerdictTTL), StaleFor: orNever(n.cfg.Mirror.StaleFor), Log: n.component("mirror"),
		Registerer: n.admin.registry}, n.records, manifests, blobs{n.peer}, n.seeds)
	n.uploads = newUploads()
	serving := transfer.Config{Token: n.token, Pacer: n.limits.Upload(), Uploaded: n.uploads.add, Log: n.component("transfer"),
		Registerer: n.admin.registry}
	if !n.cfg.Seed {
		serving.Spacing = -1 // what a seed has just read is rare; what others have is not
	}
	pieces, err := transfer.NewHandler(serving, n.peer.Served())
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/", pieces)
	mux.Handle("/v1/manifests", mirror.ServeRecords(n.records))
	var served http.Handler = mux
	if n.tracer.on() {
		served = tracing.Serve(mux, n.tracer.tracer(), "serve peer")
	}
	n.piece = transfer.RequireToken(n.token, served) // around all, so that what is added is not forgotten
	return nil
}

func (n *node) component(name string) *slog.Logger { return n.log.With("component", name) }

// run serves until ctx ends, then stops in order: mirror, peer.
func (n *node) run(ctx context.Context) error {
	inner, stopInner := context.WithCancel(context.WithoutCancel(ctx))
	defer stopInner()
	below, belowCtx := errgroup.WithContext(inner)
	below.Go(func() error { return n.peer.Run(belowCtx) })
	below.Go(func() error { return n.seeds.Run(belowCtx) })
	below.Go(func() error { return n.snapshots.runMounter(belowCtx) })
	if n.pieceListener != nil {
		l := serverTLS(n.pieceListener, n.identity)
		below.Go(func() error { return serveEndless(belowCtx, l, n.piece, n.component("transfer")) })
	}
	adm := http.NewServeMux()
	n.admin.register(adm, true)
	n.registerLocal(adm)
	below.Go(func() error { return serve(belowCtx, n.adminListener, adm, n.log) })

	if err := n.announce(); err != nil {
		stopInner()
		return errors.Join(err, below.Wait())
	}
	serving, stopServing := after(ctx, n.withdraw)
	defer stopServing()
	front, frontCtx := errgroup.WithContext(serving)
	front.Go(func() error {
		return serve(frontCtx, newSparing(n.mirrorListener, n.component("mirror")), n.front(), n.component("mirror"))
	})
	front.Go(func() error { return n.snapshots.run(frontCtx) })
	front.Go(func() error { return n.restoreSnapshots(frontCtx) })
	front.Go(func() error { return supervise(frontCtx, n.mirrorListener.Addr(), n.log) })
	front.Go(func() error { // what runs below failed: stop the front too
		select {
		case <-belowCtx.Done():
			return context.Cause(belowCtx)
		case <-frontCtx.Done():
			return nil
		}
	})
	err := front.Wait()
	stopInner()
	if belowErr := below.Wait(); belowErr != nil && !errors.Is(belowErr, context.Canceled) {
		return belowErr
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (n *node) close() {
	for _, l := range []net.Listener{n.mirrorListener, n.pieceListener, n.adminListener} {
		if l != nil {
			_ = l.Close() // usually closed by its server already
		}
	}
	n.snapshots.close()
	if n.wire != nil {
		n.wire.Close()
	}
	if n.endpoints != nil {
		n.endpoints.Close()
	}
	if n.records != nil {
		if err := n.records.Close(); err != nil {
			n.log.Error("records", "error", err)
		}
	}
	if n.store != nil {
		if err := n.store.Close(); err != nil {
			n.log.Error("store", "error", err)
		}
	}
	n.tracer.close()
}

// advertised returns the address other hosts reach the piece server at: the configured one, or the one this host has on the way to its
// first scheduler.
func advertised(ctx context.Context, cfg config.Node, bound net.Addr) (string, error) {
	if cfg.Peer.Advertise != "" {
		return cfg.Peer.Advertise, nil
	}
	host, port, err := net.SplitHostPort(bound.String())
	if err != nil {
		return "", fmt.Errorf("peer.listen: %w", err)
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return bound.String(), nil
	}
	other, err := anotherHost(cfg)
	if err != nil {
		return "", err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(other, "9")) // sends nothing, only chooses a route
	if err != nil {
		return "", fmt.Errorf("no route to %s: %w; set peer.advertise", other, err)
	}
	defer conn.Close()
	local, _, err := net.SplitHostPort(conn.LocalAddr().String())
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(local, port), nil
}

// anotherHost returns the name or address of a host of the cluster, the first scheduler or the first peer.
func anotherHost(cfg config.Node) (string, error) {
	if len(cfg.Schedulers) == 0 {
		host, _, err := net.SplitHostPort(cfg.Peers[0])
		return host, err
	}
	u, err := url.Parse(cfg.Schedulers[0])
	if err != nil {
		return "", fmt.Errorf("schedulers: %w", err)
	}
	return u.Hostname(), nil
}

// front is what containerd asks.
func (n *node) front() http.Handler {
	var front http.Handler = n.mirror
	if n.cfg.Mirror.AccessLog {
		front = mirror.AccessLog(front, n.component("access"))
	}
	if n.tracer.on() {
		front = mirror.Traced(front, n.tracer.tracer())
	}
	return front
}

// orNever turns the configuration's 0, which believes nothing, into the mirror's.
func orNever(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

// blobs lets the mirror open blobs of the peer.
type blobs struct{ peer *peer.Peer }

// Open implements mirror.Blobs.
func (b blobs) Open(ctx context.Context, ref mirror.BlobRef, authorization string) (mirror.Blob, error) {
	return b.open(ctx, ref, authorization)
}

func (b blobs) open(ctx context.Context, ref mirror.BlobRef, authorization string) (*peer.Reader, error) {
	blob := peer.Blob{Digest: ref.Digest, Size: ref.Size, Origin: peer.Origin{Registry: ref.Registry, Repository: ref.Repository}}
	if ref.MapLayer != "" {
		blob.Origin.Map = &peer.MapRef{Layer: ref.MapLayer, Size: ref.MapSize}
	}
	return b.peer.Open(ctx, blob, authorization)
}

// Warm implements mirror.Blobs.
func (b blobs) Warm(ref mirror.BlobRef, authorization string) {
	b.peer.Warm(peer.Blob{Digest: ref.Digest, Size: ref.Size, Origin: peer.Origin{Registry: ref.Registry, Repository: ref.Repository}}, authorization)
}
