package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// kind is what a process is to the benchmark.
type kind string

const (
	kindNode      kind = "node"
	kindSeed      kind = "seed"
	kindScheduler kind = "scheduler"
	kindLab       kind = "lab" // the readers, and what else this process does; not ours to answer for
)

// usage is what processes have used so far.
type usage struct {
	cpu     map[kind]cluster.CPU
	peakRSS int64 // of the largest daemon, in bytes
	rss     int64 // of the largest node now
}

// usage reads what the daemons, and this process, have used.
func (s *swarm) usage() usage {
	u := usage{cpu: map[kind]cluster.CPU{kindLab: ownCPU()}}
	add := func(k kind, p *cluster.Process) {
		u.cpu[k] = u.cpu[k].Add(p.CPU())
		u.peakRSS = max(u.peakRSS, p.PeakRSS())
	}
	for _, scheduler := range s.schedulers {
		add(kindScheduler, scheduler.Process)
	}
	for _, n := range s.seeds {
		add(kindSeed, n.Process)
	}
	for _, n := range s.nodes {
		add(kindNode, n.Process)
		u.rss = max(u.rss, n.RSS())
	}
	return u
}

// ownCPU returns the processor time this process has used.
func ownCPU() cluster.CPU {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return cluster.CPU{}
	}
	return cluster.CPU{User: time.Duration(r.Utime.Nano()), System: time.Duration(r.Stime.Nano())}
}

// cpuPerGiB is processor time in seconds for each GiB that reached a reader.
type cpuPerGiB struct {
	User   float64 `json:"user"`
	System float64 `json:"system"`
}

// perGiB returns the time used between two readings by kind, and that of all daemons together.
func perGiB(before, after usage, bytes int64) (byKind map[kind]cpuPerGiB, daemons float64) {
	gib := float64(bytes) / (1 << 30)
	byKind = map[kind]cpuPerGiB{}
	for k, cpu := range after.cpu {
		d := cpu.Sub(before.cpu[k])
		c := cpuPerGiB{d.User.Seconds() / gib, d.System.Seconds() / gib}
		byKind[k] = c
		if k != kindLab {
			daemons += c.User + c.System
		}
	}
	return byKind, daemons
}

// traffic is what the daemons said to each other, over all nodes and seeds.
type traffic struct {
	Requests     int64 `json:"requests"`      // for pieces
	RefusedHost  int64 `json:"refused_host"`  // no upload slot was free
	RefusedPiece int64 `json:"refused_piece"` // another peer was getting the piece
	Haves        int64 `json:"haves"`         // times that a peer told a neighbour what it holds
	TimeWait     int   `json:"time_wait"`     // closed connections that the kernels remember
}

// traffic reads the daemons' counters. A daemon that does not answer counts nothing.
func (s *swarm) traffic(ctx context.Context) traffic {
	var t traffic
	for _, nodes := range [][]*cluster.Node{s.seeds, s.nodes} {
		for _, n := range nodes {
			t.TimeWait += n.Host().TimeWait(ctx)
			m, err := n.Metrics(ctx)
			if err != nil {
				continue
			}
			t.Requests += int64(m.Sum("shoal_transfer_requests_total"))
			t.RefusedHost += int64(m.Sum("shoal_transfer_busy_total", `cause="host"`))
			t.RefusedPiece += int64(m.Sum("shoal_transfer_busy_total", `cause="piece"`))
			t.Haves += int64(m.Sum("shoal_transfer_have_writes_total"))
		}
	}
	return t
}

// profile takes CPU profiles of the first node and the first seed for the given time and leaves them in dir.
func (s *swarm) profile(ctx context.Context, dir string, d time.Duration) error {
	group, ctx := errgroup.WithContext(ctx)
	for k, n := range map[kind]*cluster.Node{kindNode: s.nodes[0], kindSeed: s.seeds[0]} {
		group.Go(func() error {
			path := filepath.Join(dir, string(k)+".pprof")
			if err := save(ctx, n.Host().Client(), fmt.Sprintf("%s/debug/pprof/profile?seconds=%d", n.AdminURL(), int(d.Seconds())), path); err != nil {
				return fmt.Errorf("profile of %s: %w", n.Name(), err)
			}
			return nil
		})
	}
	return group.Wait()
}

// save writes what url has to a file.
func save(ctx context.Context, client *http.Client, url, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}
