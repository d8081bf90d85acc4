package daemon

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"

	"github.com/shoal-project/shoal/scheduler/server"
)

// metrics returns all metrics of a node and of a scheduler, each with its labels.
func metrics(t *testing.T) map[string][]string {
	t.Helper()
	n, _ := openNode(t)
	adm := newAdmin("test")
	server.New(server.Config{Registerer: adm.registry})
	form := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)
	out := map[string][]string{}
	for _, registry := range []*prometheus.Registry{n.admin.registry, adm.registry} {
		all := make(chan *prometheus.Desc)
		go func() { registry.Describe(all); close(all) }() // ends when all are read
		for d := range all {
			m := form.FindStringSubmatch(d.String())
			if m == nil {
				t.Fatalf("not understood: %s", d)
			}
			out[m[1]] = strings.Split(m[2], ",")
		}
	}
	return out
}

// expressions returns the strings under the key expr in a JSON or YAML file.
func expressions(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	var out []string
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			if expr, ok := v["expr"].(string); ok {
				out = append(out, expr)
			}
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(tree)
	return out
}

// TestDashboardAndAlertsNameMetricsThatExist fails when a metric or a label is renamed and those are not.
func TestDashboardAndAlertsNameMetricsThatExist(t *testing.T) {
	known := metrics(t)
	name := regexp.MustCompile(`shoal_[a-z_]+`)
	by := regexp.MustCompile(`by \(([a-z_, ]+)\)`)
	for _, file := range []string{"grafana.json", "alerts.yaml"} {
		all := expressions(t, filepath.Join("..", "..", "..", "deploy", "monitoring", file))
		if len(all) < 5 {
			t.Errorf("%s: %d expressions", file, len(all))
		}
		for _, expr := range all {
			labels := []string{"instance", "le"} // of Prometheus itself
			for _, m := range name.FindAllString(expr, -1) {
				if known[m] == nil {
					m = strings.TrimSuffix(m, "_bucket")
				}
				if known[m] == nil {
					t.Errorf("%s: %s: there is no %s", file, expr, m)
				}
				labels = append(labels, known[m]...)
			}
			for _, m := range by.FindAllStringSubmatch(expr, -1) {
				for label := range strings.SplitSeq(m[1], ",") {
					if !slices.Contains(labels, strings.TrimSpace(label)) {
						t.Errorf("%s: %s: no label %s", file, expr, label)
					}
				}
			}
		}
	}
}
