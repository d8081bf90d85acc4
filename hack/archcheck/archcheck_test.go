package archcheck

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// pkg is what the checks need of go list's answer. Paths are relative to the module.
type pkg struct {
	path        string
	name        string
	doc         string
	imports     []string // of the code
	testImports []string // of its tests in the package; those beside it, package NAME_test, are free
}

func TestImportsFollowTheTable(t *testing.T) {
	for _, fault := range checkImports(rules, listPackages(t)) {
		t.Error(fault)
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, fault := range checkNames(listPackages(t)) {
		t.Error(fault)
	}
}

// TestSeededViolationsAreFound proves that the checks above can fail.
func TestSeededViolationsAreFound(t *testing.T) {
	tests := map[string]struct {
		pkg  pkg
		want string
	}{
		"upwards": {
			pkg{path: "peer/piece", imports: []string{"peer/store"}},
			"peer/piece imports peer/store: the table does not grant it",
		},
		"sibling": {
			pkg{path: "registry-mirror", imports: []string{"peer"}},
			"registry-mirror imports peer: the table does not grant it",
		},
		"scheduler from the pure machine": {
			pkg{path: "scheduler", imports: []string{"scheduler/server"}},
			"scheduler imports scheduler/server: the table does not grant it",
		},
		"test helper in code": {
			pkg{path: "cmd/shoal", imports: []string{"peer/peertest"}},
			"cmd/shoal imports peer/peertest: only tests may",
		},
		"test that climbs": {
			pkg{path: "scheduler/api", testImports: []string{"peer"}},
			"the tests of scheduler/api import peer: it is of a higher folder",
		},
		"unknown package": {
			pkg{path: "peer/util"},
			"peer/util: no rule names it; give it its place in hack/archcheck/rules_test.go",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff([]string{test.want}, checkImports(rules, []pkg{test.pkg})); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}

	got := checkNames([]pkg{
		{path: "registry-mirror", name: "registrymirror", doc: "Package."},
		{path: "peer/helpers", name: "helpers"},
	})
	want := []string{
		"registry-mirror: its package is registrymirror, want mirror",
		"peer/helpers: no package comment",
		"peer/helpers: the name helpers says nothing; a helper lives with its first user",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

// The rules themselves must point downwards, or the table could grant a cycle of folders.
func TestRulesPointDownwards(t *testing.T) {
	for _, r := range rules {
		for _, m := range r.may {
			if m != all && !r.tests && level(strings.TrimSuffix(m, kids)) > level(strings.TrimSuffix(r.path, kids)) {
				t.Errorf("rule for %s grants %s, which is of a higher folder", r.path, m)
			}
		}
	}
}

func checkImports(rules []rule, pkgs []pkg) []string {
	var faults []string
	for _, p := range pkgs {
		own, ok := find(rules, p.path)
		if !ok {
			faults = append(faults, p.path+": no rule names it; give it its place in hack/archcheck/rules_test.go")
			continue
		}
		for _, imp := range p.imports {
			target, _ := find(rules, imp)
			switch {
			case target.tests && !own.tests:
				faults = append(faults, fmt.Sprintf("%s imports %s: only tests may", p.path, imp))
			case !granted(own.may, imp):
				faults = append(faults, fmt.Sprintf("%s imports %s: the table does not grant it", p.path, imp))
			}
		}
		// Tests in a package may use all of their own and of lower folders, and the test helpers of any.
		for _, imp := range p.testImports {
			target, _ := find(rules, imp)
			if !target.tests && level(imp) > level(p.path) {
				faults = append(faults, fmt.Sprintf("the tests of %s import %s: it is of a higher folder", p.path, imp))
			}
		}
	}
	return faults
}

func checkNames(pkgs []pkg) []string {
	var faults []string
	for _, p := range pkgs {
		if want, ok := packageNames[p.path]; ok && p.name != want {
			faults = append(faults, fmt.Sprintf("%s: its package is %s, want %s", p.path, p.name, want))
		}
		if p.doc == "" {
			faults = append(faults, p.path+": no package comment")
		}
		if slices.Contains(bannedNames, path.Base(p.path)) {
			faults = append(faults, fmt.Sprintf("%s: the name %s says nothing; a helper lives with its first user",
				p.path, path.Base(p.path)))
		}
	}
	return faults
}

// find returns the rule of the longest path that covers p.
func find(rules []rule, p string) (rule, bool) {
	best, found := rule{}, false
	for _, r := range rules {
		dir, below := strings.CutSuffix(r.path, kids)
		if r.path != p && (!below || !strings.HasPrefix(p, dir+"/")) {
			continue
		}
		if !found || len(r.path) > len(best.path) {
			best, found = r, true
		}
	}
	return best, found
}

func granted(may []string, imp string) bool {
	return slices.ContainsFunc(may, func(m string) bool {
		dir, below := strings.CutSuffix(m, kids)
		return m == all || m == imp || below && strings.HasPrefix(imp, dir+"/")
	})
}

// level is the height of a package's folder; a folder that is not listed is above all.
func level(p string) int {
	top, _, _ := strings.Cut(p, "/")
	if i := slices.IndexFunc(folders, func(l []string) bool { return slices.Contains(l, top) }); i >= 0 {
		return i
	}
	return len(folders)
}

// listPackages asks go list for all packages of the module.
func listPackages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Name,Doc,Imports,TestImports", module+"/...")
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Name, Doc string
			Imports, TestImports  []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		pkgs = append(pkgs, pkg{
			path: strings.TrimPrefix(p.ImportPath, module+"/"), name: p.Name, doc: p.Doc,
			imports: ours(p.Imports), testImports: ours(p.TestImports),
		})
	}
	if len(pkgs) < 2 {
		t.Fatalf("go list found %d packages in %s", len(pkgs), cmd.Dir)
	}
	return pkgs
}

func ours(imports []string) []string {
	var out []string
	for _, imp := range imports {
		if rel, ok := strings.CutPrefix(imp, module+"/"); ok {
			out = append(out, rel)
		}
	}
	return out
}
