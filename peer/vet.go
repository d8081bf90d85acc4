package peer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
)

// vet makes sure, before any reader sees it, that what the store holds of the blob is right by what this task believes: by its chunk
// map, or else by the blob's own digest. The chunk map of another image, under which it may have come, decides nothing here.
// What is wrong is dropped. Of a part of a blob without a chunk map nothing can be said yet: see learn.
func (t *task) vet(ctx context.Context) error {
	if t.st.Held() == 0 || t.st.Vouched() {
		return nil
	}
	err := error(nil)
	switch cm := t.loadMap(ctx); {
	case cm != nil:
		err = agrees(t.st, cm)
	case t.st.Complete() && piece.IsURL(t.blob.Digest):
		err = errors.New("nobody vouched for it, and it has no digest of its own")
	case t.st.Complete() && t.blob.Digest.Algorithm() == digest.SHA256:
		err = t.vouch(ctx)
	}
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	if t.pinned() {
		return fmt.Errorf("blob %s is pinned and not what this image says: %w", t.blob.Digest, err)
	}
	t.peer.log.Warn("stored blob is wrong and dropped", "digest", t.blob.Digest, "error", err)
	_ = t.st.Drop() // if it stays, Create finds it again, and its pieces are refused one by one
	return t.create()
}

// pinned reports whether somebody uses what is stored, by the word of another image perhaps.
func (t *task) pinned() bool { return len(t.peer.store.Pins()[t.blob.Digest]) > 0 }

// create opens the store's blob. One that is stored with another size, by the word of another manifest, gives way unless it is known
// to be right, or used.
func (t *task) create() error {
	if t.st != nil {
		_ = t.st.Close() // a reference for reading: there is nothing to lose
	}
	st, err := t.peer.store.Create(t.blob.Digest, t.blob.Size)
	if old, getErr := t.peer.store.Get(t.blob.Digest); err != nil && getErr == nil {
		if old.Layout().Size != t.blob.Size && !old.Vouched() && !t.pinned() && old.Drop() == nil {
			st, err = t.peer.store.Create(t.blob.Digest, t.blob.Size)
		}
		_ = old.Close() // as above
	} else if getErr == nil {
		_ = old.Close() // as above
	}
	t.st = st
	return err
}

// loadMap returns the blob's chunk map, or nil when it has none or none is to be had.
func (t *task) loadMap(ctx context.Context) *chunkmap.Map {
	if t.blob.Origin.Map == nil {
		return nil
	}
	cm, err := t.peer.loadMap(ctx, t.blob, t.authorization)
	if err != nil && ctx.Err() == nil {
		t.peer.log.Warn("no chunk map, the blob is read in order", "digest", t.blob.Digest, "error", err)
	}
	return cm
}

// errUnsuited is the class of readers whose image says something else of the blob than the one that it is read for.
var errUnsuited = fmt.Errorf("read for an image that says something else of it: %w", piece.ErrMismatch)

// join waits until the task has begun, and reports whether the reader of b can be one of its readers.
func (t *task) join(ctx context.Context, b Blob, authorization string) error {
	select {
	case <-t.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	if t.openErr != nil {
		return t.openErr
	}
	return t.suits(ctx, b, authorization)
}

// givesWayWithin bounds how long a task that nobody needs may take to end.
const givesWayWithin = 5 * time.Second

// giveWay gives the caller's reference up and ends the task, if that was the only one. It reports whether the task has ended; if not, the reference
// is the caller's still.
func (t *task) giveWay(ctx context.Context) bool {
	t.peer.mu.Lock()
	alone := t.refs == 1
	t.peer.mu.Unlock()
	if !alone || !t.post(func() { t.yields = true }) {
		return false
	}
	t.release()
	timer := time.NewTimer(givesWayWithin)
	defer timer.Stop()
	select {
	case <-t.ending:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	t.peer.mu.Lock()
	defer t.peer.mu.Unlock()
	t.refs++
	return false
}

// suits reports an error when the reader's image gives the blob another size, or when the blob is read by the chunk map of another image than the
// reader's, and these differ: what is right for the one is wrong for the other.
func (t *task) suits(ctx context.Context, b Blob, authorization string) error {
	if size := t.st.Layout().Size; b.Size != size {
		return fmt.Errorf("blob %s of %d bytes, not %d, is %w", b.Digest, size, b.Size, errUnsuited)
	}
	ours, theirs := t.first.Origin.Map, b.Origin.Map
	if ours == nil || theirs == nil || *ours == *theirs {
		return nil
	}
	mine, err := t.peer.loadMap(ctx, t.first, "")
	if err != nil {
		return nil // then nothing was read by it either
	}
	other, err := t.peer.loadMap(ctx, b, authorization)
	if err != nil {
		return fmt.Errorf("blob %s: chunk map: %w", b.Digest, err)
	}
	for i := range piece.Index(t.st.Layout().Count()) {
		if want, got := other.PieceDigest(t.st.Layout(), i), mine.PieceDigest(t.st.Layout(), i); want != got {
			return fmt.Errorf("blob %s is %w", b.Digest, errUnsuited)
		}
	}
	return nil
}

// agrees reports the first piece that is held and is not that of the chunk map.
func agrees(st *store.Blob, cm *chunkmap.Map) error {
	for i := range st.Have().All() {
		groups, err := st.Groups(i)
		if err != nil {
			return err
		}
		if want, got := cm.PieceDigest(st.Layout(), i), piece.Root(groups); got != want {
			return &piece.MismatchError{Unit: "piece", Index: i, Want: want.String(), Got: got.String()}
		}
	}
	return nil
}

// vouch checks the complete blob against its own digest, once: the verdict is kept on disk.
func (t *task) vouch(ctx context.Context) error {
	h := sha256.New()
	l := t.st.Layout()
	for i := range piece.Index(l.Count()) {
		off, length := l.Range(i)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		_, err := io.Copy(h, io.NewSectionReader(t.st, off, length))
		if !t.st.Complete() {
			return nil // a piece that was bad on the disk is dropped already
		}
		if err != nil {
			return err
		}
	}
	if err := verifyBlob(t.blob.Digest, digest.NewDigestFromBytes(digest.SHA256, h.Sum(nil))); err != nil {
		return fmt.Errorf("blob %s: %w", t.blob.Digest, err)
	}
	return t.st.Vouch()
}

// settled notes that a blob without chunk map is complete and that all its pieces are those of a reader who vouched for the whole.
func (t *task) settled() {
	if t.cm != nil || t.planner.Missing() > 0 || !t.st.Complete() || t.st.Vouched() {
		return
	}
	for i, want := range t.digests {
		groups, err := t.st.Groups(piece.Index(i))
		if err != nil || !t.single() && (want == nil || piece.Root(groups) != *want) {
			return
		}
	}
	if err := t.st.Vouch(); err != nil {
		t.peer.log.Debug("verdict not kept", "digest", t.blob.Digest, "error", err) // hashed again by the next task
	}
}
