// Package source reads ranges of blobs from the origin: an OCI registry, by the distribution protocol, or any web server by a URL.
//
//	Fetch → credentials: the caller's own, else a token kept for the repository
//	      → GET /v2/REPOSITORY/blobs/DIGEST with Range, following redirects without credentials to another host
//	      → 401 with a challenge: exchange the keychain's credentials (or none) for a token, ask once more
//	      → a reader of exactly the bytes asked for, which fails when none comes for a while
//
// Every failure has a class of package piece, and a refusal by the registry is a *StatusError, which keeps Retry-After.
// The package does not retry, does not verify content and does not limit: the caller does all three.
//
// Of a URL, Probe tells size and validator, and Fetch takes no answer with another one: content that changes is an error that says
// so. ParseLink tells what of a URL names its content, and what is secret. Headers of a reader go to the URL's own host only, and
// URLs that other hosts named do not lead to services of this machine.
//
// Endpoints says how each registry is reached; it is shared with the manifest client of the mirror.
package source
