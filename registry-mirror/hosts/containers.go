package hosts

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

const (
	// DefaultRegistriesDir is where podman, CRI-O, buildah and skopeo read parts of registries.conf.
	DefaultRegistriesDir = "/etc/containers/registries.conf.d"

	registriesName = "50-shoal-mirror.conf"
	registriesHead = "# Written by \"shoal mirror configure --for podman\", taken out by \"shoal mirror remove --for podman\".\n"
)

// ErrNeedsRegistries means that a program cannot be told to use a mirror for whatever registry.
var ErrNeedsRegistries = errors.New("podman and its kin use mirrors for registries they are told of: name them by --registry")

// registriesFile is what we read of a registries.conf.
type registriesFile struct {
	Registry []struct {
		Prefix   string `toml:"prefix"`
		Location string `toml:"location"`
	} `toml:"registry"`
}

// PlanContainers returns the change of the file in dir that has podman, CRI-O, buildah and skopeo ask the mirror of c first for its
// registries. The file is ours alone. It would take the place of what others say of the same registry, so that is an error. It writes
// nothing.
func PlanContainers(c Config, dir string) (Change, error) {
	if err := c.Validate(); err != nil {
		return Change{}, err
	}
	c = c.withDefaults()
	if len(c.Registries) == 0 {
		return Change{}, ErrNeedsRegistries
	}
	change, err := ownFile(dir)
	if err != nil {
		return change, err
	}
	if err := c.checkOthers(dir); err != nil {
		return change, err
	}
	mirror, err := url.Parse(c.Mirror)
	if err != nil {
		return change, err
	}
	var b bytes.Buffer
	b.WriteString(registriesHead)
	for _, r := range c.Registries {
		fmt.Fprintf(&b, "\n[[registry]]\nprefix = %q\nlocation = %q\n", r.Host, r.Host)
		if r.PlainHTTP {
			b.WriteString("insecure = true\n")
		}
		fmt.Fprintf(&b, "[[registry.mirror]]\nlocation = %q\n", mirror.Host+"/"+r.Host)
		if mirror.Scheme == "http" {
			b.WriteString("insecure = true\n") // of the mirror; a registry's digests hold all the same
		}
	}
	if change.After = b.Bytes(); !change.Changed() {
		change.Note = "already configured"
	}
	return change, nil
}

// PlanContainersRemove returns the change that takes that file away. It writes nothing.
func PlanContainersRemove(dir string) (Change, error) {
	change, err := ownFile(dir)
	change.After = nil
	if change.Before == nil {
		change.Note = "not configured"
	}
	return change, err
}

func ownFile(dir string) (Change, error) {
	path := target(filepath.Join(dir, registriesName))
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Change{Path: path}, err
	}
	if err == nil && !bytes.HasPrefix(text, []byte(registriesHead)) {
		return Change{Path: path}, fmt.Errorf("%s was not written by shoal: move it away first", path)
	}
	return Change{Path: path, Before: text, After: text, ours: true}, nil
}

// checkOthers refuses registries that other files speak of: the last file that names one decides alone, and the longest name before shorter ones.
func (c Config) checkOthers(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.conf"))
	if err != nil {
		return err
	}
	files = append(files, filepath.Join(filepath.Dir(filepath.Clean(dir)), "registries.conf"))
	var errs []error
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || filepath.Base(file) == registriesName {
			continue
		}
		var parsed registriesFile
		if err == nil {
			err = toml.Unmarshal(text, &parsed)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
		}
		for _, there := range parsed.Registry {
			named := strings.TrimSuffix(cmp.Or(there.Prefix, there.Location), "/")
			if host := c.hidden(named); host != "" {
				errs = append(errs, fmt.Errorf("%s has %s, and an entry of ours for %s would hide it; write that entry there, with what %s says",
					file, named, host, named))
			}
			if slices.ContainsFunc(c.Registries, func(r Registry) bool { return r.Host == named }) {
				errs = append(errs, fmt.Errorf("%s speaks of %s already, and only one file can; add there:\n\n  [[registry.mirror]]\n  location = %q\n  insecure = true",
					file, named, strings.TrimPrefix(c.Mirror, "http://")+"/"+named))
			}
		}
	}
	return errors.Join(errs...)
}

// hidden returns the first registry of c that a pattern of the form *.example.com stands for; empty when there is none.
func (c Config) hidden(pattern string) string {
	domain, ok := strings.CutPrefix(pattern, "*")
	for _, r := range c.Registries {
		if host, _, _ := strings.Cut(r.Host, ":"); ok && strings.HasSuffix(host, domain) {
			return r.Host
		}
	}
	return ""
}
