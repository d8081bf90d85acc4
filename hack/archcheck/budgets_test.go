package archcheck

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Budgets, in lines, methods and parameters. What exceeds one is named below with its reason.
const (
	maxFileLines     = 600
	maxFuncLines     = 60
	maxMethods       = 5
	maxParameters    = 5
	maxTestFuncLines = 120 // tables make tests long, not complicated
)

// excused names what a reviewer let exceed a budget: file or file:symbol, with the reason.
var excused = map[string]string{}

// machinePath finds what only exists on somebody's machine. The expression is cut in two so as not to match itself.
var machinePath = regexp.MustCompile(`(^|[^\w.$~/])/(work|home|Users)` + `/[A-Za-z0-9]|/tmp/` + `w/|/root/` + `[a-z.]`)

func TestFilesStayWithinBudget(t *testing.T) {
	dir := root(t)
	for _, file := range committed(t, dir) {
		if !strings.HasSuffix(file, ".go") || strings.Contains(file, "testdata/") {
			continue
		}
		fset := token.NewFileSet()
		parsed, err := parser.ParseFile(fset, filepath.Join(dir, file), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		for _, fault := range budgetFaults(fset, file, parsed) {
			t.Error(fault)
		}
	}
}

func TestSeededBudgetFaultsAreFound(t *testing.T) {
	src := "package p\nfunc init() {}\ntype wide interface { A(); B(); C(); D(); E(); F() }\n" +
		"func many(a, b, c, d, e, f int) {}\nfunc long() {" + strings.Repeat("\n", maxFuncLines) + "}\n" +
		strings.Repeat("//\n", maxFileLines)
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "p.go", src, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(budgetFaults(fset, "p.go", file), "\n")
	for _, want := range []string{"p.go: 665 lines", "p.go:init", "p.go:wide: 6 methods", "p.go:many: 6 parameters", "p.go:long: 61 lines"} {
		if !strings.Contains(got, want) {
			t.Errorf("no fault with %q in:\n%s", want, got)
		}
	}
}

func TestNothingCommittedNamesAMachine(t *testing.T) {
	dir := root(t)
	for _, file := range committed(t, dir) {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			continue // removed in the work tree
		}
		if bytes.IndexByte(data[:min(len(data), 8000)], 0) >= 0 {
			if !strings.Contains(file, "testdata/") {
				t.Errorf("%s is binary; build it by a script in hack/", file)
			}
			continue
		}
		for i, line := range strings.Split(string(data), "\n") {
			if found := machinePath.FindString(line); found != "" {
				t.Errorf("%s:%d: %q exists on one machine only", file, i+1, found)
			}
		}
	}
}

func TestMachinePathsAreTold(t *testing.T) {
	for text, want := range map[string]bool{
		"see /tmp/" + "w/x":            true,
		"in /root/" + ".cache":         true,
		"cp /work/" + "shared/a b":     true,
		"$HOME/.cache/shoal":           false,
		"/var/lib/shoal/work/" + "x":   false,
		"oci:/models/NAME/config.json": false,
	} {
		if got := machinePath.MatchString(text); got != want {
			t.Errorf("%q: machine path = %v, want %v", text, got, want)
		}
	}
}

func budgetFaults(fset *token.FileSet, name string, file *ast.File) []string {
	var faults []string
	over := func(symbol, what string, got, limit int) {
		key := name + symbol
		if _, ok := excused[key]; got > limit && !ok {
			faults = append(faults, key+": "+strings.TrimSpace(strconv.Itoa(got)+" "+what)+", the budget is "+strconv.Itoa(limit))
		}
	}
	lines := func(n ast.Node) int { return fset.Position(n.End()).Line - fset.Position(n.Pos()).Line + 1 }
	over("", "lines", fset.File(file.Pos()).LineCount(), maxFileLines)

	funcLimit := maxFuncLines
	if strings.HasSuffix(name, "_test.go") {
		funcLimit = maxTestFuncLines
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Name.Name == "init" && n.Recv == nil {
				over(":init", "init function", 1, 0)
			}
			over(":"+n.Name.Name, "lines", lines(n), funcLimit)
			over(":"+n.Name.Name, "parameters", n.Type.Params.NumFields(), maxParameters)
		case *ast.TypeSpec:
			if iface, ok := n.Type.(*ast.InterfaceType); ok {
				over(":"+n.Name.Name, "methods", iface.Methods.NumFields(), maxMethods)
			}
		}
		return true
	})
	return faults
}

// committed lists the files git knows, so that build output is not looked at.
func committed(t *testing.T, dir string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("no git repository at the module's root: %v", err)
	}
	files := strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 })
	slices.Sort(files)
	return files
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
