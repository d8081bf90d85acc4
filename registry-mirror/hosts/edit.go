package hosts

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

const (
	beginMark = "# >>> shoal mirror: written by \"shoal mirror configure\", taken out by \"shoal mirror remove\""
	endMark   = "# <<< shoal mirror"
)

var (
	errMarks     = errors.New("the marks around the mirror's block are damaged; put them right or delete the block by hand")
	errByHand    = errors.New("the mirror is already a host in it, outside the marks")
	errNotReread = errors.New("cannot add the mirror in front of the other hosts; write [host.\"…\"] tables instead of inline or dotted keys")
)

// settings is what is put into a file.
type settings struct {
	mirror string // URL
	server string // URL of the registry, for files without one; may be empty
}

// hostsFile is what we read of a hosts.toml.
type hostsFile struct {
	Server string         `toml:"server"`
	Host   map[string]any `toml:"host"`
}

// addBlock returns text with the mirror as its first host, replacing an earlier block of ours. Text that is not a valid
// hosts.toml is an error, and so is one that names the mirror outside our marks (errByHand).
func addBlock(text []byte, s settings) ([]byte, error) {
	rest, err := cutBlock(text)
	if err != nil {
		return nil, err
	}
	var parsed hostsFile
	if err := toml.Unmarshal(rest, &parsed); err != nil {
		return nil, fmt.Errorf("not a valid hosts.toml: %w", err)
	}
	if _, ok := parsed.Host[s.mirror]; ok {
		return nil, errByHand
	}
	at, err := blockOffset(rest)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Write(rest[:at])
	if at > 0 && rest[at-1] != '\n' {
		b.WriteString("\n")
	}
	b.WriteString(beginMark + "\n")
	if parsed.Server == "" && s.server != "" {
		fmt.Fprintf(&b, "server = %q\n", s.server)
	}
	fmt.Fprintf(&b, "[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"200ms\"\n", s.mirror)
	b.WriteString(endMark + "\n")
	b.Write(rest[at:])
	return b.Bytes(), checkFirst(b.Bytes(), s.mirror)
}

// checkFirst makes sure that the result is what containerd will understand: the mirror before all other hosts.
func checkFirst(text []byte, mirror string) error {
	var parsed hostsFile
	if err := toml.Unmarshal(text, &parsed); err != nil {
		return fmt.Errorf("%w: %w", errNotReread, err)
	}
	var p unstable.Parser
	p.Reset(text)
	for p.NextExpression() {
		key := expressionKey(p.Expression())
		if len(key) >= 1 && key[0] == "host" {
			if len(key) >= 2 && key[1] == mirror {
				return nil
			}
			return errNotReread
		}
	}
	return errNotReread
}

// cutBlock returns text without our block, whose lines an editor may have ended in its own way; text without a block is returned as it is.
func cutBlock(text []byte) ([]byte, error) {
	begin := bytes.Index(text, []byte(beginMark))
	end := bytes.Index(text, []byte(endMark))
	switch {
	case begin < 0 && end < 0:
		return text, nil
	case begin < 0, end < begin,
		bytes.Count(text, []byte(beginMark)) > 1, bytes.Count(text, []byte(endMark)) > 1:
		return nil, errMarks
	}
	_, rest, _ := bytes.Cut(text[end+len(endMark):], []byte("\n"))
	return append(bytes.Clone(text[:begin]), rest...), nil
}

// blockOffset returns where the block goes: behind the keys of the file itself, which must come before every table, and
// before the first table with the comment that stands directly above it.
func blockOffset(text []byte) (int, error) {
	var p unstable.Parser
	p.Reset(text)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table && e.Kind != unstable.ArrayTable {
			continue
		}
		it := e.Key()
		it.Next()
		at := bytes.LastIndexByte(text[:p.Range(it.Node().Data).Offset], '\n') + 1
		return skipComments(text, at), nil
	}
	if err := p.Error(); err != nil {
		return 0, fmt.Errorf("not a valid hosts.toml: %w", err)
	}
	return len(text), nil
}

// skipComments moves up over the lines directly above at that are comments.
func skipComments(text []byte, at int) int {
	for at > 0 {
		above := bytes.LastIndexByte(text[:at-1], '\n') + 1
		if !strings.HasPrefix(strings.TrimLeft(string(text[above:at]), " \t"), "#") {
			return at
		}
		at = above
	}
	return at
}

func expressionKey(e *unstable.Node) []string {
	var key []string
	if e.Kind != unstable.Table && e.Kind != unstable.ArrayTable && e.Kind != unstable.KeyValue {
		return nil
	}
	for it := e.Key(); it.Next(); {
		key = append(key, string(it.Node().Data))
	}
	return key
}
