package daemon

import (
	"crypto/tls"
	"net"

	"github.com/shoal-project/shoal/scheduler/identity"
)

// clientTLS returns how servers of a role are spoken to; nil without certificates.
func clientTLS(id *identity.Identity, to identity.Role) *tls.Config {
	if id == nil {
		return nil
	}
	return id.Client(to)
}

// serverTLS has a listener take connections of the cluster's nodes only; without certificates it is as it was.
func serverTLS(l net.Listener, id *identity.Identity) net.Listener {
	if id == nil {
		return l
	}
	return tls.NewListener(l, id.Server(identity.Node))
}
