package converter

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/shoal-project/shoal/converter/bootstrap"
)

// loadOrder collects the files of a model in the order in which programs load them: configuration, tokenizer, the list of shards, then
// the shards by name. Files of no use to a loader are left out.
type loadOrder struct{ files []loadedFile }

type loadedFile struct {
	rank  int
	name  string
	inode *bootstrap.Inode
}

func (o *loadOrder) add(name string, n *bootstrap.Inode) {
	if rank := loadRank(name); rank >= 0 {
		o.files = append(o.files, loadedFile{rank, name, n})
	}
}

func (o *loadOrder) inodes() []*bootstrap.Inode {
	slices.SortStableFunc(o.files, func(a, b loadedFile) int {
		if a.rank != b.rank {
			return a.rank - b.rank
		}
		return cmp.Or(naturalCompare(a.name, b.name), strings.Compare(a.name, b.name))
	})
	var out []*bootstrap.Inode
	for _, f := range o.files {
		out = append(out, f.inode)
	}
	return out
}

// loadRank says when a file is loaded; -1 for never.
func loadRank(name string) int {
	base := strings.ToLower(path.Base(name))
	switch ext := path.Ext(base); {
	case strings.HasSuffix(base, ".index.json"):
		return 2
	case strings.Contains(base, "token") || strings.HasPrefix(base, "vocab") || strings.HasPrefix(base, "merges") ||
		strings.HasPrefix(base, "chat_template") || ext == ".model" || ext == ".tiktoken":
		return 1
	case ext == ".json" || ext == ".yaml" || ext == ".yml" || ext == ".txt" && strings.Contains(base, "config"):
		return 0
	case slices.Contains([]string{".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".data", ".onnx_data", ".npz", ".h5", ".msgpack", ".tflite", ".mar", ".plan", ".engine"}, ext):
		return 3
	}
	return -1
}

// naturalCompare orders names with numbers as people do: shard-2 comes before shard-10.
func naturalCompare(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na > 0 && nb > 0 {
			x, y := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if c := strings.Compare(x, y); c != 0 {
				return c
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

// digits returns how many bytes at the start are digits.
func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
