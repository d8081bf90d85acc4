package peer

import (
	"context"
	"fmt"
	"hash"
	"io"

	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/scheduler/api"
)

// claim takes the bytes that the origin has for piece i of a blob without a chunk map as they are, and tells their digest. Whether they are
// right shows when the blob was read to its end.
func (t *task) claim(i piece.Index, data []byte) ([]piece.Digest, error) {
	groups := piece.HashGroups(data)
	root := piece.Root(groups)
	t.post(func() {
		t.digests[i] = &root
		t.planner.Know(i)
		t.freshDigests = append(t.freshDigests, api.PieceDigest{Piece: int(i), Digest: root[:]})
	})
	return groups, nil
}

// claims returns the checks of pieces that readers wait for before those in front of them were read. The last piece has none: it comes with the
// proof of the whole.
func (t *task) claims(run dispatch.Run) []check {
	if piece.IsURL(t.blob.Digest) || int(run.End) == t.st.Layout().Count() {
		return nil
	}
	var out []check
	for i := run.First; i < run.End; i++ {
		out = append(out, func(data []byte) ([]piece.Digest, error) {
			groups, err := t.claim(i, data)
			t.post(func() { t.urgent = true })
			return groups, err
		})
	}
	return out
}

// maxDiscard is how many bytes of pieces that came meanwhile are read a second time rather than the origin asked anew for what is behind
// them: about as much is under way on an open connection, if nothing holds it back, and would have left the origin for nothing.
const maxDiscard = 4 << 20

// gaps reads a blob at the origin in order, but for the pieces that are held already. It is not safe for concurrent use.
type gaps struct {
	task   *task
	origin origin
	body   io.ReadCloser // from byte at to byte end; nil when the origin has to be asked
	at     int64
	end    int64
}

// skip hashes piece i from the disk, if it is there, and reports whether it was.
func (g *gaps) skip(h hash.Hash, i piece.Index) bool {
	st := g.task.st
	if !st.Has(i) {
		return false
	}
	off, length := st.Layout().Range(i)
	buf := g.task.peer.buffers.take(length)
	defer g.task.peer.buffers.give(buf)
	data := (*buf)[:length]
	groups, err := st.Groups(i)
	if err != nil || st.EnsureVerified(off, length) != nil {
		return false
	}
	if _, err := st.ReadAt(data, off); err != nil {
		return false
	}
	_, _ = h.Write(data) // a hash never fails to write
	root := piece.Root(groups)
	g.task.post(func() {
		if g.task.digests[i] == nil {
			g.task.digests[i] = &root
			g.task.planner.Know(i)
			g.task.freshDigests = append(g.task.freshDigests, api.PieceDigest{Piece: int(i), Digest: root[:]})
		}
	})
	return true
}

// seek has the next read begin at piece i.
func (g *gaps) seek(ctx context.Context, i piece.Index) error {
	off, _ := g.task.st.Layout().Range(i)
	if g.body != nil && off < g.end && off-g.at <= maxDiscard {
		return g.discard(off - g.at)
	}
	g.close()
	end := g.reach(i)
	body, err := g.task.fetch(ctx, off, end-off, g.origin)
	if err != nil {
		return err
	}
	g.body, g.at, g.end = body, off, end
	return nil
}

// discard reads n bytes that nobody needs any more. They left the origin, and count as read from there.
func (g *gaps) discard(n int64) error {
	if n == 0 {
		return nil
	}
	from := g.at
	n, err := io.CopyN(io.Discard, g, n)
	t := g.task
	t.post(func() {
		t.peer.metrics.fromSource.Add(float64(n))
		t.fromSource += n
	})
	if err != nil {
		return fmt.Errorf("origin of %s, at byte %d: %w", t.blob.Digest, from+n, err)
	}
	return nil
}

// reach returns the byte up to which the origin is asked at once from piece i on: to the next piece that is held.
func (g *gaps) reach(i piece.Index) int64 {
	l := g.task.st.Layout()
	if piece.IsURL(g.task.blob.Digest) {
		return l.Size
	}
	for j := i + 1; int(j) < l.Count(); j++ {
		if g.task.st.Has(j) {
			end, _ := l.Range(j)
			return end
		}
	}
	return l.Size
}

// Read reads on.
func (g *gaps) Read(p []byte) (int, error) {
	n, err := g.body.Read(p)
	g.at += int64(n)
	return n, err
}

func (g *gaps) close() {
	if g.body != nil {
		_ = g.body.Close() // only read from
		g.body = nil
	}
}
