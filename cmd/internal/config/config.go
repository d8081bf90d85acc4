// Package config holds what users configure: the YAML files of the daemons, their defaults, and what is wrong with them.
//
// Files are strict: an unknown key is an error that names it. Flags override the file, the file overrides defaults; every
// default works without a file.
package config

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shoal-project/shoal/peer/limits"
	"github.com/shoal-project/shoal/registry-mirror/hosts"
	"github.com/shoal-project/shoal/scheduler/identity"
	"github.com/shoal-project/shoal/scheduler/policy"
)

// Log is where and how a daemon reports.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn or error
	Format string `yaml:"format"` // text or json
}

// Tracing is where a daemon tells its spans, by OpenTelemetry's protocol. Without an endpoint the environment's OTEL_EXPORTER_OTLP_ENDPOINT is
// one; without that nothing is traced.
type Tracing struct {
	Endpoint string  `yaml:"endpoint"` // http://HOST:4318
	Sample   float64 `yaml:"sample"`   // the share of requests, 0 to 1; 0 is what OTEL_TRACES_SAMPLER says, else all
}

func (t Tracing) validate() error {
	if t.Sample < 0 || t.Sample > 1 {
		return fmt.Errorf("tracing.sample is %g, want 0 to 1", t.Sample)
	}
	return nil
}

// Cluster is what the hosts of one cluster share.
type Cluster struct {
	// TokenFile holds the secret by which hosts know each other. Without it the environment's SHOAL_CLUSTER_TOKEN is one.
	TokenFile string `yaml:"token_file"`
	// TLS has hosts and schedulers know each other by certificates.
	TLS TLS `yaml:"tls"`
	// Insecure does without: whoever reaches the ports may read what the cluster holds.
	Insecure bool `yaml:"insecure"`
}

