package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	prefix   = "shoal-"
	stateDir = "/tmp"
	dirName  = "shoal-lab-"
)

// maxHosts keeps addresses within the switch's /24.
const maxHosts = 250

// stopGrace is how long a program may take to end in order before it is killed.
const stopGrace = 5 * time.Second

// ErrRoot is returned when the lab is not run by root.
var ErrRoot = errors.New("network namespaces and mounts need root; run it with sudo")

// Config says how a cluster is made.
type Config struct {
	// Shoal is the path of the shoal binary. Needed for StartScheduler, StartNode and Shoal.
	Shoal string
	// Link is the rate of each host's link in both directions; zero does not limit. Host.SetLink changes one.
	Link Rate
	// Collector is the URL of a collector that shoal's daemons tell their spans; empty traces nothing.
	Collector string
	// LogLevel is that of shoal's daemons; the default is info.
	LogLevel string
	// Log takes one line for each thing the cluster does; nil discards.
	Log io.Writer
}

// A Cluster is a switch with hosts on it.
type Cluster struct {
	cfg  Config
	run  string
	dir  string
	lock *os.File

	mu      sync.Mutex // guards what follows
	hosts   []*Host
	procs   []*Process
	proxies []*Proxy
	zones   []zone

	watchdogs []*watchdog
}

// A Host is a network namespace with an address, a link and a folder.
type Host struct {
	Name string
	Addr string // its IP address
	Dir  string // its files, removed by Close

	c      *Cluster
	ns     namespace
	port   string
	client *http.Client
}

// New makes an empty cluster. Close it in any case, also after an error of what follows.
func New(ctx context.Context, cfg Config) (*Cluster, error) {
	if os.Geteuid() != 0 {
		return nil, ErrRoot
	}
	if cfg.Log == nil {
		cfg.Log = io.Discard
	}
	if cfg.LogLevel == "" {
		cfg.LogLevel = "info"
	}
	var id [3]byte
	rand.Read(id[:])
	c := &Cluster{cfg: cfg, run: hex.EncodeToString(id[:])}
	c.dir = filepath.Join(stateDir, dirName+c.run)
	if err := os.Mkdir(c.dir, 0o711); err != nil {
		return nil, fmt.Errorf("folder of the run: %w", err)
	}
	var err error
	if c.lock, err = lockDir(c.dir); err == nil {
		err = makeSwitch(ctx, c.switchNS())
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.Logf("files of this run are in %s", c.dir)
	return c, nil
}

// SetCollector changes Config.Collector for daemons that are started from now on.
func (c *Cluster) SetCollector(url string) { c.cfg.Collector = url }

// SetShoal changes the binary that daemons are started from.
func (c *Cluster) SetShoal(path string) { c.cfg.Shoal = path }

// Dir is the folder that holds all files of the cluster.
func (c *Cluster) Dir() string { return c.dir }

// Hosts returns the hosts in the order they were added.
func (c *Cluster) Hosts() []*Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.hosts)
}

// Logf writes a line for who watches the run.
func (c *Cluster) Logf(format string, args ...any) {
	fmt.Fprintf(c.cfg.Log, format+"\n", args...)
}

// AddHost plugs a new host into the switch. Names are short: letters, digits and dashes.
func (c *Cluster) AddHost(ctx context.Context, name string) (*Host, error) {
	return c.AddHostIn(ctx, "", name)
}

