package cluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Ports of the daemons, the same on every host: each has its own addresses.
const (
	schedulerPort = "7700"
	mirrorPort    = "7701"
	peerPort      = "7702"
	adminPort     = "7703"
	proxyPort     = "7712" // of a Proxy before the piece server
)

// A Scheduler is a shoal scheduler on a host of its own.
type Scheduler struct {
	*Process

	host   *Host
	config string
}

// StartScheduler adds a host by the name and runs a shoal scheduler on it.
func (c *Cluster) StartScheduler(ctx context.Context, name string) (*Scheduler, error) {
	host, err := c.AddHost(ctx, name)
	if err != nil {
		return nil, err
	}
	s := &Scheduler{host: host}
	s.config, err = c.writeConfig(host, "scheduler", map[string]any{
		"listen": "0.0.0.0:" + schedulerPort,
	})
	if err != nil {
		return nil, err
	}
	return s, s.Start(ctx)
}

// Start runs the scheduler again after its Kill.
func (s *Scheduler) Start(ctx context.Context) (err error) {
	argv := []string{s.host.c.cfg.Shoal, "scheduler", "--config", s.config}
	if s.Process, err = s.host.Start("scheduler", argv, nil); err != nil {
		return err
	}
	return s.waitHealthy(ctx, s.host.client, s.URL()+"/healthz")
}

// URL is where hosts reach the scheduler.
func (s *Scheduler) URL() string { return "http://" + s.host.Addr + ":" + schedulerPort }

// Host returns the host the scheduler runs on.
func (s *Scheduler) Host() *Host { return s.host }

// NodeConfig says how a node differs from the others.
type NodeConfig struct {
	Name       string
	Host       *Host // that it runs on; nil adds one of the node's name
	Seed       bool
	Zone       string
	Schedulers []*Scheduler
	Registries []*Registry
	TagTTL     string // how long the mirror believes a tag; empty is the default of shoal
	VerdictTTL string // and accepted credentials
	StaleFor   string // and both while the registry is down
	StoreBytes int64  // quota of the store; zero is the default of shoal
	Driver     string // of the snapshotter; empty is the default of shoal
	Proxied    bool   // other hosts reach its pieces through Node.Proxy
	Bounds     Bounds
	Supervised Supervision // without a watchdog nobody looks after the daemon
}

// A Node is a shoal node on a host of its own.
type Node struct {
	*Process

	// Proxy stands before what the node serves to other hosts; nil without one.
	Proxy *Proxy

	host       *Host
	config     string
	bounds     Bounds
	supervised Supervision
	watchdog   *watchdog // nil without one
}

// StartNode runs a shoal node, on a host of its own unless it is given one.
func (c *Cluster) StartNode(ctx context.Context, cfg NodeConfig) (*Node, error) {
	host, err := cfg.Host, error(nil)
	if host == nil {
		host, err = c.AddHostIn(ctx, cfg.Zone, cfg.Name)
	}
	if err != nil {
		return nil, err
	}
	schedulers := []string{}
	for _, s := range cfg.Schedulers {
		schedulers = append(schedulers, s.URL())
	}
	registries := map[string]any{}
	mirror := map[string]any{"listen": "127.0.0.1:" + mirrorPort}
	for key, value := range map[string]string{"tag_ttl": cfg.TagTTL, "verdict_ttl": cfg.VerdictTTL, "stale_for": cfg.StaleFor} {
		if value != "" {
			mirror[key] = value
		}
	}
	for _, r := range cfg.Registries {
		registries[r.Addr()] = map[string]any{"plain_http": true}
		if mirror["default_registry"] == nil { // nydusd does not say whose blob it asks for
			mirror["default_registry"] = r.Addr()
		}
	}
	n, advertised := &Node{host: host, bounds: cfg.Bounds, supervised: cfg.Supervised}, peerPort
	if cfg.Proxied {
		advertised = proxyPort
		if n.Proxy, err = host.StartProxy(ctx, proxyPort, peerPort); err != nil {
			return nil, err
		}
	}
	snapshotter := map[string]any{"mount": []string{"**"}}
	if cfg.Driver != "" {
		snapshotter["enabled"], snapshotter["driver"] = "true", cfg.Driver
	}
	n.config, err = c.writeConfig(host, "node", map[string]any{
		"name":        cfg.Name,
		"data_dir":    n.DataDir(),
		"seed":        cfg.Seed,
		"mirror":      mirror,
		"peer":        map[string]any{"listen": "0.0.0.0:" + peerPort, "advertise": host.Addr + ":" + advertised, "zone": cfg.Zone},
		"admin":       map[string]any{"listen": "127.0.0.1:" + adminPort},
		"schedulers":  schedulers,
		"registries":  registries,
		"snapshotter": snapshotter,
		"store":       map[string]any{"max_bytes": cfg.StoreBytes, "max_percent": 95},
	})
	if err != nil {
		return nil, err
	}
	return n, n.Start(ctx)
}

