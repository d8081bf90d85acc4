package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"github.com/shoal-project/shoal/registry-mirror/hosts"
)

// hostsConfig is what the configuration says of containerd's hosts.toml.
func (n *node) hostsConfig() (hosts.Config, error) {
	own := n.cfg.Mirror.Configure
	host, port, err := net.SplitHostPort(n.mirrorListener.Addr().String())
	if err != nil {
		return hosts.Config{}, err
	}
	if ip := net.ParseIP(host); ip.IsUnspecified() {
		host = "127.0.0.1" // a refused connection there costs nothing
	}
	cfg := hosts.Config{CertsDir: own.CertsDir, Mirror: "http://" + net.JoinHostPort(host, port)}
	for _, r := range own.Registries {
		cfg.Registries = append(cfg.Registries, hosts.Registry{Host: r, PlainHTTP: n.cfg.Registries[r].PlainHTTP})
	}
	return cfg, nil
}

// announce has containerd ask the mirror, if the configuration says that the node does that.
func (n *node) announce() error {
	if n.cfg.Mirror.Configure.CertsDir == "" {
		return nil
	}
	cfg, err := n.hostsConfig()
	if err != nil {
		return err
	}
	changes, err := hosts.PlanConfigure(cfg)
	if err == nil {
		err = hosts.Apply(changes)
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("mirror.configure: %w; run as root, and with systemd add ReadWritePaths=%s to the unit", err, cfg.CertsDir)
	}
	if err != nil {
		return fmt.Errorf("mirror.configure: %w", err)
	}
	return nil
}

// withdraw takes the mirror out again, so that containerd goes to the registries by itself while this daemon stops.
func (n *node) withdraw() {
	if n.cfg.Mirror.Configure.CertsDir == "" {
		return
	}
	cfg, err := n.hostsConfig()
	if err != nil {
		n.log.Error("hosts.toml stays", "error", err)
		return
	}
	if len(cfg.Registries) == 0 {
		cfg.Registries = []hosts.Registry{{Host: hosts.AllRegistries}} // and nothing that others configured
	}
	changes, err := hosts.PlanRemove(cfg)
	if err == nil {
		err = hosts.Apply(changes)
	}
	if err != nil {
		n.log.Error("hosts.toml stays; containerd notices that nobody listens", "error", err)
	}
}

// after returns a context that ends once ctx has ended and fn has returned; and a function that ends it at once.
func after(ctx context.Context, fn func()) (context.Context, context.CancelFunc) {
	later, end := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { fn(); end() })
	return later, func() { stop(); end() }
}
