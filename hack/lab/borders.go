package main

import "context"

// borders are the bytes that have entered and left each zone but the first.
type borders struct{ in, out []int64 }

// borders reads the counters of the borders of a swarm with so many zones.
func (s *swarm) borders(ctx context.Context, zones int) (borders, error) {
	var b borders
	for i := 1; i < zones; i++ {
		in, out, err := s.Border(ctx, zoneName(i))
		if err != nil {
			return b, err
		}
		b.in, b.out = append(b.in, in), append(b.out, out)
	}
	return b, nil
}

// since returns what has crossed since an earlier reading, and how often a blob of this size went into a zone, the mean of all.
func (b borders) since(before borders, size int64) (in, out []int64, copies float64) {
	for i := range b.in {
		in, out = append(in, b.in[i]-before.in[i]), append(out, b.out[i]-before.out[i])
		copies += float64(in[i]) / float64(size) / float64(len(b.in))
	}
	return in, out, copies
}
