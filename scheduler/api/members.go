package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	// byName begins the URL of a name behind which there are several schedulers.
	byName = "dns+"
	// lookEvery is how often names are resolved.
	lookEvery = 5 * time.Second
	// lookAgain is how soon a name is resolved again that could not be.
	lookAgain = time.Second
)

// Resolver resolves names. *net.Resolver is one.
type Resolver interface {
	LookupHost(ctx context.Context, host string) (addrs []string, err error)
}

// Members is the list of a cluster's schedulers: URLs, and names whose addresses are one scheduler each. All hosts must be given the same
// ones, since each finds the scheduler of a task by itself; while they see different addresses of a name, for some seconds after a
// change, a task may have two.
type Members struct {
	urls     []string
	client   func(url string) *Client
	resolver Resolver
	log      *slog.Logger
}

// NewMembers returns the schedulers behind urls: http://HOST:PORT is one, dns+http://NAME:PORT one for each IPv4 address of the name, or each IPv6
// address if it has none of the others, and https likewise. client makes a client of one. A nil resolver is the system's, a nil log discards.
func NewMembers(urls []string, client func(url string) *Client, resolver Resolver, log *slog.Logger) *Members {
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	urls = slices.Clone(urls)
	for i := range urls {
		urls[i] = strings.TrimSuffix(urls[i], "/")
	}
	return &Members{urls: urls, client: client, resolver: resolver, log: log}
}

// Watch calls set with the clients of all schedulers, and again whenever they are others, until ctx ends. A client stays the same while its
// scheduler stays. A name that cannot be resolved keeps the addresses it had.
func (m *Members) Watch(ctx context.Context, set func([]*Client)) error {
	known := map[string][]string{} // by URL, the URLs it stands for
	clients := map[string]*Client{}
	var last []string
	for first := true; ; first = false {
		pause := m.resolve(ctx, known)
		var all []string
		for _, u := range m.urls {
			all = append(all, known[u]...)
		}
		slices.Sort(all)
		if all = slices.Compact(all); first || !slices.Equal(all, last) {
			if !first {
				m.log.InfoContext(ctx, "schedulers changed", "schedulers", all, "before", last)
			}
			last = all
			set(m.clients(all, clients))
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// resolve brings known up to date and returns when to do so again.
func (m *Members) resolve(ctx context.Context, known map[string][]string) time.Duration {
	pause := lookEvery
	for _, u := range m.urls {
		if !strings.HasPrefix(u, byName) {
			known[u] = []string{u}
			continue
		}
		found, err := m.lookUp(ctx, u)
		if err != nil {
			if pause = lookAgain; ctx.Err() == nil {
				m.log.WarnContext(ctx, "schedulers cannot be found by name; those known stay", "url", u, "known", known[u], "error", err)
			}
			continue
		}
		known[u] = found
	}
	return pause
}

func (m *Members) lookUp(ctx context.Context, raw string) ([]string, error) {
	u, err := url.Parse(strings.TrimPrefix(raw, byName))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	addrs, err := m.resolver.LookupHost(ctx, u.Hostname())
	if err != nil {
		return nil, err
	}
	if len(addrs) == 0 {
		return nil, errors.New("the name has no addresses")
	}
	out := make([]string, 0, len(addrs))
	for _, a := range oneFamily(addrs) {
		u.Host = net.JoinHostPort(a, u.Port())
		out = append(out, u.String())
	}
	return out, nil
}

// oneFamily returns the IPv4 addresses, or all when there are none: a scheduler with an address of each kind must not be two.
func oneFamily(addrs []string) []string {
	var four []string
	for _, a := range addrs {
		if ip, err := netip.ParseAddr(a); err == nil && ip.Is4() {
			four = append(four, a)
		}
	}
	if len(four) > 0 {
		return four
	}
	return addrs
}

// clients returns the clients of the schedulers at urls, and forgets those of others.
func (m *Members) clients(urls []string, kept map[string]*Client) []*Client {
	out := make([]*Client, 0, len(urls))
	for _, u := range urls {
		if kept[u] == nil {
			kept[u] = m.client(u)
		}
		out = append(out, kept[u])
	}
	for u := range kept {
		if !slices.Contains(urls, u) {
			delete(kept, u)
		}
	}
	return out
}
