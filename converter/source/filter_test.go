package source

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func paths(files []File) []string {
	var out []string
	for _, f := range files {
		if f.Mode.IsDir() {
			out = append(out, f.Path+"/")
		} else {
			out = append(out, f.Path)
		}
	}
	return out
}

func TestFiltersChooseFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{
		"config.json", "model.safetensors", "original/a.pth", "original/deep/b.json", "tok/vocab.json",
		".git/HEAD", "sub/.git/HEAD", ".cache/huggingface/x", ".cache/other", "x/.cache/huggingface/y",
	} {
		write(t, dir+"/"+name, "x", 0o600)
	}
	check(t, mkdir(dir+"/empty/in"))
	everything := []string{
		".cache/", ".cache/other", "config.json", "empty/", "empty/in/", "model.safetensors", "original/", "original/a.pth",
		"original/deep/", "original/deep/b.json", "tok/", "tok/vocab.json", "x/", "x/.cache/", "x/.cache/huggingface/", "x/.cache/huggingface/y",
	}
	for _, tc := range []struct {
		name             string
		include, exclude []string
		want             []string
	}{
		{"no filter", nil, nil, everything},
		{"base name at any depth", []string{"*.json"}, nil, []string{"config.json", "original/", "original/deep/", "original/deep/b.json", "tok/", "tok/vocab.json"}},
		{"path", []string{"original/*.pth"}, nil, []string{"original/", "original/a.pth"}},
		{"at the top only", []string{"/*.json"}, nil, []string{"config.json"}},
		{"two stars", []string{"original/**/*.json"}, nil, []string{"original/", "original/deep/", "original/deep/b.json"}},
		{"folder means all below", []string{"tok", "original/*"}, nil, []string{"original/", "original/a.pth", "original/deep/", "original/deep/b.json", "tok/", "tok/vocab.json"}},
		{"folder by slash", []string{"tok/", "config.json/"}, nil, []string{"tok/", "tok/vocab.json"}},
		{"exclude wins", []string{"*.json"}, []string{"original", "vocab*"}, []string{"config.json"}},
		{"braces", []string{"*.{pth,safetensors}"}, nil, []string{"model.safetensors", "original/", "original/a.pth"}},
		{"empty folder that was asked for", []string{"empty", "config.json"}, nil, []string{"config.json", "empty/", "empty/in/"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := Open(t.Context(), dir, Config{Include: tc.include, Exclude: tc.exclude})
			check(t, err)
			if diff := cmp.Diff(tc.want, paths(m.Files)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFiltersThatLeaveNothingSaySo(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a", "x", 0o600)
	write(t, dir+"/d/b", "x", 0o600)
	for ref, cfg := range map[string]Config{
		dir: {Include: []string{"*.json"}}, dir + "/a": {Exclude: []string{"a"}},
		"-": {Exclude: []string{"**"}, Stdin: strings.NewReader(string(tarOf(t, regular("a", "1"), regular("b", "2"))))},
	} {
		m, err := Open(t.Context(), ref, cfg)
		if err == nil {
			_, err = readAll(t, m)
		}
		if !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), "filters leave none") {
			t.Errorf("%s: got %v", ref, err)
		}
	}
}

func TestWrongGlobsAreNamed(t *testing.T) {
	cfg := Config{Include: []string{"[a", "ok"}, Exclude: []string{"", "{x"}}
	err := cfg.Validate()
	for _, want := range []string{`--include "[a"`, `--exclude ""`, `--exclude "{x"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s in %v", want, err)
		}
	}
}

func TestWhatIsLeftOutIsNotLookedAt(t *testing.T) {
	raw := tarOf(t, regular("a", "1"), regular("../b", "2"), symlink("bad", "/x"), regular(".wh.c", ""))
	got, err := readTarModel(t, raw, Config{Exclude: []string{"bad", "../*", ".wh.*"}})
	if diff := cmp.Diff([]string{"a=1"}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestLinkToWhatIsLeftOutIsNamed(t *testing.T) {
	raw := tarOf(t, regular("a", "1"), regular("b", "2"), symlink("l", "b"))
	if _, err := readTarModel(t, raw, Config{Exclude: []string{"b"}}); !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), "leave out the link too") {
		t.Errorf("got %v", err)
	}
}
