// Package local is what a node offers to the users of its own machine, both ends side by side: content of URLs and registries out of
// the cluster, preheating, and the node's state. shoal get, preheat and status are its users.
//
//	POST /v1/content   JSON ContentRequest → 200 or 206 and the bytes, as they come
//	POST /v1/preheat   JSON PreheatRequest → lines of JSON PreheatState until all is there
//	GET  /v1/status    → JSON Status
//	GET  /             the same for people, as a page
//	GET  /v2/…         the registry mirror
//
// Content is given to nobody the origin does not give it to at that moment: each request is preceded by a question to the origin with
// the caller's own headers, and what has changed there is another content with another identity. The identity is in Shoal-Identity, the
// origin's validator in ETag or Last-Modified. An answer that cannot go on ends short of its Content-Length; the caller goes on
// elsewhere, at the byte where it is, and keeps the parts together by the identity.
//
// Refusals are JSON: {"code": CODE, "error": TEXT}. The codes are the Code constants.
//
// Only callers on loopback addresses are served, whatever the listener is bound to, and only those that name a loopback host: a web
// page in a browser on the machine must not be one of them.
package local
