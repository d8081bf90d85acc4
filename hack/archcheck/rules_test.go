package archcheck

// module is the path all our import paths begin with.
const module = "github.com/shoal-project/shoal"

// Words a rule may name in place of packages.
const (
	all   = "..." // every package of ours
	kids  = "/*"  // as a suffix: every package below that folder
	tests = true
)

// A rule says what a package may import of ours. Longest path wins; "/*" makes it hold for the packages below too.
type rule struct {
	path  string
	may   []string
	tests bool // only test files may import this package
}

// rules is the package table of ARCHITECTURE.md, lowest folder first. An import of ours that no rule grants is a fault,
// and so is a package that no rule names: who adds one says here where it stands.
var rules = []rule{
	{path: "tracing"},

	{path: "scheduler/api"},
	{path: "scheduler/identity"},
	{path: "scheduler/policy"},
	{path: "scheduler", may: []string{"scheduler/policy"}},
	{path: "scheduler/server", may: []string{"scheduler", "scheduler/api", "scheduler/policy", "tracing"}},

	{path: "peer/piece"},
	{path: "peer/chunkmap", may: []string{"peer/piece"}},
	{path: "peer/store", may: []string{"peer/piece", "peer/chunkmap"}},
	{path: "peer/store/storetest", may: []string{"peer/piece", "peer/chunkmap", "peer/store"}, tests: tests},
	{path: "peer/limits"},
	{path: "peer/dispatch", may: []string{"peer/piece"}},
	{path: "peer/transfer", may: []string{"peer/piece", "tracing"}},
	{path: "peer/challenge"},
	{path: "peer/source", may: []string{"peer/piece", "peer/challenge"}},
	{path: "peer", may: []string{"peer/*", "scheduler/api", "tracing"}},
	{path: "peer/peertest", may: []string{"peer", "peer/*", "scheduler", "scheduler/*"}, tests: tests},

	{path: "registry-mirror", may: []string{"registry-mirror/*", "peer/piece", "tracing"}},
	{path: "registry-mirror/upstream", may: []string{"peer/piece", "peer/challenge", "tracing"}},
	{path: "registry-mirror/hosts", may: []string{"peer/piece"}},

	{path: "converter/bootstrap"},
	{path: "converter/layer", may: []string{"peer/chunkmap", "peer/piece"}}, // a chunk map is made of piece digests
	{path: "converter/image"},
	{path: "converter/repository"},
	{path: "converter/source"},
	{path: "converter/source/hubtest"},
	{path: "converter", may: []string{"converter/*", "peer/chunkmap", "peer/piece"}},

	{path: "snapshotter/readfs", may: []string{"converter/bootstrap", "peer/piece"}},
	{path: "snapshotter/metastore"},
	{path: "snapshotter/erofs"},
	{path: "snapshotter/fanotify"},
	{path: "snapshotter/keeper"},
	{path: "snapshotter/lazy", may: []string{"snapshotter/erofs", "snapshotter/fanotify", "snapshotter/keeper", "snapshotter/readfs", "converter/bootstrap"}},
	{path: "snapshotter", may: []string{"snapshotter/*", "converter/bootstrap", "converter/image", "registry-mirror"}},

	{path: "manager", may: []string{"manager/*", "scheduler/api"}},
	{path: "manager/console", may: []string{"scheduler/api"}},

	{path: "cmd/*", may: []string{all}},
	{path: "hack/*", may: []string{all}},
	{path: "hack/loopback", may: []string{"hack/lab/cluster"}, tests: tests},
}

// folders are the levels of the tree, lowest first: an import points to the same level's own folder or to a lower level.
var folders = [][]string{
	{"tracing"}, {"scheduler"}, {"peer"}, {"converter", "registry-mirror"}, {"snapshotter"}, {"manager"}, {"cmd"}, {"hack"},
}

// packageNames lists the packages whose name is not their folder's.
var packageNames = map[string]string{"registry-mirror": "mirror"}

// bannedNames are package names that say nothing of what a package holds.
var bannedNames = []string{"util", "utils", "common", "types", "helpers", "interfaces", "models"}
