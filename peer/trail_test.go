package peer

import (
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/peer/dispatch"
	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/store"
)

// Who reads a blob from its beginning comes through what is there to what is not, and then waits for the first time: that is no jump.
func TestReaderThatComesThroughWhatIsThereIsNoRush(t *testing.T) {
	st, err := store.Open(t.TempDir(), store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	b, err := st.Create(digest.FromString("x"), 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	l := b.Layout()
	for _, i := range []piece.Index{8, 70} {
		_, n := l.Range(i)
		if err := b.Write(i, make([]byte, n), piece.HashGroups(make([]byte, n))); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		read piece.Index
		rush bool
	}{{"the piece before was read", 8, false}, {"another piece was read", 70, true}} {
		t.Run(c.name, func(t *testing.T) {
			planner := dispatch.New(dispatch.Config{}, l, b.Have(), nil, rand.New(rand.NewPCG(1, 1)))
			task := &task{planner: planner, cm: &chunkmap.Map{}, readers: map[*Reader]waited{}, before: piece.NewSet(l.Count()), read: newTrail(l.Count())}
			r := &Reader{task: task, blob: b}
			off, _ := l.Range(c.read)
			if _, err := r.Await(t.Context(), off, 10); err != nil {
				t.Fatal(err)
			}
			next := dispatch.Run{First: 9, End: 10}
			task.waitFor(r, waited{run: next, short: true})
			planner.Demand([]dispatch.Run{next})
			if planner.Rushing() != c.rush {
				t.Errorf("piece 9 is a rush: %v, want %v", !c.rush, c.rush)
			}
		})
	}
}
