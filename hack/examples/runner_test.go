package examples

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// block is a fenced block of a page.
type block struct {
	lang string
	line int // of its first line in the page
	text string
}

// blocks returns the fenced blocks of a page.
func blocks(page string) []block {
	var out []block
	inside := false
	for i, line := range strings.Split(page, "\n") {
		switch lang, fence := strings.CutPrefix(line, "```"); {
		case fence && !inside:
			out, inside = append(out, block{lang: lang, line: i + 2}), true
		case fence:
			inside = false
		case inside:
			out[len(out)-1].text += line + "\n"
		}
	}
	return out
}

// runner runs blocks in one folder, one after another.
type runner struct {
	dir     string // where commands run
	env     []string
	secrets map[string]string // by the name a pipeline has for them
}

// run chooses by the block's language what to do with it.
func (r *runner) run(t *testing.T, b block) {
	switch b.lang {
	case "sh":
		r.shell(t, b.text, nil)
	case "dockerfile":
		check(t, os.WriteFile(filepath.Join(r.dir, "Dockerfile"), []byte(b.text), 0o600))
		r.shell(t, "docker build --quiet --tag example:built .", nil)
	case "yaml":
		var keys map[string]yaml.Node
		check(t, yaml.Unmarshal([]byte(b.text), &keys))
		if _, ok := keys["jobs"]; ok {
			r.github(t, b.text)
		} else if _, ok := keys["stages"]; ok {
			r.gitlab(t, b.text)
		} else {
			t.Errorf("line %d: neither GitHub's jobs nor GitLab's stages", b.line)
		}
	default:
		t.Errorf("line %d: nobody knows how to run %q", b.line, b.lang)
	}
}

// shell runs a script as CI services do: it ends with the first command that fails, in a pipe too.
func (r *runner) shell(t *testing.T, script string, env []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir, cmd.Env = r.dir, append(slices.Clone(r.env), env...)
	cmd.WaitDelay = 10 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s\n%v\n%s", script, err, out)
	}
}

// workflow is what of a GitHub workflow is run here. Jobs stand in the order they need each other.
type workflow struct {
	Env  map[string]string `yaml:"env"`
	Jobs yaml.Node         `yaml:"jobs"`
}

type githubJob struct {
	Needs   string            `yaml:"needs"`
	Env     map[string]string `yaml:"env"`
	Outputs map[string]string `yaml:"outputs"`
	Steps   []struct {
		Name string            `yaml:"name"`
		ID   string            `yaml:"id"`
		Env  map[string]string `yaml:"env"`
		Run  string            `yaml:"run"`
	} `yaml:"steps"`
}

var expression = regexp.MustCompile(`\$\{\{ *([\w.-]+) *\}\}`)

// github runs the steps of a workflow for the tag v1.
func (r *runner) github(t *testing.T, text string) {
	var w workflow
	check(t, yaml.Unmarshal([]byte(text), &w))
	known := map[string]string{}
	for name, value := range r.secrets {
		known["secrets."+name] = value
	}
	expand := func(text string) string {
		return expression.ReplaceAllStringFunc(text, func(whole string) string {
			value, ok := known[expression.FindStringSubmatch(whole)[1]]
			if !ok {
				t.Fatalf("%s has no value", whole)
			}
			return value
		})
	}
	for name, node := range pairs(&w.Jobs) {
		var job githubJob
		check(t, node.Decode(&job))
		temp := t.TempDir()
		path := os.Getenv("PATH")
		for _, step := range job.Steps {
			output, paths := filepath.Join(temp, "output"), filepath.Join(temp, "path")
			env := slices.Concat(list(w.Env, expand), list(job.Env, expand), list(step.Env, expand), []string{
				"GITHUB_REF_NAME=v1", "GITHUB_SHA=2fd4e1c67a2d28fced849ee1bb76e7391b93eb12", "RUNNER_TEMP=" + temp,
				"GITHUB_OUTPUT=" + output, "GITHUB_PATH=" + paths, "PATH=" + path,
			})
			r.shell(t, expand(step.Run), env)
			for key, value := range assignments(t, output) {
				known["steps."+step.ID+".outputs."+key] = value
			}
			if added, err := os.ReadFile(paths); err == nil {
				path = strings.Join(strings.Fields(string(added)), ":") + ":" + os.Getenv("PATH")
			}
		}
		for key, value := range job.Outputs {
			known["needs."+name+".outputs."+key] = expand(value)
		}
	}
}

type gitlabJob struct {
	Script    []string `yaml:"script"`
	Artifacts struct {
		Reports struct {
			Dotenv string `yaml:"dotenv"`
		} `yaml:"reports"`
	} `yaml:"artifacts"`
}

// gitlab runs the scripts of a pipeline for the tag v1. Jobs stand in the order of their stages.
func (r *runner) gitlab(t *testing.T, text string) {
	var top yaml.Node
	check(t, yaml.Unmarshal([]byte(text), &top))
	var variables map[string]string
	env := []string{"CI_COMMIT_TAG=v1"}
	for name, value := range r.secrets {
		env = append(env, name+"="+value)
	}
	expand := func(text string) string {
		return os.Expand(text, func(name string) string { return r.secrets[name] })
	}
	for name, node := range pairs(top.Content[0]) {
		switch name {
		case "stages", "image":
		case "variables":
			check(t, node.Decode(&variables))
			env = append(env, list(variables, expand)...)
		default:
			var job gitlabJob
			check(t, node.Decode(&job))
			if len(job.Script) == 0 {
				t.Errorf("%s has no script", name)
			}
			r.shell(t, strings.Join(job.Script, "\n"), env)
			if file := job.Artifacts.Reports.Dotenv; file != "" {
				env = append(env, list(assignments(t, filepath.Join(r.dir, file)), strings.TrimSpace)...)
			}
		}
	}
}

// pairs yields the keys of a mapping in their order.
func pairs(n *yaml.Node) func(yield func(string, *yaml.Node) bool) {
	return func(yield func(string, *yaml.Node) bool) {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if !yield(n.Content[i].Value, n.Content[i+1]) {
				return
			}
		}
	}
}

func list(env map[string]string, expand func(string) string) []string {
	var out []string
	for name, value := range env {
		out = append(out, name+"="+expand(value))
	}
	return out
}

// assignments reads the lines NAME=VALUE of a file, which need not be there.
func assignments(t *testing.T, path string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || value == "" {
			t.Errorf("%s: %q is not NAME=VALUE", filepath.Base(path), line)
		}
		out[name] = value
	}
	return out
}

func TestFencedBlocksAreFoundWithTheirLines(t *testing.T) {
	got := fmt.Sprint(blocks("a\n```sh\none\ntwo\n```\n    indented\n```yaml\n```\n"))
	if want := "[{sh 3 one\ntwo\n} {yaml 8 }]"; got != want {
		t.Errorf("blocks %q, want %q", got, want)
	}
}
