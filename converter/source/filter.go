package source

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// defaultExcludes are what tools leave in folders of models: history, and the hub client's notes about its downloads.
var defaultExcludes = []string{".git/", ".cache/huggingface/"}

// filter decides which names of a source are wanted.
type filter struct {
	include, exclude []pattern
}

type pattern struct {
	glob string
	base bool // matches the last part of a name, at any depth
	dir  bool // matches folders only
}

func newFilter(include, exclude []string) (*filter, error) {
	f := &filter{}
	var faults []error
	for _, set := range []struct {
		flag  string
		globs []string
		to    *[]pattern
	}{{"--include", include, &f.include}, {"--exclude", append(append([]string{}, defaultExcludes...), exclude...), &f.exclude}} {
		for _, glob := range set.globs {
			p, err := newPattern(glob)
			if err != nil {
				faults = append(faults, fmt.Errorf("%s %q: %w", set.flag, glob, err))
			}
			*set.to = append(*set.to, p)
		}
	}
	return f, errors.Join(faults...)
}

func newPattern(glob string) (pattern, error) {
	var p pattern
	g := strings.TrimPrefix(glob, "./")
	g, p.dir = strings.CutSuffix(g, "/")
	p.base = !strings.Contains(g, "/")
	p.glob = strings.TrimPrefix(g, "/")
	switch {
	case p.glob == "":
		return p, errors.New("it matches nothing")
	case !doublestar.ValidatePattern(p.glob):
		return p, errors.New("no glob: a bracket or a brace is not closed")
	}
	return p, nil
}

// matches reports whether the pattern matches the name or a folder it is in.
func (p *pattern) matches(name string, dir bool) bool {
	for end := 0; end < len(name); end++ {
		if i := strings.IndexByte(name[end:], '/'); i >= 0 {
			end += i
		} else {
			end = len(name)
		}
		if end == len(name) && p.dir && !dir {
			return false
		}
		part := name[:end]
		if p.base {
			part = path.Base(part)
		}
		if part == p.glob || doublestar.MatchUnvalidated(p.glob, part) {
			return true
		}
	}
	return false
}

func matchesAny(patterns []pattern, name string, dir bool) bool {
	for i := range patterns {
		if patterns[i].matches(name, dir) {
			return true
		}
	}
	return false
}

// drops reports whether a name is excluded, and with it all below it.
func (f *filter) drops(name string, dir bool) bool { return matchesAny(f.exclude, name, dir) }

// wants reports whether a name is to be in the model.
func (f *filter) wants(name string, dir bool) bool {
	return (len(f.include) == 0 || matchesAny(f.include, name, dir)) && !f.drops(name, dir)
}
