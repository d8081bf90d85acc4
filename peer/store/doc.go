// Package store keeps the bytes of blobs on a node's disk: which pieces are held, the proof that they are right, and
// what has to go when room is short.
//
// A blob is a folder named after its digest with these files:
//
//	data    the bytes, sparse, as long as the blob from the start
//	groups  the digest of each group, 32 bytes each, zero where unknown
//	index   a header that says how the blob is cut, then the digest of each held piece, 32 bytes each, zero where absent
//	chunks  where its chunks are, as its chunk map says, so that other blobs find them; may be missing
//	whole   the digest of the pieces' digests with which the whole blob had its own digest; may be missing
//
// Beside the folders is pins, with a file for each blob that is pinned, and lock, which keeps other processes out.
//
// A piece is held when its entry of index is the root of its entries of groups. Write fills data, then groups, then
// index, so that whatever was interrupted in between is not held, and neither is what garbage in either file claims.
//
// # States
//
//	          Create            first Write          last missing Write
//	(unknown) ------> reserved ------------> partial ------------------> complete
//	    ^                 |                   |    ^                      |   |
//	    |                 |                   |    +------ bad piece -----+   |
//	    |                 v                   v          found on disk        v
//	    +---- evicting <--+-------------------+-------------------------------+
//	                           least recently used without a reference, or Drop
//
// A blob with a reference (a Blob that was not closed) is open; one with an owner is pinned. Neither is ever evicted, in whichever of
// the middle states it is. All of it follows from the disk: there is no database, and Open rebuilds everything from the folders
// alone.
//
// # Reuse
//
// FindChunks says where the chunks of a new blob are held in others, and Copy puts a piece together out of such places. Its bytes need not
// pass through the process, and where the file system can (XFS, btrfs) both blobs share them on disk. They are hashed where they
// landed before the piece counts as held, so that neither a damaged source nor a wrong chunk list does more than cost a copy.
//
// # Crashes
//
// Nothing is synced. After kill -9 the page cache has every write, and nothing is lost. After a power failure the disk may
// have any mixture of old and new sectors; so no piece found by Open is believed until EnsureVerified has hashed it again,
// on its first use. What is bad then is dropped, counted and fetched again. The cost is one hash of each piece after each
// restart; the gain is that a flipped bit is found too, and that no piece waits for the disk. The same hash is due again when a
// blob's verification is older than Config.Reverify. Pins alone are synced: their owners rely on them.
//
// # Room
//
// The size of every blob counts in full from Create on, against Config.MaxBytes and Config.MaxPercent. Create evicts what
// was used least recently until the new blob fits and returns ErrNoSpace when it cannot. Write does the same when the disk
// turns out to be full although the sum said otherwise. Open evicts what exceeds a lower quota. ErrNoSpace is never fatal: callers pass bytes through uncached.
//
// The package starts no goroutine. It does not download, and it does not know where bytes come from: Write takes bytes
// that the caller has verified.
package store
