package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/hack/shards"
)

// contestant is one way to read or pack the model.
type contestant struct {
	Name    string
	program string   // that must be in PATH; "" for what is in this program
	args    []string // of the program
	inside  func(ctx context.Context, in inputs) error
	prepare func(in inputs) error // not measured

	seconds, cpu []float64
	rss          int64 // bytes, the largest process
}

func contestants(cfg config, in inputs) []*contestant {
	shoal := func(name string, args ...string) *contestant {
		return &contestant{Name: name, program: cfg.shoal, args: append([]string{
			"convert", "--quiet", "--model", in.model, "--base", "oci:" + in.base + ":base", "--name", "m",
		}, args...)}
	}
	nydus := func(name, compressor string) *contestant {
		return &contestant{Name: name, program: "nydus-image", args: []string{
			"create", "--type", "dir-rafs", "--log-level", "error", "--compressor", compressor,
			"--bootstrap", in.out("boot"), "--blob", in.out("blob"), in.model,
		}}
	}
	copyBase := func(in inputs) error { return os.CopyFS(in.out("layout"), os.DirFS(in.base)) }
	return []*contestant{
		{Name: limitName, inside: hashAll},
		{Name: "read and write a copy", inside: copyAll},
		shoal(shoalName, "--target", "oci:"+in.out("layout")+":v1"),
		shoal("shoal convert --dry-run", "--target", "oci:"+in.out("layout")+":v1", "--dry-run"),
		{Name: "sha256sum, a process a core", program: "sh", args: []string{"-c",
			`ls "$0"/*.safetensors | xargs -n 1 -P ` + strconv.Itoa(runtime.NumCPU()) + ` sha256sum`, in.model}},
		{Name: "tar | sha256sum", program: "sh", args: []string{"-c", `tar -C "$0" -c . | sha256sum`, in.model}},
		nydus("nydus-image create, zstd", "zstd"),
		nydus(nydusName, "none"),
		{Name: "umoci insert", program: "umoci", args: []string{"insert", "--rootless", "--image", in.out("layout") + ":base", in.model, "/models/m"}, prepare: copyBase},
		{Name: "tar | crane append", program: "crane", args: []string{"append", "--oci-empty-base", "-f", in.tar, "-t", "example.com/m:v1", "-o", in.out("image.tar")}},
	}
}

const (
	limitName = "read + one sha256, all cores"
	shoalName = "shoal convert, both variants"
	nydusName = "nydus-image create, none"
)

// run executes the contestant once.
func (c *contestant) run(ctx context.Context, in inputs, cold bool) error {
	if err := os.RemoveAll(in.outputs); err != nil {
		return err
	}
	if err := os.MkdirAll(in.outputs, 0o755); err != nil {
		return err
	}
	if c.prepare != nil {
		if err := c.prepare(in); err != nil {
			return err
		}
	}
	syscall.Sync() // what others wrote is not this one's to wait for
	if cold {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200); err != nil {
			return err
		}
	}
	if err := shards.Touch(in.out("warm"), in.size+in.size/4); err != nil {
		return err
	}
	start := time.Now()
	if c.inside != nil {
		if err := c.inside(ctx, in); err != nil {
			return err
		}
		c.seconds, c.cpu = append(c.seconds, time.Since(start).Seconds()), append(c.cpu, 0)
		return nil
	}
	cmd := exec.CommandContext(ctx, c.program, c.args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w\n%s", err, out.String())
	}
	c.seconds = append(c.seconds, time.Since(start).Seconds())
	c.cpu = append(c.cpu, (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds())
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		c.rss = max(c.rss, usage.Maxrss<<10)
	}
	return nil
}

// hashAll reads every shard once and hashes it, as many at once as there are processors.
func hashAll(ctx context.Context, in inputs) error {
	return eachShard(ctx, in, func(_ string, r io.Reader) error {
		_, err := io.CopyBuffer(struct{ io.Writer }{sha256.New()}, struct{ io.Reader }{r}, make([]byte, 1<<20))
		return err
	})
}

// copyAll reads every shard and writes it elsewhere: what a converter that keeps a copy has to do besides hashing.
func copyAll(ctx context.Context, in inputs) error {
	return eachShard(ctx, in, func(name string, r io.Reader) error {
		w, err := os.Create(in.out(name))
		if err != nil {
			return err
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 1<<20)); err != nil {
			return err
		}
		return w.Close()
	})
}

func eachShard(ctx context.Context, in inputs, f func(name string, r io.Reader) error) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(runtime.NumCPU())
	for _, path := range in.shards {
		work.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			defer file.Close()
			return f(filepath.Base(path), file)
		})
	}
	return work.Wait()
}

// report is what is printed.
type report struct {
	SizeBytes   int64  `json:"size_bytes"`
	Shards      int    `json:"shards"`
	Rounds      int    `json:"rounds"`
	Cold        bool   `json:"cold"`
	Processors  int    `json:"processors"`
	Contestants []line `json:"contestants"`
}

type line struct {
	Name           string    `json:"name"`
	MedianSeconds  float64   `json:"median_seconds"`
	BytesPerSecond float64   `json:"bytes_per_second"`
	ToLimit        float64   `json:"ratio_to_limit"` // of the medians, to reading and one sha256 pass on all cores
	CPUSeconds     float64   `json:"median_cpu_seconds,omitempty"`
	PeakRSSBytes   int64     `json:"peak_rss_bytes,omitempty"`
	AllSeconds     []float64 `json:"all_seconds"`
}

func summarise(cfg config, runs []*contestant) report {
	r := report{SizeBytes: cfg.size, Shards: cfg.shards, Rounds: cfg.rounds, Cold: cfg.cold, Processors: runtime.NumCPU()}
	limit := 0.0
	for _, c := range runs {
		l := line{
			Name: c.Name, MedianSeconds: median(c.seconds), CPUSeconds: median(c.cpu), PeakRSSBytes: c.rss, AllSeconds: c.seconds,
		}
		l.BytesPerSecond = float64(cfg.size) / l.MedianSeconds
		if c.Name == limitName {
			limit = l.MedianSeconds
		}
		if limit > 0 {
			l.ToLimit = l.MedianSeconds / limit
		}
		r.Contestants = append(r.Contestants, l)
	}
	return r
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func (r report) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%d MiB in %d shards, median of %d\ttime\tto limit\tMB/s\tCPU\tmemory\t\n", r.SizeBytes>>20, r.Shards, r.Rounds)
	for _, l := range r.Contestants {
		cpu, rss := "", ""
		if l.PeakRSSBytes > 0 {
			cpu, rss = fmt.Sprintf("%.1f s", l.CPUSeconds), fmt.Sprintf("%d MiB", l.PeakRSSBytes>>20)
		}
		fmt.Fprintf(w, "%s\t%.2f s\t%.2f\t%.0f\t%s\t%s\t\n", l.Name, l.MedianSeconds, l.ToLimit, l.BytesPerSecond/1e6, cpu, rss)
	}
	return w.Flush()
}
