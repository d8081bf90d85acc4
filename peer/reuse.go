package peer

import (
	"context"
	"errors"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
)

// reuse has the pieces put together here whose chunks other blobs hold, so that of a new version only what changed travels. They are
// verified like all others; what turns out to be wrong or gone is fetched. Nothing else waits: the rest is asked for meanwhile.
func (t *task) reuse(ctx context.Context) {
	if t.cm == nil || len(t.cm.Chunks) == 0 || t.planner.Missing() == 0 {
		return
	}
	if err := t.st.SetChunks(t.cm.Chunks); err != nil {
		t.peer.log.Warn("chunks will not be found for other blobs", "digest", t.blob.Digest, "error", err)
	}
	places := t.peer.store.FindChunks(t.cm.Chunks, t.blob.Digest)
	plan := chunkmap.Reuse(t.cm, t.st.Layout(), t.st.Have(), places)
	if len(plan) == 0 {
		return
	}
	t.peer.log.Info("reusing chunks of other blobs", "digest", t.blob.Digest, "pieces", len(plan), "of", t.st.Layout().Count())
	for _, a := range plan {
		t.planner.Hold(a.Piece)
	}
	t.workers.Go(func() { t.assemble(ctx, plan) })
}

// assemble puts pieces together one after the other.
func (t *task) assemble(ctx context.Context, plan []chunkmap.Assembly) {
	chain := t.peer.cfg.Limits.Copy()
	for _, a := range plan {
		_, length := t.st.Layout().Range(a.Piece)
		if err := chain.Pace(ctx, t.blob.Digest.String(), int(length)); err != nil {
			return // the task ends
		}
		err := t.st.Copy(a.Piece, a.Parts, t.cm.PieceDigest(t.st.Layout(), a.Piece))
		if errors.Is(err, piece.ErrMismatch) {
			for _, p := range a.Parts {
				t.peer.lost(p.Blob) // the store has looked, and may hold less than it said
			}
		}
		t.post(func() { t.assembled(a.Piece, length, err) })
	}
}

func (t *task) assembled(i piece.Index, length int64, err error) {
	if err == nil {
		t.peer.metrics.fromLocal.Add(float64(length))
		t.got(i)
		return
	}
	t.peer.log.Debug("piece is fetched after all", "digest", t.blob.Digest, "piece", i, "error", err)
	t.planner.Release(i)
	if errors.Is(err, store.ErrNoSpace) {
		t.storeFailed(err)
	}
}
