package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
)

// registryPort is where the registry is reached on its host, registryBack where it listens when a Proxy stands before it.
const (
	registryPort = "5000"
	registryBack = "5001"
)

// A Registry is docker-registry, or distribution, on a host of its own, with its access log as the judge of who read what.
type Registry struct {
	*Process

	// Proxy stands before the registry; nil without one.
	Proxy *Proxy

	host    *Host
	program string
	addr    string // where it listens
	login   Login  // who pushes
}

const registryConfig = `version: 0.1
log:
  level: error
  accesslog: {disabled: false}
storage:
  filesystem: {rootdirectory: %s}
http:
  addr: %s
%s`

// StartRegistry adds a host called registry and runs docker-registry on it.
func (c *Cluster) StartRegistry(ctx context.Context) (*Registry, error) {
	return c.startRegistry(ctx, registryPort, "docker-registry")
}

// StartDistribution is StartRegistry with version 3 of that program.
func (c *Cluster) StartDistribution(ctx context.Context) (*Registry, error) {
	return c.startRegistry(ctx, registryPort, "distribution")
}

// StartProxiedRegistry is StartRegistry with a Proxy before the registry.
func (c *Cluster) StartProxiedRegistry(ctx context.Context) (*Registry, error) {
	r, err := c.startRegistry(ctx, registryBack, "docker-registry")
	if err == nil {
		r.Proxy, err = r.host.StartProxy(ctx, registryPort, registryBack)
	}
	return r, err
}

func (c *Cluster) startRegistry(ctx context.Context, port, program string) (*Registry, error) {
	r, err := c.newRegistry(ctx, port, program)
	if err != nil {
		return nil, err
	}
	if err := r.configure(""); err != nil {
		return nil, err
	}
	return r, r.Start(ctx)
}

// newRegistry adds the host of a registry.
func (c *Cluster) newRegistry(ctx context.Context, port, program string) (*Registry, error) {
	host, err := c.AddHost(ctx, "registry")
	if err != nil {
		return nil, err
	}
	return &Registry{host: host, program: program, addr: host.Addr + ":" + port}, nil
}

// configure writes the registry's configuration, with a section that says who may read.
func (r *Registry) configure(auth string) error {
	config := fmt.Sprintf(registryConfig, filepath.Join(r.host.Dir, "storage"), r.addr, auth)
	return os.WriteFile(filepath.Join(r.host.Dir, "config.yml"), []byte(config), 0o644)
}

// Start runs the registry again after its Kill, with what it held.
func (r *Registry) Start(ctx context.Context) (err error) {
	argv := []string{r.program, "serve", filepath.Join(r.host.Dir, "config.yml")}
	if r.Process, err = r.host.Start("registry", argv, nil); err != nil {
		return err
	}
	return r.waitFor(ctx, "its answer", func() bool { return replies(ctx, r.host.client, "http://"+r.addr+"/v2/") })
}

// Addr returns the registry's address and port, as it stands in image references.
func (r *Registry) Addr() string { return r.host.Addr + ":" + registryPort }

// Host returns the host the registry runs on, for instance to change its link or to push from it.
func (r *Registry) Host() *Host { return r.host }

// Push uploads an image as REPOSITORY:TAG, from the registry's own host, so that no link is loaded.
func (r *Registry) Push(ctx context.Context, repository, tag string, img v1.Image) error {
	ref, err := name.NewTag(r.Addr()+"/"+repository+":"+tag, name.Insecure)
	if err != nil {
		return err
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithTransport(r.host.client.Transport)}
	if r.login != (Login{}) {
		options = append(options, remote.WithAuth(&authn.Basic{Username: r.login.User, Password: r.login.Password}))
	}
	return remote.Write(ref, img, options...)
}

// Served reads the access log and returns how many bytes of each blob the registry has sent since it was first started.
// A request counts when it has ended, so a reader that has all it wanted may be ahead of the log: see WaitServed.
func (r *Registry) Served() (map[digest.Digest]int64, error) {
	data, err := os.ReadFile(r.Log())
	if err != nil {
		return nil, err
	}
	return parseAccessLog(strings.Lines(string(data))), nil
}

// WaitServed waits until the log has caught up with a reader that got at least size bytes of the blob, then returns what
// was served of it.
func (r *Registry) WaitServed(ctx context.Context, blob digest.Digest, size int64) (served int64, err error) {
	err = r.waitFor(ctx, "the access log of "+blob.String(), func() bool {
		all, readErr := r.Served()
		served = all[blob]
		return readErr != nil || served >= size
	})
	return served, err
}
