// Package fetch brings what a URL has, or a blob of a registry, to a file or a stream: through the node of this machine, and where
// that cannot, from the origin itself.
//
//	target ─▶ what is it now? (node, else origin) ─▶ sink: a part file named by the identity, which tells where to go on
//	       ─▶ bytes from the node, else from the origin, at the byte where the sink is ─▶ digest ─▶ file in place
//
// Parts from different places belong together because all are of one identity: the digest, or URL, validator and length. When the
// origin has another content meanwhile, a file is begun anew, a stream fails: nothing is ever mixed.
//
// A file appears under its name when it is complete, synced and, if its digest is known, right. What is there of it before is a hidden
// file beside it, from which the next call goes on.
package fetch
