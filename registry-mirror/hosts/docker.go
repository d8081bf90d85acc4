package hosts

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

const (
	// DefaultDockerConfig is where dockerd reads its configuration.
	DefaultDockerConfig = "/etc/docker/daemon.json"

	mirrorsKey = "registry-mirrors"
	// byteOrderMark begins files of some editors; dockerd reads over it.
	byteOrderMark = "\ufeff"
)

// PlanDocker returns the change of dockerd's configuration file that puts the mirror of c before the other registry-mirrors. They are for
// docker.io alone, and dockerd does not say so, so the node has to be told mirror.default_registry. What else is in the file
// stays as it is, byte for byte. It writes nothing.
func PlanDocker(c Config, file string) (Change, error) {
	if err := c.Validate(); err != nil {
		return Change{}, err
	}
	mirror := c.withDefaults().Mirror
	return planDocker(file, mirror, func(mirrors []string) []string {
		return append([]string{mirror}, without(mirrors, mirror)...)
	}, "already configured")
}

// PlanDockerRemove returns the change that takes the mirror out again. It writes nothing.
func PlanDockerRemove(c Config, file string) (Change, error) {
	if err := c.Validate(); err != nil {
		return Change{}, err
	}
	mirror := c.withDefaults().Mirror
	return planDocker(file, mirror, func(mirrors []string) []string {
		return without(mirrors, mirror)
	}, "not configured")
}

func without(mirrors []string, mirror string) []string {
	return slices.DeleteFunc(mirrors, func(m string) bool { return strings.TrimSuffix(m, "/") == mirror })
}

func planDocker(file, mirror string, edit func([]string) []string, note string) (Change, error) {
	file = target(file)
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Change{Path: file}, err
	}
	change := Change{Path: file, Before: text, After: text, ours: bytes.Contains(text, []byte(mirror))}
	if change.After, err = editMirrors(text, edit); err != nil {
		return change, fmt.Errorf("%s: %w", file, err)
	}
	if !change.Changed() {
		change.Note = note
		return change, nil
	}
	if isEmptyObject(change.After) { // nothing of anybody else's
		change.After, err = os.ReadFile(file + backupSuffix)
		if errors.Is(err, fs.ErrNotExist) || !isEmptyObject(change.After) {
			change.After = nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return change, err
}

// isEmptyObject reports whether there is nothing in a JSON object.
func isEmptyObject(text []byte) bool {
	return string(bytes.Join(bytes.Fields(bytes.TrimPrefix(text, []byte(byteOrderMark))), nil)) == "{}"
}

// editMirrors changes the list in a JSON object, and nothing else of its text.
func editMirrors(text []byte, edit func([]string) []string) ([]byte, error) {
	if rest, ok := bytes.CutPrefix(text, []byte(byteOrderMark)); ok {
		out, err := editMirrors(rest, edit)
		if err != nil {
			return nil, err
		}
		return slices.Concat([]byte(byteOrderMark), out), nil
	}
	if len(bytes.TrimSpace(text)) == 0 {
		if mirrors := edit(nil); len(mirrors) > 0 {
			return fmt.Appendf(nil, "{\n  %q: %s\n}\n", mirrorsKey, list(mirrors)), nil
		}
		return text, nil
	}
	m, err := findMirrors(text)
	if err != nil {
		return nil, err
	}
	before := slices.Clone(m.mirrors)
	mirrors := edit(m.mirrors)
	switch {
	case slices.Equal(before, mirrors):
		return text, nil
	case len(mirrors) == 0:
		return slices.Concat(text[:m.keyFrom], text[m.keyTo:]), nil
	case m.found:
		return slices.Concat(text[:m.from], list(mirrors), text[m.to:]), nil
	}
	comma := ","
	if m.empty {
		comma = "\n"
	}
	return slices.Concat(text[:m.open], fmt.Appendf(nil, "\n  %q: %s%s", mirrorsKey, list(mirrors), comma), text[m.open:]), nil
}

func list(mirrors []string) []byte {
	out, _ := json.Marshal(mirrors) // strings always can be
	return out
}

// place is where the list stands in the text of a JSON object, in bytes.
type place struct {
	mirrors        []string
	found          bool
	empty          bool // the object has no key
	open           int  // behind its brace
	from, to       int  // of the list
	keyFrom, keyTo int  // of the list with its key and a comma
}

func findMirrors(text []byte) (p place, err error) {
	if !json.Valid(text) {
		var v any
		return p, fmt.Errorf("not valid JSON: %w", json.Unmarshal(text, &v))
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return p, errors.New("not a JSON object")
	}
	p.open = int(dec.InputOffset())
	p.empty = !dec.More()
	for end := p.open; dec.More(); {
		key, err := dec.Token()
		if err != nil {
			return p, err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return p, err
		}
		if key == mirrorsKey {
			p.found, p.to = true, int(dec.InputOffset())
			p.from = p.to - len(value)
			p.keyFrom, p.keyTo = end, p.to
			if first := end == p.open; first && dec.More() { // the comma behind goes along, else the one before
				p.keyTo += bytes.IndexByte(text[p.to:], ',') + 1
			}
			if err := json.Unmarshal(value, &p.mirrors); err != nil {
				return p, fmt.Errorf("%s: %w", mirrorsKey, err)
			}
		}
		end = int(dec.InputOffset())
	}
	return p, nil
}