// Start runs the node again after its Kill, with what its store holds.
func (n *Node) Start(ctx context.Context) (err error) {
	argv, err := n.host.bound(n.bounds, []string{n.host.c.cfg.Shoal, "node", "--config", n.config})
	if err != nil {
		return err
	}
	var env []string
	if n.supervised.Watchdog > 0 {
		if err := n.host.watch(&n.watchdog, n.supervised); err != nil {
			return err
		}
		env = n.watchdog.env(n.supervised)
	}
	if n.Process, err = n.host.Start("node", argv, env); err != nil {
		return err
	}
	if n.watchdog != nil {
		n.watchdog.target.Store(n.Process)
	}
	return n.waitHealthy(ctx, n.host.client, n.AdminURL()+"/healthz")
}

// Host returns the host the node runs on.
func (n *Node) Host() *Host { return n.host }

// DataDir is where the node keeps what it holds.
func (n *Node) DataDir() string { return filepath.Join(n.host.Dir, "data") }

// MirrorURL is where programs on the node's host reach its mirror.
func (n *Node) MirrorURL() string { return "http://127.0.0.1:" + mirrorPort }

// AdminURL is where programs on the node's host reach its health, metrics and profiles.
func (n *Node) AdminURL() string { return "http://127.0.0.1:" + adminPort }

// ConfigureMirror has shoal write the hosts.toml that sends containerd to the node for a registry.
func (n *Node) ConfigureMirror(ctx context.Context, c *Containerd, r *Registry) error {
	_, err := n.host.Run(ctx, n.mirrorArgs(c, r)...)
	return err
}

func (n *Node) mirrorArgs(c *Containerd, r *Registry) []string {
	return []string{n.host.c.cfg.Shoal, "mirror", "configure", "--certs-dir", c.HostsDir(),
		"--mirror", n.MirrorURL(), "--plain-http", r.Addr(), "--containerd-config", c.config}
}

// Metrics reads what the node says of itself.
func (n *Node) Metrics(ctx context.Context) (Metrics, error) {
	return n.host.metrics(ctx, n.AdminURL(), "")
}

// Metrics reads what the scheduler says of itself.
func (s *Scheduler) Metrics(ctx context.Context) (Metrics, error) {
	token, err := s.host.c.Token()
	if err != nil {
		return nil, err
	}
	return s.host.metrics(ctx, s.URL(), token)
}

func (h *Host) metrics(ctx context.Context, base, token string) (Metrics, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", h.Name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metrics of %s: %s", h.Name, resp.Status)
	}
	return parseMetrics(resp.Body)
}

// Read returns how many bytes the node's readers got from each origin: cache, local, peer, source.
func (n *Node) Read(ctx context.Context) (map[string]int64, error) {
	m, err := n.Metrics(ctx)
	if err != nil {
		return nil, err
	}
	return m.Read(), nil
}

// Metrics are the samples of a scrape: NAME{LABELS} and value.
type Metrics map[string]float64

// Read is what became available to readers of a node, in bytes by origin.
func (m Metrics) Read() map[string]int64 {
	read := map[string]int64{}
	for _, origin := range []string{"cache", "local", "peer", "source"} {
		read[origin] = int64(m.Sum("shoal_peer_read_bytes_total", `origin="`+origin+`"`))
	}
	return read
}

// Sum adds up the samples of a metric whose labels hold all of the given pairs, each written as label="value".
func (m Metrics) Sum(name string, labels ...string) float64 {
	sum := 0.0
samples:
	for sample, value := range m {
		got, rest, _ := strings.Cut(sample, "{")
		if got != name {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(rest, label) {
				continue samples
			}
		}
		sum += value
	}
	return sum
}

// Quantile returns the least bound of a histogram's buckets that a share q of its observations does not exceed; +Inf above the last, 0
// without observations.
func (m Metrics) Quantile(name string, q float64) float64 {
	count, least := m.Sum(name+"_count"), math.Inf(1)
	if count == 0 {
		return 0
	}
	for sample, value := range m {
		rest, ok := strings.CutPrefix(sample, name+`_bucket{le="`)
		if !ok || value < q*count {
			continue
		}
		if bound, err := strconv.ParseFloat(strings.TrimSuffix(rest, `"}`), 64); err == nil {
			least = min(least, bound)
		}
	}
	return least
}

// parseMetrics reads Prometheus's text format as far as counters, gauges and histograms without labels need it.
func parseMetrics(r io.Reader) (Metrics, error) {
	m := Metrics{}
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		line := scanner.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("metric %q: %w", line, err)
		}
		m[line[:at]] = value
	}
	return m, scanner.Err()
}

// writeConfig writes a daemon's configuration, with the cluster's token and log level, and returns its path.
func (c *Cluster) writeConfig(host *Host, daemon string, config map[string]any) (string, error) {
	token, err := c.tokenFile()
	if err != nil {
		return "", err
	}
	config["cluster"] = map[string]any{"token_file": token}
	config["log"] = map[string]any{"level": c.cfg.LogLevel}
	config["tracing"] = map[string]any{"endpoint": c.cfg.Collector}
	data, err := yaml.Marshal(config)
	if err != nil {
		return "", err
	}
	path := filepath.Join(host.Dir, daemon+".yaml")
	return path, os.WriteFile(path, data, 0o600)
}
