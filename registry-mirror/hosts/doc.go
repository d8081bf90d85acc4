// Package hosts puts the mirror into containerd's registry configuration and takes it out again.
//
// containerd reads CERTS_DIR/REGISTRY/hosts.toml, or CERTS_DIR/_default/hosts.toml, at every pull and tries the hosts in
// the file's order before the registry itself. Configure puts one marked block in front of the other hosts:
//
//	server = "https://registry.example.com"     only where the file names none: the way out when the mirror is down
//	[host."http://127.0.0.1:7701"]
//	  capabilities = ["pull", "resolve"]        pushes go to the registry
//	  dial_timeout = "200ms"                    a dead mirror costs no more (containerd 2.1 and later)
//
// Everything outside the markers stays as it is, byte for byte, and Remove takes out only what is between them. A file
// that was there before is copied once to hosts.toml.before-shoal.
//
//	PlanConfigure, PlanRemove → []Change, which can be shown → Apply, which writes each file in one step
//
// Whether containerd reads the folder at all is in its own configuration: CheckContainerd tells. This package never
// writes that, and never restarts containerd: hosts.toml takes effect without.
package hosts
