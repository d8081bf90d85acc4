package local

import (
	"net"
	"net/http"
	"net/netip"
)

// Guard passes on the requests of users of this machine and answers 403 to all others.
func Guard(next http.Handler) http.Handler {
	return guard(next, func(r *http.Request) bool { return r.Header.Get("Sec-Fetch-Site") == "" })
}

// GuardPage is Guard for a page that is looked at in a browser: nobody but the page itself and who types its address may ask for it.
func GuardPage(next http.Handler) http.Handler {
	return guard(next, func(r *http.Request) bool {
		site := r.Header.Get("Sec-Fetch-Site")
		return site == "" || site == "none" || site == "same-origin"
	})
}

func guard(next http.Handler, mayAsk func(*http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		remote, err := netip.ParseAddrPort(r.RemoteAddr)
		switch {
		case err != nil || !remote.Addr().Unmap().IsLoopback():
			refuse(w, http.StatusForbidden, &Error{CodeDenied, "this is for users of the node's own machine, over its loopback address"})
		case !isLoopbackHost(r.Host):
			refuse(w, http.StatusForbidden, &Error{CodeDenied, "the request names a host that is not this machine's loopback address"})
		case r.Header.Get("Origin") != "" || !mayAsk(r):
			refuse(w, http.StatusForbidden, &Error{CodeDenied, "web pages are not served"})
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// isLoopbackHost reads a Host header.
func isLoopbackHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}
