package peer_test

import (
	"io"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/peertest"
)

// BenchmarkSwarm brings a blob from one seed to four hosts over loopback. SetBytes counts what reached the hosts, so CPU seconds a GiB
// follow from ns/op; there is no baseline in it, compare two commits.
func BenchmarkSwarm(b *testing.B) {
	for _, withMap := range []bool{true, false} {
		name := "mapped"
		if !withMap {
			name = "sequential"
		}
		b.Run(name, func(b *testing.B) {
			const size, readers = 64 * mib, 4
			b.SetBytes(size * readers)
			for n := 0; b.Loop(); n++ {
				b.StopTimer()
				s := peertest.NewSwarm(b)
				blob, data := s.Origin.Random(size, uint64(n))
				if withMap {
					blob = s.Origin.WithMap(b, blob, data)
				}
				s.Host(peertest.Seed)
				hosts := make([]*peertest.Host, readers)
				for i := range hosts {
					hosts[i] = s.Host()
				}
				b.StartTimer()
				readOut(b, blob, hosts)
			}
		})
	}
}

func readOut(b *testing.B, blob peer.Blob, hosts []*peertest.Host) {
	var group errgroup.Group
	for _, h := range hosts {
		group.Go(func() error {
			r, err := h.Open(b.Context(), blob, "")
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(io.Discard, r.Section(b.Context()))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
}
