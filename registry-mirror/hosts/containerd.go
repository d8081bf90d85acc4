package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"
)

// DefaultContainerdConfig is where containerd reads its configuration unless told otherwise.
const DefaultContainerdConfig = "/etc/containerd/config.toml"

// The sections that hold the CRI plugin's registry settings, by the version of the configuration file: 3 and later
// (containerd 2.0), 2, and 1.
const (
	imagesPlugin = "io.containerd.cri.v1.images"
	criPlugin    = "io.containerd.grpc.v1.cri"
	criPluginV1  = "cri"
)

// NotReadError tells that containerd does not read hosts.toml files, and how to make it.
type NotReadError struct {
	Config   string // containerd's configuration file
	CertsDir string
	Found    string // the config_path found, or empty
	Mirrors  bool   // registry.mirrors is set, which rules config_path out
	Version  int    // of the configuration file, or of the one to be made; 0 counts as 2
	Missing  bool   // there is no file
}

func (e *NotReadError) Error() string {
	section := criPlugin
	switch {
	case e.Version >= 3:
		section = imagesPlugin
	case e.Version == 1:
		section = criPluginV1
	}
	var b strings.Builder
	switch {
	case e.Found != "":
		fmt.Fprintf(&b, "containerd reads %s, not %s: use --certs-dir, or set in %s", e.Found, e.CertsDir, e.Config)
	default:
		fmt.Fprintf(&b, "containerd does not read %s yet: set in %s", e.CertsDir, e.Config)
	}
	if e.Missing {
		fmt.Fprintf(&b, "\n\n  version = %d", max(e.Version, 2))
	}
	fmt.Fprintf(&b, "\n\n  [plugins.%q.registry]\n    config_path = %q\n\n", section, e.CertsDir)
	if e.Mirrors {
		fmt.Fprintf(&b, "take out [plugins.%q.registry.mirrors], which cannot stand beside it, ", section)
	}
	b.WriteString("and restart containerd once; Kubernetes' pulls do not use the mirror before")
	return b.String()
}

// containerdFile is the part of containerd's configuration that decides. What plugins hold is looked up by hand, because
// those of others may have anything.
type containerdFile struct {
	Version int                       `toml:"version"`
	Imports []string                  `toml:"imports"`
	Plugins map[string]map[string]any `toml:"plugins"`
}

// CheckContainerd returns nil when the configuration file of containerd, with its imports, makes it read certsDir, and a
// *NotReadError when not. Other errors tell that the file could not be understood.
func CheckContainerd(config, certsDir string) error {
	merged := NotReadError{Config: config, CertsDir: filepath.Clean(certsDir)}
	files := []string{config}
	seen := map[string]bool{}
	for len(files) > 0 && len(seen) < maxImports {
		file := files[0]
		files = files[1:]
		if seen[file] {
			continue
		}
		seen[file] = true
		parsed, err := readContainerd(file)
		if errors.Is(err, fs.ErrNotExist) && file == config {
			merged.Missing = true
			return &merged
		}
		if err != nil {
			return err
		}
		merged.add(parsed)
		files = append(files, expandImports(file, parsed.Imports)...)
	}
	paths := filepath.SplitList(merged.Found)
	if slices.ContainsFunc(paths, func(p string) bool { return filepath.Clean(p) == merged.CertsDir }) {
		return nil
	}
	return &merged
}

// maxImports bounds the files read; real configurations have a few.
const maxImports = 100

func readContainerd(file string) (containerdFile, error) {
	var parsed containerdFile
	text, err := os.ReadFile(file)
	if err != nil {
		return parsed, err
	}
	if err := toml.Unmarshal(text, &parsed); err != nil {
		return parsed, fmt.Errorf("%s: %w", file, err)
	}
	parsed.Version = max(parsed.Version, 1)
	return parsed, nil
}

// add merges a file: what it sets replaces what was set before, as containerd does.
func (e *NotReadError) add(f containerdFile) {
	e.Version = max(e.Version, f.Version)
	for _, name := range []string{imagesPlugin, criPlugin, criPluginV1} {
		registry, _ := f.Plugins[name]["registry"].(map[string]any)
		if path, _ := registry["config_path"].(string); path != "" {
			e.Found = path
		}
		if mirrors, _ := registry["mirrors"].(map[string]any); len(mirrors) > 0 {
			e.Mirrors = true
		}
	}
}

// expandImports returns the files that patterns, relative to the importing file, stand for.
func expandImports(file string, patterns []string) []string {
	var files []string
	for _, pattern := range patterns {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(file), pattern)
		}
		matches, _ := filepath.Glob(pattern) // a bad pattern matches nothing, for containerd too
		files = append(files, matches...)
	}
	return files
}

func isNotDir(err error) bool { return errors.Is(err, syscall.ENOTDIR) }