// TLS names the files of a host's certificate, in PEM form. All or none are set.
type TLS struct {
	CAFile   string `yaml:"ca_file"`
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

// Set reports whether certificates are used.
func (t TLS) Set() bool { return t != TLS{} }

// Identity reads the files; nil without any.
func (t TLS) Identity(role identity.Role, log *slog.Logger) (*identity.Identity, error) {
	if !t.Set() {
		return nil, nil
	}
	id, err := identity.Load(identity.Files{CA: t.CAFile, Cert: t.CertFile, Key: t.KeyFile}, role, log)
	if err != nil {
		return nil, fmt.Errorf("cluster.tls: %w; make certificates with shoal certs", err)
	}
	return id, nil
}

// TokenVariable is the environment's variable with the cluster's secret.
const TokenVariable = "SHOAL_CLUSTER_TOKEN"

// Scheduler configures shoal scheduler.
type Scheduler struct {
	Listen  string        `yaml:"listen"`
	Admin   Admin         `yaml:"admin"` // apart from Listen, if set
	Cluster Cluster       `yaml:"cluster"`
	Limits  ClusterLimits `yaml:"limits"`
	// Networks say where nodes stand that do not say so themselves.
	Networks []Network `yaml:"networks"`
	// Near is the longest round trip within a zone, for nodes that have none by then; 0 does not measure.
	Near    time.Duration `yaml:"near"`
	Log     Log           `yaml:"log"`
	Tracing Tracing       `yaml:"tracing"`
}

// Network is a range of addresses and where its nodes stand.
type Network struct {
	CIDR  string `yaml:"cidr"`
	Zone  string `yaml:"zone"`
	Rack  string `yaml:"rack"`
	Group string `yaml:"group"`
}

// Places returns the networks as the scheduler wants them, or what is wrong with them.
func (s Scheduler) Places() (policy.Networks, error) {
	list := make([]policy.Network, 0, len(s.Networks))
	for _, n := range s.Networks {
		list = append(list, policy.Network{CIDR: n.CIDR,
			Place: policy.Place{Locality: policy.Locality{Zone: n.Zone, Rack: n.Rack}, Group: n.Group}})
	}
	places, err := policy.NewNetworks(list)
	if err != nil {
		return places, fmt.Errorf("networks: %w", err)
	}
	return places, nil
}

// ClusterLimits are what a scheduler has all hosts keep to together.
type ClusterLimits struct {
	Source limits.Rate `yaml:"source" json:"source"` // from origins, bytes a second; 0: no bound
}

// Validate reports a rate that cannot be kept.
func (l ClusterLimits) Validate() error { return limits.Rates{Source: l.Source}.Validate() }

// Node configures shoal node.
type Node struct {
	Name    string `yaml:"name"`
	DataDir string `yaml:"data_dir"`
	Mirror  Mirror `yaml:"mirror"`
	Peer    Peer   `yaml:"peer"`
	Admin   Admin  `yaml:"admin"`
	Seed    bool   `yaml:"seed"`
	// Schedulers are URLs; dns+http:// stands for all addresses of a name.
	Schedulers []string            `yaml:"schedulers"`
	Peers      []string            `yaml:"peers"` // all hosts, HOST:PORT, of a cluster without a scheduler
	Cluster    Cluster             `yaml:"cluster"`
	Registries map[string]Registry `yaml:"registries"`
	Store      Store               `yaml:"store"`
	Limits     limits.Rates        `yaml:"limits"`
	// Snapshotter gives containerd the file systems of images.
	Snapshotter Snapshotter `yaml:"snapshotter"`
	Log         Log         `yaml:"log"`
	Tracing     Tracing     `yaml:"tracing"`
}

// Mirror is the registry mirror that containerd asks.
type Mirror struct {
	Listen          string `yaml:"listen"`
	DefaultRegistry string `yaml:"default_registry"` // for clients that do not add ?ns=
	// TagTTL is how long a tag is believed without asking the registry.
	TagTTL time.Duration `yaml:"tag_ttl"`
	// VerdictTTL is how long credentials are believed that the registry accepted, a minute at the most.
	VerdictTTL time.Duration `yaml:"verdict_ttl"`
	// StaleFor is how long tags and verdicts are believed while the registry is down.
	StaleFor time.Duration `yaml:"stale_for"`
	// AccessLog logs a line for each request.
	AccessLog bool `yaml:"access_log"`
	// Configure has the node write containerd's hosts.toml once it is ready, and take it back when it is told to stop.
	Configure Configure `yaml:"configure"`
}

// Configure is what a node does to containerd's configuration of registries.
type Configure struct {
	CertsDir   string   `yaml:"certs_dir"`  // containerd's config_path; empty leaves it alone
	Registries []string `yaml:"registries"` // HOST or HOST:PORT; none is all that have no folder of their own
}

func (c Configure) validate() error {
	if c.CertsDir == "" && len(c.Registries) > 0 {
		return errors.New("mirror.configure: registries without certs_dir: name containerd's config_path, usually " + hosts.DefaultCertsDir)
	}
	var named hosts.Config
	for _, r := range c.Registries {
		named.Registries = append(named.Registries, hosts.Registry{Host: r})
	}
	if err := named.Validate(); err != nil {
		return fmt.Errorf("mirror.configure: %w", err)
	}
	return nil
}

func (m Mirror) validate() error {
	errs := []error{checkAddr("mirror.listen", m.Listen), m.Configure.validate()}
	if m.TagTTL < 0 || m.VerdictTTL < 0 || m.StaleFor < 0 {
		errs = append(errs, errors.New("mirror: tag_ttl, verdict_ttl and stale_for must not be negative; 0 believes nothing"))
	}
	if m.VerdictTTL > time.Minute {
		errs = append(errs, fmt.Errorf("mirror.verdict_ttl is %v, at most 1m: so long may somebody pull who may not any more", m.VerdictTTL))
	}
	return errors.Join(errs...)
}

// Peer is the piece server other hosts ask.
type Peer struct {
	Listen    string `yaml:"listen"`
	Advertise string `yaml:"advertise"` // HOST:PORT under which others reach it; found out by default
	Zone      string `yaml:"zone"`
	Rack      string `yaml:"rack"`
	Group     string `yaml:"group"` // shares with nodes of the same name only
}

// Admin serves /healthz, /metrics, /limits and /pins.
type Admin struct {
	Listen string `yaml:"listen"`
}

// Registry is how one registry is reached.
type Registry struct {
	URL       string `yaml:"url"` // where it, or a mirror of it, is reached; https://HOST by default
	PlainHTTP bool   `yaml:"plain_http"`
	CAFile    string `yaml:"ca_file"`
}

// Store bounds the blobs kept on disk.
type Store struct {
	MaxBytes   Size `yaml:"max_bytes"`   // 0: no bound
	MaxPercent int  `yaml:"max_percent"` // of what others leave of the disk
}

// Size is a number of bytes. In text it may have a unit: 100GiB, 500GB.
type Size int64

// UnmarshalYAML takes a number, or a string for limits.ParseSize.
func (s *Size) UnmarshalYAML(node *yaml.Node) error {
	var n int64
	if node.Decode(&n) == nil {
		*s = Size(n)
		return nil
	}
	n, err := limits.ParseSize(node.Value)
	if err != nil {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %v", node.Line, err)}} // told with other findings
	}
	*s = Size(n)
	return nil
}

// DefaultScheduler returns the configuration without a file.
func DefaultScheduler() Scheduler {
	return Scheduler{Listen: "0.0.0.0:7700", Near: 10 * time.Millisecond, Log: defaultLog()}
}

// DefaultNode returns the configuration without a file: a lone host that reads every blob from its origin once.
func DefaultNode() Node {
	name, err := os.Hostname()
	if err != nil {
		name = "localhost"
	}
	return Node{Name: name, DataDir: "/var/lib/shoal", Mirror: Mirror{Listen: "127.0.0.1:7701", TagTTL: 5 * time.Second, VerdictTTL: time.Minute, StaleFor: 24 * time.Hour},
		Peer: Peer{Listen: "0.0.0.0:7702"}, Admin: Admin{Listen: "127.0.0.1:7703"}, Store: Store{MaxPercent: 80}, Snapshotter: Snapshotter{Enabled: SnapshotterAuto, Driver: "auto"}, Log: defaultLog()}
}

func defaultLog() Log { return Log{Level: "info", Format: "text"} }

// Load reads the YAML file at path over into, which holds the defaults. An empty path reads nothing.
func Load(path string, into any) error {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	err = dec.Decode(into)
	if err == nil {
		if err = dec.Decode(new(yaml.Node)); err == nil {
			return fmt.Errorf("configuration %s: a second document begins; put all keys into one, without ---", path)
		}
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("configuration %s: %s", path, readable(err))
	}
	return nil
}

// readable puts the decoder's findings on one line, in the user's words.
func readable(err error) string {
	typed, ok := errors.AsType[*yaml.TypeError](err)
	if !ok {
		return strings.TrimPrefix(err.Error(), "yaml: ")
	}
	var out []string
	for _, e := range typed.Errors {
		if line, rest, ok := strings.Cut(e, ": field "); ok {
			key, _, _ := strings.Cut(rest, " ")
			e = fmt.Sprintf("%s: unknown key %q", line, key)
		}
		out = append(out, e)
	}
	return strings.Join(out, "; ")
}

// Validate reports all faults at once.
func (s Scheduler) Validate() error {
	errs := []error{checkAddr("listen", s.Listen), s.Cluster.validate(true), s.Limits.Validate(), s.Log.validate(), s.Tracing.validate()}
	if _, err := s.Places(); err != nil {
		errs = append(errs, err)
	}
	if s.Near < 0 {
		errs = append(errs, fmt.Errorf("near: %v is negative; 0 does not measure", s.Near))
	}
	if s.Admin.Listen != "" {
		errs = append(errs, checkAddr("admin.listen", s.Admin.Listen))
	}
	return errors.Join(errs...)
}

// Validate reports all faults at once.
func (n Node) Validate() error {
	errs := []error{n.Mirror.validate(), checkAddr("peer.listen", n.Peer.Listen),
		checkAddr("admin.listen", n.Admin.Listen), n.Log.validate(), n.Tracing.validate(), n.Limits.Validate(), n.Snapshotter.validate(), n.validateSocket(),
		n.Cluster.validate(len(n.Schedulers)+len(n.Peers) > 0)}
	if n.Name == "" {
		errs = append(errs, errors.New("name is empty: give the host a name that no other host of the cluster has"))
	}
	if n.DataDir == "" {
		errs = append(errs, errors.New("data_dir is empty: name a folder on a disk with room for the models"))
	}
	if n.Peer.Advertise != "" {
		errs = append(errs, checkAddr("peer.advertise", n.Peer.Advertise))
	}
	scheme := "http"
	if n.Cluster.TLS.Set() {
		scheme = "https"
	}
	for _, s := range n.Schedulers {
		u, err := url.Parse(strings.TrimPrefix(s, "dns+"))
		switch {
		case err == nil && u.Scheme == "https" && scheme == "http":
			errs = append(errs, fmt.Errorf("schedulers: %q wants TLS; set cluster.tls, or write http://", s))
		case err != nil || u.Scheme != scheme || u.Host == "" || strings.Trim(u.Path, "/") != "":
			errs = append(errs, fmt.Errorf("schedulers: %q is not of the form %s://HOST:PORT, or dns+%s://NAME:PORT for all addresses of a name", s, scheme, scheme))
		}
	}
	for _, p := range n.Peers {
		errs = append(errs, checkAddr("peers", p))
	}
	if len(n.Peers) > 0 && len(n.Schedulers) > 0 {
		errs = append(errs, errors.New("peers is for clusters without a scheduler; set either peers or schedulers"))
	}
	if n.Seed && len(n.Peers) > 0 {
		errs = append(errs, errors.New("seed: with a list of peers every host is the seed of some blobs; leave it out"))
	} else if n.Seed && len(n.Schedulers) == 0 {
		errs = append(errs, errors.New("seed: a seed needs a scheduler to hear of tasks; set schedulers"))
	}
	if n.Store.MaxBytes < 0 || n.Store.MaxPercent < 0 || n.Store.MaxPercent > 100 {
		errs = append(errs, errors.New("store: max_bytes must not be negative, max_percent must be 0 to 100"))
	}
	for host, r := range n.Registries {
		errs = append(errs, checkCA(host, r.CAFile))
		if r.URL != "" && r.PlainHTTP {
			errs = append(errs, fmt.Errorf("registries: %s: url says by itself whether it is plain HTTP; leave plain_http out", host))
		}
		if strings.Contains(host, "/") {
			errs = append(errs, fmt.Errorf("registries: %q: name HOST or HOST:PORT, without scheme and path", host))
		}
	}
	return errors.Join(errs...)
}

func checkAddr(key, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port == "" {
		return fmt.Errorf("%s: %q is not of the form HOST:PORT", key, addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%s: %q has no port between 0 and 65535", key, addr)
	}
	if key == "peer.advertise" && (host == "" || net.ParseIP(host).IsUnspecified()) {
		return fmt.Errorf("%s: %q is no address other hosts can reach", key, addr)
	}
	return nil
}

// checkCA reports a CA file that cannot be used.
func checkCA(registry, file string) error {
	if file == "" {
		return nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("registries: ca_file of %s: %w", registry, err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return fmt.Errorf("registries: ca_file of %s: no certificate in PEM form in %s", registry, file)
	}
	return nil
}

func (c Cluster) validate(shared bool) error {
	token, err := c.Token()
	switch t := c.TLS; {
	case err != nil:
		return err
	case c.Insecure && (token != "" || t.Set()):
		return errors.New("cluster: insecure excludes token_file, " + TokenVariable + " and tls")
	case t.Set() && (t.CAFile == "" || t.CertFile == "" || t.KeyFile == ""):
		return errors.New("cluster.tls: ca_file, cert_file and key_file belong together; make them with shoal certs")
	case shared && token == "" && !t.Set() && !c.Insecure:
		return errors.New("cluster.token_file is not set: write a secret into a file (head -c 32 /dev/urandom | base64) " +
			"and give it to every host and scheduler, or set cluster.tls, or cluster.insecure: true in a network you trust")
	}
	return nil
}

// minToken is the shortest secret, in characters.
const minToken = 16

// Token returns the cluster's secret, empty when there is none.
func (c Cluster) Token() (string, error) {
	if c.TokenFile == "" {
		token := strings.TrimSpace(os.Getenv(TokenVariable))
		if token != "" && len(token) < minToken {
			return "", fmt.Errorf("%s: the secret has %d characters, want at least %d", TokenVariable, len(token), minToken)
		}
		return token, nil
	}
	data, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return "", fmt.Errorf("cluster.token_file: %w; name the file with the cluster's secret, one this user may read", err)
	}
	token := strings.TrimSpace(string(data))
	if len(token) < minToken {
		return "", fmt.Errorf("cluster.token_file: the secret in %s has %d characters, want at least %d; make one with: head -c 32 /dev/urandom | base64",
			c.TokenFile, len(token), minToken)
	}
	return token, nil
}

func (l Log) validate() error {
	var level slog.Level
	if level.UnmarshalText([]byte(l.Level)) != nil {
		return fmt.Errorf("log.level: %q is not debug, info, warn or error", l.Level)
	}
	if l.Format != "text" && l.Format != "json" {
		return fmt.Errorf("log.format: %q is not text or json", l.Format)
	}
	return nil
}

// Logger returns a logger that writes to w. l must be valid.
func (l Log) Logger(w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(l.Level)) // checked by Validate
	options := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
