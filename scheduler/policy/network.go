package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Place is where a host stands, and whom it shares with.
type Place struct {
	Locality
	Group string
}

// Network says where the hosts of a range of addresses stand, as far as they do not say so themselves.
type Network struct {
	CIDR  string // such as 10.1.0.0/16
	Place Place
}

// Networks finds places by address. The zero value knows none.
type Networks struct {
	known []network // the smallest first
}

type network struct {
	prefix netip.Prefix
	place  Place
}

// NewNetworks reports all ranges that are none, and ranges that are there twice.
func NewNetworks(list []Network) (Networks, error) {
	var (
		out  Networks
		errs []error
	)
	for _, n := range list {
		p, err := netip.ParsePrefix(n.CIDR)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%q is no range of addresses, like 10.1.0.0/16", n.CIDR))
			continue
		case slices.ContainsFunc(out.known, func(o network) bool { return o.prefix == p.Masked() }):
			errs = append(errs, fmt.Errorf("%s is there twice", p.Masked()))
		}
		out.known = append(out.known, network{p.Masked(), n.Place})
	}
	slices.SortStableFunc(out.known, func(a, b network) int { return cmp.Compare(b.prefix.Bits(), a.prefix.Bits()) })
	return out, errors.Join(errs...)
}

// Complete fills in what a host at addr, HOST:PORT, does not say of its place: each part from the smallest range that has the address and
// names that part. An address that is a name is in no range.
func (n Networks) Complete(p Place, addr string) Place {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return p
	}
	for _, o := range n.known {
		if o.prefix.Contains(at.Addr().Unmap()) {
			p.Zone = cmp.Or(p.Zone, o.place.Zone)
			p.Rack = cmp.Or(p.Rack, o.place.Rack)
			p.Group = cmp.Or(p.Group, o.place.Group)
		}
	}
	return p
}
