package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// spanTold is a span as a collector hears of it.
type spanTold struct {
	Service      string // and its instance
	TraceID      string
	SpanID       string
	ParentSpanID string
	Name         string
}

// collector takes spans by OpenTelemetry's protocol.
type collector struct {
	mu    sync.Mutex // guards spans
	spans []spanTold
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var request struct {
		ResourceSpans []struct {
			Resource struct {
				Attributes []struct {
					Key   string
					Value struct{ StringValue string }
				}
			}
			ScopeSpans []struct{ Spans []spanTold }
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || r.URL.Path != "/v1/traces" {
		http.Error(w, fmt.Sprint(r.URL.Path, err), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range request.ResourceSpans {
		var service []string
		for _, a := range rs.Resource.Attributes {
			if a.Key == "service.name" || a.Key == "service.instance.id" {
				service = append(service, a.Value.StringValue)
			}
		}
		slices.Sort(service)
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				s.Service = strings.Join(service, " ")
				c.spans = append(c.spans, s)
			}
		}
	}
}

// chain returns the names of a span and of those above it, each with its service, from the root on; the root has to be there.
func (c *collector) chain(s spanTold) (names []string, rooted bool) {
	for {
		names = append([]string{s.Service + ": " + s.Name}, names...)
		if s.ParentSpanID == "" {
			return names, true
		}
		at := slices.IndexFunc(c.spans, func(o spanTold) bool { return o.SpanID == s.ParentSpanID && o.TraceID == s.TraceID })
		if at < 0 {
			return names, false
		}
		s = c.spans[at]
	}
}

// has reports whether a chain of spans begins and ends as wanted.
func (c *collector) has(first, last string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.spans, func(s spanTold) bool {
		names, rooted := c.chain(s)
		return rooted && strings.Contains(names[0], first) && strings.Contains(names[len(names)-1], last)
	})
}

// TestRootATraceGoesFromTheMirrorToPeersAndScheduler pulls an image that another node holds.
func TestRootATraceGoesFromTheMirrorToPeersAndScheduler(t *testing.T) {
	ctx, shoal := prepare(t, privateTools()...)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "200") // milliseconds that spans are gathered
	c, err := cluster.New(ctx, cluster.Config{Shoal: shoal, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	told := collect(ctx, t, c)
	r := &rig{}
	if r.swarm, err = newSwarm(ctx, c, swarmConfig{nodes: 2}); err != nil {
		t.Fatal(err)
	}
	if err := r.addContainerds(ctx); err != nil {
		t.Fatal(err)
	}
	i, err := r.image(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range r.containerds {
		if err := d.Pull(ctx, r.ref(i)); err != nil {
			t.Fatal(err)
		}
	}
	const node = "node-2 shoal-node: "
	for _, ends := range [][2]string{{"mirror GET", node + "task"}, {"mirror GET", node + "fetch piece"}, {"mirror GET", "shoal-node: serve peer"},
		{"mirror GET", "shoal-scheduler: join"}, {"mirror HEAD", node + "ask registry"}} {
		for deadline := time.Now().Add(45 * time.Second); !told.has(node+ends[0], ends[1]); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("no trace from %q to %q", ends[0], ends[1])
				break
			}
		}
	}
}

// collect listens for spans on a host of its own, until the cluster is closed.
func collect(ctx context.Context, t *testing.T, c *cluster.Cluster) *collector {
	t.Helper()
	host, err := c.AddHost(ctx, "collector")
	if err != nil {
		t.Fatal(err)
	}
	l, err := host.Listen(ctx, host.Addr+":4318")
	if err != nil {
		t.Fatal(err)
	}
	told := &collector{}
	server := &http.Server{Handler: told, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() { // ends with the server
		defer close(done)
		_ = server.Serve(l) // says that it was closed
	}()
	t.Cleanup(func() { _ = server.Close(); <-done })
	c.SetCollector("http://" + host.Addr + ":4318")
	return told
}
