package main

import (
	"bytes"
	"fmt"
	"slices"
)

const (
	barHeight = 18
	barsX     = 190
	barsEnd   = 860
)

// lazyPlot draws how long containers took until they had read all, a group of bars for each way to read: grey until the container is started, blue
// until it has read all.
func lazyPlot(r lazyBenchResult) []byte {
	longest := r.Limit
	var reads []string
	for _, c := range r.Cases {
		longest = max(longest, c.Ready)
		if !slices.Contains(reads, c.Read) {
			reads = append(reads, c.Read)
		}
	}
	height := plotTop + len(r.Cases)*barHeight + len(reads)*2*barHeight
	x := func(seconds float64) float64 { return barsX + seconds/longest*(barsEnd-barsX) }
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", plotWidth, height)
	text(&b, 20, 24, "start", fmt.Sprintf("A model of %d MiB to containers on %d nodes at once, links of %d Mbit/s: seconds until all of it was read",
		r.SizeBytes>>20, r.Nodes, r.LinkBitsPerSecond/1e6))
	text(&b, 20, 42, "start", "Grey: until the container is started. Blue: until it has read the model. Red: a link carries the model once.")
	y := float64(plotTop)
	for _, read := range reads {
		text(&b, 20, y+barHeight, "start", "read: "+read)
		y += 1.5 * barHeight
		for _, c := range r.Cases {
			if c.Read != read {
				continue
			}
			block(&b, x(0), y, x(c.Pulled), "#999")
			block(&b, x(c.Pulled), y, x(c.Ready), "#1f6fb4")
			text(&b, barsX-6, y+barHeight-5, "end", c.Way)
			text(&b, x(c.Ready)+5, y+barHeight-5, "start", fmt.Sprintf("%.1f s, %.2f copies", c.Ready, c.Copies))
			y += barHeight
		}
		y += 0.5 * barHeight
	}
	line(&b, point{x(r.Limit), plotTop}, point{x(r.Limit), y}, `stroke="#c33" stroke-dasharray="4 3"`)
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func block(b *bytes.Buffer, from, y, to float64, colour string) {
	fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%d" fill="%s" fill-opacity="0.8"/>`+"\n", from, y+1, max(to-from, 0), barHeight-2, colour)
}
