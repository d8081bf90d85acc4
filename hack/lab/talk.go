package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// talk tells what happens as it happens: on a terminal with bars that grow, elsewhere in lines.
type talk struct {
	out      io.Writer
	terminal bool
	start    time.Time

	mu   sync.Mutex // guards what follows and the order of lines
	bars int        // lines of the bars on the screen, which the next line overwrites
}

func newTalk(out io.Writer) *talk {
	t := &talk{out: out, start: time.Now()}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		t.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	}
	return t
}

// step prints a line with the time since the start.
func (t *talk) step(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clearLocked()
	fmt.Fprintf(t.out, "[%6.1f s] %s\n", time.Since(t.start).Seconds(), fmt.Sprintf(format, args...))
}

// Write takes the cluster's own lines.
func (t *talk) Write(p []byte) (int, error) {
	t.step("%s", strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// clearLocked takes the bars off the screen.
func (t *talk) clearLocked() {
	if t.bars > 0 {
		fmt.Fprintf(t.out, "\x1b[%dA\x1b[J", t.bars)
		t.bars = 0
	}
}

// bar is how far a node is.
type bar struct {
	name                string
	peer, source, total int64
}

const barWidth = 40

// draw shows the bars: # came from peers, = from the origin.
func (t *talk) draw(bars []bar) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clearLocked()
	for _, b := range bars {
		peers := int(min(b.peer, b.total) * barWidth / max(b.total, 1))
		origin := min(int(min(b.source, b.total)*barWidth/max(b.total, 1)), barWidth-peers)
		fmt.Fprintf(t.out, "  %-8s [%s%s%s] %4d of %d MiB\n", b.name, strings.Repeat("=", origin), strings.Repeat("#", peers),
			strings.Repeat(" ", barWidth-peers-origin), (b.peer+b.source)>>20, b.total>>20)
	}
	t.bars = len(bars)
}

// watcher follows the nodes' metrics until it is stopped.
type watcher struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// watch shows how far the nodes are with a pull of size bytes: bars on a terminal, else a line for each quarter.
func (t *talk) watch(ctx context.Context, s *swarm, size int64) *watcher {
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{cancel: cancel, done: make(chan struct{})}
	go func() { // ends with stop
		defer close(w.done)
		quarter := int64(1)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			bars, sum := s.bars(ctx, size)
			if t.terminal {
				t.draw(bars)
				continue
			}
			if all := size * int64(len(s.nodes)); sum*4 >= quarter*all && quarter < 4 {
				t.step("%d of %d MiB are on the nodes", sum>>20, all>>20)
				quarter = sum*4/all + 1
			}
		}
	}()
	return w
}

func (w *watcher) stop() {
	w.cancel()
	<-w.done
}

// bars asks the seed and the nodes how far they are; the sum is that of the nodes.
func (s *swarm) bars(ctx context.Context, size int64) (bars []bar, sum int64) {
	for _, n := range append([]*cluster.Node{s.seeds[0]}, s.nodes...) {
		b := bar{name: n.Host().Name, total: size}
		if read, err := n.Read(ctx); err == nil {
			b.peer, b.source = read["peer"], read["source"]
		}
		bars = append(bars, b)
		if n != s.seeds[0] {
			sum += b.peer + b.source
		}
	}
	return bars, sum
}

// table prints where the bytes came from.
func (t *talk) table(r demoResult) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clearLocked()
	mib := func(n int64) string { return fmt.Sprintf("%.1f", float64(n)/(1<<20)) }
	w := tabwriter.NewWriter(t.out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nnode\tready s\tfrom origin MiB\tfrom peers MiB\tfrom cache MiB\t")
	for _, n := range r.nodes {
		ready := "-"
		if n.ready > 0 {
			ready = fmt.Sprintf("%.1f", n.ready.Seconds())
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t\n", n.name, ready, mib(n.read["source"]), mib(n.read["peer"]), mib(n.read["cache"]))
	}
	_ = w.Flush() // as the rest of the talk
	var size, served int64
	for _, l := range r.layers {
		size += l.size
		served += l.served
	}
	fmt.Fprintf(t.out, "\nThe registry's access log: %s MiB sent of %d layers with %s MiB: %.3f copies.\n",
		mib(served), len(r.layers), mib(size), float64(served)/float64(max(size, 1)))
	if len(r.inferences) > 0 {
		fmt.Fprintf(t.out, "%d containers answered; embeddings %s…, cosines %s.\n", len(r.inferences), r.inferences[0].Digest[:12], cosines(r.inferences[0].Cosine))
	}
}

// cosines lists pairs of sentences with how alike they are.
func cosines(of map[string]float64) string {
	var pairs []string
	for _, pair := range slices.Sorted(maps.Keys(of)) {
		pairs = append(pairs, fmt.Sprintf("%s %.2f", pair, of[pair]))
	}
	return strings.Join(pairs, ", ")
}

// lookAround says what there is to see in a demo that was kept.
func (t *talk) lookAround(s *swarm) {
	n, c := s.nodes[0], s.containerds[0]
	fmt.Fprintf(t.out, `
All of it is left running, in %[1]s. To look around:

  # what %[3]s did, and what the seed did
  ip netns exec %[2]s curl -s http://127.0.0.1:7703/metrics | grep ^shoal
  ip netns exec %[4]s curl -s http://127.0.0.1:7703/metrics | grep ^shoal
  # what containerd on %[3]s holds
  nsenter --net=/run/netns/%[2]s ctr --address %[5]s images list
  # what all of them say
  tail -f %[1]s/*/*.log
  # remove it all
  make clean
`,
		s.Dir(), n.Host().Namespace(), n.Host().Name, s.seeds[0].Host().Namespace(), c.Socket())
}