// AddHostIn is AddHost in a zone that AddZone made; another name is the first switch.
func (c *Cluster) AddHostIn(ctx context.Context, zone, name string) (*Host, error) {
	bridge := firstBridge
	if z, ok := c.zone(zone); ok {
		bridge = z.bridge
	}
	c.mu.Lock()
	n := len(c.hosts) + 1
	h := &Host{
		Name: name, Addr: net.IPv4(10, 77, 0, byte(n)).String(), Dir: filepath.Join(c.dir, name),
		c: c, ns: namespace(prefix + c.run + "-" + name), port: fmt.Sprintf("port%d", n),
	}
	h.client = h.ns.client()
	c.hosts = append(c.hosts, h)
	c.mu.Unlock()

	if n > maxHosts {
		return nil, fmt.Errorf("host %s: a cluster has at most %d hosts", name, maxHosts)
	}
	if err := os.Mkdir(h.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	if err := c.plugIn(ctx, bridge, h); err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	if err := h.SetLink(ctx, c.cfg.Link); err != nil {
		return nil, err
	}
	return h, nil
}

// SetLink changes the rate of the host's link, both directions; zero takes the limit away.
func (h *Host) SetLink(ctx context.Context, rate Rate) error {
	// What the host sends is held back on its own end, what it receives on the switch's.
	if err := errors.Join(shape(ctx, h.ns, "eth0", rate), shape(ctx, h.c.switchNS(), h.port, rate)); err != nil {
		return fmt.Errorf("link of %s: %w", h.Name, err)
	}
	return nil
}

// SetPlugged pulls the host's cable, after which packets vanish without a word in both directions, or plugs it in again.
func (h *Host) SetPlugged(ctx context.Context, plugged bool) error {
	state := map[bool]string{true: "up", false: "down"}[plugged]
	return commands(ctx, fmt.Sprintf("ip -n %s link set %s %s", h.c.switchNS(), h.port, state))
}

// TimeWait returns how many closed connections the host's kernel remembers; 0 when it cannot be asked.
func (h *Host) TimeWait(ctx context.Context) int {
	out, err := command(ctx, "ip", "netns", "exec", string(h.ns), "cat", "/proc/net/sockstat")
	if err != nil {
		return 0
	}
	return parseTimeWait(out)
}

// Client returns an HTTP client that connects from the host. URLs have IP addresses, no names.
func (h *Host) Client() *http.Client { return h.client }

// Listen opens a TCP listener of this process on the host.
func (h *Host) Listen(ctx context.Context, addr string) (net.Listener, error) {
	return h.ns.listen(ctx, addr)
}

// Namespace returns the name of the host's network namespace, for ip netns and nsenter.
func (h *Host) Namespace() string { return string(h.ns) }

// Start runs a program on the host until Close, Kill or Stop. name is that of its log, NAME.log in the host's folder;
// env is added to the environment.
func (h *Host) Start(name string, argv, env []string) (*Process, error) {
	p, err := startProcess(h.ns, h.Name+"/"+name, filepath.Join(h.Dir, name+".log"), argv, env)
	if err != nil {
		return nil, err
	}
	h.c.mu.Lock()
	h.c.procs = append(h.c.procs, p)
	h.c.mu.Unlock()
	return p, nil
}

// Run runs a program on the host to its end and returns what it printed. When ctx ends, the program is interrupted.
func (h *Host) Run(ctx context.Context, argv ...string) (string, error) {
	out, err := h.runCommand(ctx, argv)
	if err != nil {
		return "", fmt.Errorf("on %s: %w", h.Name, err)
	}
	return out, nil
}

func (c *Cluster) switchNS() namespace { return namespace(prefix + c.run + "-switch") }

// tokenFile returns the path of the cluster's shared token, which the first call makes.
func (c *Cluster) tokenFile() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	path := filepath.Join(c.dir, "token")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, os.WriteFile(path, []byte(rand.Text()+"\n"), 0o600)
}

// Token returns the cluster's shared token.
func (c *Cluster) Token() (string, error) {
	path, err := c.tokenFile()
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(path)
	return strings.TrimSpace(string(data)), err
}

// Detach leaves the cluster running: the programs go on after this process ends, and Leftovers finds them. The cluster
// must not be used any more.
func (c *Cluster) Detach() error {
	for _, h := range c.Hosts() {
		h.client.CloseIdleConnections()
	}
	return c.lock.Close()
}

// Close ends all programs, the newest first, and removes the hosts, the switch and the folder. It is idempotent.
func (c *Cluster) Close() error {
	// What has to go has to go, whatever became of the context of the work.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	c.mu.Lock()
	procs := slices.Clone(c.procs)
	hosts := slices.Clone(c.hosts)
	proxies, watchdogs := c.proxies, c.watchdogs
	c.procs, c.proxies, c.watchdogs = nil, nil, nil
	c.mu.Unlock()

	for _, h := range hosts {
		h.client.CloseIdleConnections()
	}
	var wg sync.WaitGroup
	for _, p := range slices.Backward(procs) {
		wg.Go(func() { p.Stop(stopGrace) })
	}
	wg.Wait()
	var err error
	for _, p := range proxies {
		err = errors.Join(err, p.close())
	}
	for _, w := range watchdogs {
		err = errors.Join(err, w.close())
	}
	err = errors.Join(err, remove(ctx, c.run))
	if c.lock != nil {
		err = errors.Join(err, c.lock.Close())
		c.lock = nil
	}
	return err
}

// Leftovers returns the runs whose process is gone but whose namespaces or files are still there. A run that was
// detached is one of them.
func Leftovers() ([]string, error) {
	runs := map[string]bool{}
	dirs, err := filepath.Glob(filepath.Join(stateDir, dirName+"*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		runs[strings.TrimPrefix(filepath.Base(dir), dirName)] = true
	}
	spaces, err := filepath.Glob(filepath.Join(netnsDir, prefix+"*-switch"))
	if err != nil {
		return nil, err
	}
	for _, ns := range spaces {
		runs[strings.TrimSuffix(strings.TrimPrefix(filepath.Base(ns), prefix), "-switch")] = true
	}
	var dead []string
	for run := range runs {
		lock, err := lockDir(filepath.Join(stateDir, dirName+run))
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue // it lives
		}
		if err == nil {
			_ = lock.Close() // nobody else wants it
		}
		dead = append(dead, run)
	}
	slices.Sort(dead)
	return dead, nil
}

// Remove ends and removes all that is left of a run that Leftovers found.
func Remove(ctx context.Context, run string) error {
	if os.Geteuid() != 0 {
		return ErrRoot
	}
	return remove(ctx, run)
}

// lockDir takes the lock of a run's folder; the lock ends with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // only opened
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}
