package source

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/shoal-project/shoal/peer/piece"
)

const (
	dialTimeout     = 3 * time.Second
	handshake       = 5 * time.Second
	idleConnections = 32
	maxRedirects    = 10

	dockerHub         = "docker.io"
	dockerHubEndpoint = "registry-1.docker.io"
)

// RegistryConfig is how one registry is reached. The zero RegistryConfig is HTTPS with the system's certificates.
type RegistryConfig struct {
	// URL is where the registry, or a mirror of it, is reached: its /v2/ is below, http or https. Empty is the registry's own host.
	// Credentials are those for the registry's name.
	URL string
	// PlainHTTP speaks HTTP without TLS. Registries on loopback addresses do so without being told, unless they have a CAFile.
	PlainHTTP bool
	// CAFile is a PEM file of certificates to trust besides the system's.
	CAFile string
	// Local lets other hosts of the cluster have URLs at this host read although it is a loopback or link-local address.
	Local bool
}

// Endpoints knows how to reach registries. It is safe for concurrent use.
type Endpoints struct {
	configs   map[string]RegistryConfig
	bases     map[string]*url.URL // of the registries that have a URL of their own
	clients   map[string]*http.Client
	system    *http.Client
	guarded   *http.Client // for URLs that other hosts named
	transport []*http.Transport
}

// NewEndpoints returns the endpoints of the registries named by the keys, HOST or HOST:PORT, and of all others with the
// zero RegistryConfig. The error tells of every CA file and URL that cannot be used.
func NewEndpoints(configs map[string]RegistryConfig) (*Endpoints, error) {
	e := &Endpoints{configs: configs, bases: map[string]*url.URL{}, clients: map[string]*http.Client{}}
	e.system, e.guarded = e.newClient(nil), e.newClient(nil)
	e.transport[1].DialContext = (&net.Dialer{Timeout: dialTimeout, Control: refuseLocal}).DialContext
	var errs []error
	for host, c := range configs {
		if c.URL != "" {
			base, err := parseBase(c.URL)
			if err != nil {
				errs = append(errs, fmt.Errorf("registry %s: %w", host, err))
			}
			e.bases[host] = base
		}
		if c.CAFile == "" {
			continue
		}
		pool, err := loadCA(c.CAFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("registry %s: %w", host, err))
			continue
		}
		e.clients[host] = e.newClient(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})
	}
	return e, errors.Join(errs...)
}

func parseBase(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("url %q is not of the form https://HOST[:PORT][/PREFIX]", raw)
	}
	return u, nil
}

func loadCA(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s: no certificate in PEM form in it", file)
	}
	return pool, nil
}

func (e *Endpoints) newClient(config *tls.Config) *http.Client {
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: handshake,
		MaxIdleConnsPerHost: idleConnections,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true,
	}
	e.transport = append(e.transport, t)
	return &http.Client{Transport: t, CheckRedirect: dropCredentials}
}

// dropCredentials keeps Authorization from every host but the one it was meant for. net/http alone would send it to
// subdomains and to other ports of the host.
func dropCredentials(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("stopped after %d redirects", maxRedirects)
	}
	if first := via[0].URL; req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
		req.Header.Del("Authorization")
		req.Header.Del("Cookie")
	}
	return nil
}

// Resolve returns the URL below which the registry's /v2/ is, and the client to reach it with.
func (e *Endpoints) Resolve(registry string) (*url.URL, *http.Client) {
	base := &url.URL{Scheme: "https", Host: registry}
	if c := e.configs[registry]; c.PlainHTTP || c.CAFile == "" && isLoopback(registry) {
		base.Scheme = "http"
	}
	if registry == dockerHub {
		base.Host = dockerHubEndpoint
	}
	if own := e.bases[registry]; own != nil {
		copied := *own
		base = &copied
	}
	if c := e.clients[registry]; c != nil {
		return base, c
	}
	return base, e.system
}

// Web returns the client for URLs at a host, which may be one of the configured ones. The client for foreign URLs, those that another
// host of the cluster named, refuses addresses of this machine and of its link: behind those are services that trust whoever is
// here, such as a cloud's metadata.
func (e *Endpoints) Web(host string, foreign bool) *http.Client {
	client := e.system
	if c := e.clients[host]; c != nil {
		client = c
	} else if foreign && !e.configs[host].Local {
		client = e.guarded
	}
	return &http.Client{Transport: client.Transport, CheckRedirect: dropHeaders}
}

// refuseLocal is the Control of a dialer.
func refuseLocal(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	if ip := addr.Addr().Unmap(); ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast() {
		return fmt.Errorf("%s is an address of this machine or its link, which no other host may have read: %w", ip, piece.ErrDenied)
	}
	return nil
}

// dropHeaders keeps all that a reader had sent from every host but the one it was meant for, and TLS from being left.
func dropHeaders(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("stopped after %d redirects", maxRedirects)
	}
	first := via[0]
	if first.URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("it leads from https to http, at %s", req.URL.Host)
	}
	if req.URL.Host != first.URL.Host || req.URL.Scheme != first.URL.Scheme {
		kept := http.Header{}
		for _, name := range []string{"Range", "Accept-Encoding", "If-Match", "If-Unmodified-Since"} {
			if v := first.Header.Values(name); len(v) > 0 {
				kept[name] = v
			}
		}
		req.Header = kept
	}
	return nil
}

// Close closes the connections that are kept for the next request.
func (e *Endpoints) Close() {
	for _, t := range e.transport {
		t.CloseIdleConnections()
	}
}

func isLoopback(registry string) bool {
	host := (&url.URL{Host: registry}).Hostname()
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}
