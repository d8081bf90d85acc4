// Package transfer is the wire between peers, both ends of it: HTTP/1.1 over persistent connections.
//
//	GET  /v1/blobs/{digest}                    Range: bytes=a-b → 206 and the bytes, from the file by sendfile
//	GET  /v1/blobs/{digest}/groups?piece=N     the group digests of a held piece, 32 bytes each
//	POST /v1/blobs/{digest}/suspect?piece=N    the holder reads the piece back and drops it when it is bad
//	POST /v1/tasks/{digest}/haves              body: what the task is (JSON) → an endless stream of frames
//
// A range with "Shoal-Demanded: 1" is waited for by a reader: it takes no upload slot, and is refused because another peer got it
// only while others ask the host for what nobody waits for. One with "Shoal-Alone: 1" is never refused because of that: who asks cannot get it
// from that peer.
//
// Every request carries "Authorization: Bearer TOKEN" with the token of the cluster. What the answers mean:
//
//	404                     not held                       piece.ErrAbsent
//	503, Shoal-Busy: host   all upload slots are taken     ErrBusy, which is piece.ErrTransient
//	503, Shoal-Busy: piece  another peer got it just now   ErrShared, which is piece.ErrTransient
//	401                     another cluster                piece.ErrDenied
//	anything else, a cut, a stall                          piece.ErrTransient
//
// The client checks lengths and ranges but not content: the caller verifies what it got before it does anything with it.
//
// # Frames
//
// The answer to haves begins with a frame of everything the peer holds. Changes follow within Config.HavesInterval, the first four at once,
// or within three times that where pieces come slowly,
// and an empty frame when nothing changed for a second, so that silence means a hung peer. A frame, big endian:
//
//	0  1  type
//	1  4  length of the payload, at most 131,076
//	5  …  payload
//
//	type 0, alive     no payload
//	type 1, all       number of pieces (4 bytes), bitmap as of piece.Set.Bytes; replaces what was said before
//	type 2, added     indices in ascending order, each a uvarint: the first, then the distance from the one before
//	type 3, removed   the same
//	type 128, others  addresses of other hosts that watch the blob here, a line each; replaces what was said before. Only to a host that asks
//	                  this one to fetch in the place of a scheduler
//	type 129, failed  why there is nothing new: class (1 byte: 0 in passing, 1 denied, 2 absent, 3 mismatch), a text of 1,024 bytes at the most.
//	                  Only to a host that asked this one to fetch
//	types from 130    are reserved for additions and skipped, as 128 and 129 are by older hosts; other types are an error
//
// The handler starts no goroutine of its own, and the client only those of net/http, for what are no pieces.
package transfer
