package main

import (
	"bytes"
	"fmt"
)

// The plot's measures, in pixels of SVG.
const (
	plotWidth  = 960
	plotHeight = 420
	plotTop    = 60
	plotBottom = 360
	arrivalX   = 70 // where the left panel begins and ends
	arrivalEnd = 560
	uploadX    = 680
	uploadEnd  = 930
)

// swarmPlot draws the median runs of the last case: on the left what each peer had when, on the right what each host sent.
func swarmPlot(r swarmBenchResult) []byte {
	c := r.Cases[len(r.Cases)-1]
	plain, shoal := medianPull(c.PlainRuns), medianPull(c.ShoalRuns)
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", plotWidth, plotHeight)
	text(&b, arrivalX, 24, "start", fmt.Sprintf("%d MiB to %d peers over links of %d Mbit/s", c.SizeBytes>>20, c.Peers, r.LinkBitsPerSecond/1e6))
	text(&b, arrivalX, 44, "start", "Arrived at each peer: Shoal (blue), plain pulls of the registry (grey)")
	text(&b, uploadX-60, 44, "start", "Sent by each host, in copies of the blob")
	drawArrival(&b, c, plain, shoal)
	drawUploads(&b, c, shoal, plain)
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func text(b *bytes.Buffer, x, y float64, anchor, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, s)
}

// point is a place in the plot.
type point struct{ x, y float64 }

func line(b *bytes.Buffer, from, to point, style string) {
	fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`+"\n", from.x, from.y, to.x, to.y, style)
}

func drawArrival(b *bytes.Buffer, c swarmCase, plain, shoal swarmPull) {
	last := max(plain.Seconds, shoal.Seconds) * 1.02
	x := func(seconds float64) float64 { return arrivalX + seconds/last*(arrivalEnd-arrivalX) }
	y := func(n int64) float64 {
		return plotBottom - float64(min(n, c.SizeBytes))/float64(c.SizeBytes)*(plotBottom-plotTop)
	}
	for percent := range 5 {
		at := y(c.SizeBytes * int64(percent) / 4)
		line(b, point{arrivalX, at}, point{arrivalEnd, at}, `stroke="#ddd"`)
		text(b, arrivalX-6, at+4, "end", fmt.Sprintf("%d %%", 25*percent))
	}
	step := 1.0
	for last/step > 8 {
		step *= map[bool]float64{true: 2.5, false: 2}[step == 2 || step == 20]
	}
	for at := 0.0; at <= last; at += step {
		line(b, point{x(at), plotBottom}, point{x(at), plotBottom + 4}, `stroke="black"`)
		text(b, x(at), plotBottom+18, "middle", fmt.Sprintf("%g s", at))
	}
	for _, run := range []struct {
		swarmPull
		colour string
	}{{plain, "#999"}, {shoal, "#1f6fb4"}} {
		for _, s := range run.Series {
			fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-opacity="0.7" points="%.1f,%.1f`, run.colour, x(0), y(0))
			for i := range s.seconds {
				fmt.Fprintf(b, " %.1f,%.1f", x(s.seconds[i]), y(s.bytes[i]))
			}
			b.WriteString("\"/>\n")
		}
	}
	line(b, point{x(c.Limit), plotTop}, point{x(c.Limit), plotBottom}, `stroke="#c33" stroke-dasharray="4 3"`)
	text(b, x(c.Limit)+4, plotBottom-6, "start", fmt.Sprintf("limit of a link %.1f s", c.Limit))
	line(b, point{arrivalX, plotBottom}, point{arrivalEnd, plotBottom}, `stroke="black"`)
}

func drawUploads(b *bytes.Buffer, c swarmCase, shoal, plain swarmPull) {
	bars := []struct {
		name   string
		copies float64
		colour string
	}{{"registry, plain", plain.OriginCopies, "#999"}, {"registry", shoal.OriginCopies, "#1f6fb4"}}
	for _, u := range shoal.Uploads {
		bars = append(bars, struct {
			name   string
			copies float64
			colour string
		}{u.Host, float64(u.Bytes) / float64(c.SizeBytes), "#1f6fb4"})
	}
	most := 1.0
	for _, bar := range bars {
		most = max(most, bar.copies)
	}
	height := float64(plotBottom-plotTop) / float64(len(bars))
	for i, bar := range bars {
		top, width := plotTop+float64(i)*height, bar.copies/most*(uploadEnd-uploadX-40)
		fmt.Fprintf(b, `<rect x="%d" y="%.1f" width="%.1f" height="%.1f" fill="%s" fill-opacity="0.8"/>`+"\n", uploadX, top+2, width, height-4, bar.colour)
		text(b, uploadX-6, top+height/2+4, "end", bar.name)
		text(b, uploadX+width+4, top+height/2+4, "start", fmt.Sprintf("%.2f", bar.copies))
	}
}
