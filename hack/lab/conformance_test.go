package main

import (
	"context"
	"encoding/xml"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// TestRootMirrorConformsToTheDistributionSpecification has the suite of the specification pull through a node's mirror what it pushes to two
// kinds of registry. A mirror takes no pushes, so the two are one registry to the suite: what reads goes to the mirror.
// The suite moves tags and reads them at once, so the mirror believes none.
func TestRootMirrorConformsToTheDistributionSpecification(t *testing.T) {
	for program, start := range map[string]func(*cluster.Cluster, context.Context) (*cluster.Registry, error){
		"docker-registry": (*cluster.Cluster).StartRegistry, "distribution": (*cluster.Cluster).StartDistribution,
	} {
		t.Run(program, func(t *testing.T) {
			ctx, shoal := prepare(t, "ip", "tc", "oci-conformance", program)
			c, err := cluster.New(ctx, cluster.Config{Shoal: shoal, Log: t.Output()})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}()
			registry, err := start(c, ctx)
			if err != nil {
				t.Fatal(err)
			}
			node, err := c.StartNode(ctx, cluster.NodeConfig{Name: "node", Registries: []*cluster.Registry{registry}, TagTTL: "0s"})
			if err != nil {
				t.Fatal(err)
			}
			direct := conform(ctx, t, node, "direct", registry.Addr())
			through := conform(ctx, t, node, "through", readWrite(ctx, t, node, registry))
			same := 0
			for test, result := range direct {
				switch {
				case result.Status != passed:
				case through[test].Status == passed:
					same++
				default:
					t.Errorf("%s: %s through the mirror: %s\n%s", test, through[test].Status, through[test].Out, through[test].Err)
				}
			}
			t.Logf("%d tests of %d pass at the registry, %d of these through the mirror", count(direct), len(direct), same)
			if same < 100 {
				t.Error("too few tests to tell")
			}
			if m, err := node.Metrics(ctx); err != nil || m.Sum("shoal_mirror_manifests_total") < 10 || m.Sum("shoal_mirror_sent_bytes_total") == 0 {
				t.Errorf("the mirror served %v manifests and %v bytes of blobs (%v)", m.Sum("shoal_mirror_manifests_total"), m.Sum("shoal_mirror_sent_bytes_total"), err)
			}
		})
	}
}

// readWrite returns the address, on the node's host, of the node's mirror for what reads and of the registry for all else.
func readWrite(ctx context.Context, t *testing.T, node *cluster.Node, registry *cluster.Registry) string {
	t.Helper()
	l, err := node.Host().Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Transport: node.Host().Client().Transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", registry.Addr(), l.Addr().String() // whose Location leads here
		reads := r.In.Method == http.MethodGet || r.In.Method == http.MethodHead
		if reads && !strings.Contains(r.In.URL.Path, "/blobs/uploads/") {
			r.Out.URL.Host = strings.TrimPrefix(node.MirrorURL(), "http://")
		}
	}}
	web := &http.Server{Handler: proxy, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = web.Serve(l) }() // ends with Close
	t.Cleanup(func() { _ = web.Close(); <-done })
	return l.Addr().String()
}

// passed is what the suite says of a test that passed.
const passed = "passed"

// conformance is one test of the suite, as JUnit's format has it.
type conformance struct {
	Name   string `xml:"name,attr"`
	Status string `xml:"status,attr"`
	Out    string `xml:"system-out"`
	Err    string `xml:"system-err"`
}

func count(results map[string]conformance) (n int) {
	for _, r := range results {
		if r.Status == passed {
			n++
		}
	}
	return n
}

// conform runs the suite on the node's host, in repositories of its own, and returns its results by test.
func conform(ctx context.Context, t *testing.T, node *cluster.Node, repository, address string) map[string]conformance {
	t.Helper()
	dir := t.TempDir()
	out, err := node.Host().Run(ctx, "env", "OCI_REGISTRY="+address, "OCI_TLS=disabled", "OCI_RESULTS_DIR="+dir, "OCI_VERSION=1.1",
		"OCI_REPO1="+repository+"/first", "OCI_REPO2="+repository+"/second",
		"OCI_API_BLOBS_DIGEST_HEADER=true", "OCI_API_MANIFESTS_DIGEST_HEADER=true",
		// What registries do not allow without being told to, and a mirror has no part in.
		"OCI_API_BLOBS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_TAGS_DELETE=false", "oci-conformance")
	report, readErr := os.ReadFile(filepath.Join(dir, "junit.xml"))
	if readErr != nil {
		t.Fatalf("the suite has no results: %v: %v\n%s", readErr, err, out)
	}
	var suites struct {
		Suites []struct {
			Cases []conformance `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(report, &suites); err != nil {
		t.Fatal(err)
	}
	results := map[string]conformance{}
	for _, suite := range suites.Suites {
		for _, c := range suite.Cases {
			if strings.Contains(c.Name, "/push/") {
				continue // a mirror has no part in it
			}
			if before, again := results[c.Name]; !again || before.Status == passed {
				results[c.Name] = c // of several runs of a test the first that failed counts
			}
		}
	}
	return results
}
