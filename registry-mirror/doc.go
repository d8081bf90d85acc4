// Package mirror is the registry mirror that containerd asks before the origin: manifests, blobs and ranges of blobs, read
// out of the peer network.
//
// It never stands in the way. Whatever it cannot serve it refuses at once with a status that sends containerd to the origin, and
// these rules, each measured with real containerd, decide how:
//
//   - A blob is answered with 200 or 206 only when its first bytes are verified and at hand; else with 404.
//   - After that the stream is the mirror's: the peer below switches parents, and reads the origin as a last resort.
//   - When even that ends, the answer stops short of its Content-Length and the connection is closed in order, and the digest is refused
//     with 404 for a minute: containerd resumes at the origin, at the byte where it is, with its own credentials.
//   - "bytes=0-" is answered with 200. A later range that cannot be served is cut short after its header instead of refused, since
//     containerd's parallel mode fails a pull on any refusal of a later range.
//   - 429 is never answered.
//
// Who may read: the caller's credentials are shown to the origin, which accepts or refuses them for the repository; the verdict holds for
// a short time. Content is served to nobody else. While the origin is down the last verdict holds for Config.StaleFor.
//
// Tags are looked up at the origin again after a short time. Manifests are kept by digest. Both are also told to the seeds, so that with the
// origin down any host can still pull what the cluster holds.
//
//	request ─▶ Handler ─┬─ manifest ─▶ records (bbolt) │ upstream (origin) │ Cluster (seeds)
//	                    └─ blob ─▶ verdict ─▶ Blobs.Open ─▶ await piece ─▶ sendfile ─▶ …
package mirror
