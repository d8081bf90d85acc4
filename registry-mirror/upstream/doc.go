// Package upstream asks the origin registry what the mirror may not answer on its own: what a tag points to, a manifest
// it has not seen, and whether the caller's credentials open a repository.
//
// The caller's Authorization goes through unchanged, and a challenge comes back unchanged, so that containerd runs the
// token flow against the origin itself and the mirror never holds credentials. For a caller that shows none, the token that the
// origin gives to everybody is fetched: it opens what is public, and nothing else. An answer of the registry is a Response
// whatever its status; an error means that there was no usable answer.
package upstream
