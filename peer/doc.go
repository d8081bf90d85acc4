// Package peer is one host's part in the peer network: it opens any blob as a reader whose bytes are all verified, fetches
// them from other peers or, with a lease, from the origin, and serves what it holds.
//
// The life of a read:
//
//	Open(blob) ──▶ task (one a blob, shared by all readers) ──▶ Reader.Await(offset) … waits on the store
//	                 │ loads the chunk map named by the manifest, joins at the scheduler
//	                 │ dispatch.Planner says what to ask whom
//	                 ├─▶ transfer.Client: pieces from parents ─┐
//	                 └─▶ source: runs of pieces from the origin ┴─▶ verify ─▶ store ─▶ readers, children, scheduler
//
// A task belongs to the peer, not to the reader that began it: readers come and go, the download goes on for a grace time after the
// last one left, and what has arrived stays in the store.
//
// What a piece is verified against: the chunk map of the image the blob belongs to, which hangs on the manifest's digest;
// without one, the piece digests that the host with the lease reports while it reads the whole blob in order, which it
// vouches for completely only after the blob's own digest was right.
//
// Who waits for a short range has only that fetched: the scheduler is told what is demanded, and what nobody waits for makes way for it
// in all tasks of the host. See demand.go.
//
// Without a live scheduler a task asks the seeds it knows, and when there is none, reads the origin itself. With one, but without
// any progress for Config.SelfAfter, it does the same: nothing here may stand in the way of a pull.
//
// All decisions are in dispatch; this package is the shell with the goroutines. Run owns every one of them.
package peer
