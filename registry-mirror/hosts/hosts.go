package hosts

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
)

const (
	// DefaultCertsDir is where containerd's documentation puts registry configuration.
	DefaultCertsDir = "/etc/containerd/certs.d"
	// DefaultMirror is where a node's mirror listens unless told otherwise.
	DefaultMirror = "http://127.0.0.1:7701"
	// AllRegistries is the folder for every registry that has none of its own.
	AllRegistries = "_default"

	fileName = "hosts.toml"
	// backupSuffix ends the name of the copy of a file that was there before.
	backupSuffix = ".before-shoal"
)

// ErrCertificates means that a folder has certificates that containerd would no longer read once there is a hosts.toml.
var ErrCertificates = errors.New("certificates without a hosts.toml")

// Config says what to put where. The zero Config is the default mirror for all registries.
type Config struct {
	// CertsDir is containerd's config_path. Empty is DefaultCertsDir.
	CertsDir string
	// Mirror is the URL of the node's mirror. Empty is DefaultMirror.
	Mirror string
	// Registries are the registries to mirror. None is AllRegistries for PlanConfigure, and every folder with our block
	// for PlanRemove.
	Registries []Registry
}

// Registry is one registry as image names write it, HOST or HOST:PORT.
type Registry struct {
	Host      string
	PlainHTTP bool // it speaks HTTP without TLS; those on loopback addresses are taken to
}

func (c Config) withDefaults() Config {
	if c.CertsDir == "" {
		c.CertsDir = DefaultCertsDir
	}
	if c.Mirror == "" {
		c.Mirror = DefaultMirror
	}
	c.Mirror = strings.TrimSuffix(c.Mirror, "/")
	return c
}

// Validate reports all faults of the configuration at once.
func (c Config) Validate() error {
	var errs []error
	c = c.withDefaults()
	u, err := url.Parse(c.Mirror)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.Path != "" || u.RawQuery != "" || u.User != nil {
		errs = append(errs, fmt.Errorf("mirror %q: want http://HOST:PORT", c.Mirror))
	}
	for _, r := range c.Registries {
		if u, err := url.Parse("//" + r.Host); r.Host != AllRegistries && (err != nil || u.Host != r.Host || r.Host == "" || strings.HasPrefix(r.Host, ".")) {
			errs = append(errs, fmt.Errorf("registry %q: want HOST or HOST:PORT as in image names", r.Host))
		}
	}
	return errors.Join(errs...)
}

// Change is what is to be done to one file. Nil bytes mean that there is no file.
type Change struct {
	Path          string
	Before, After []byte
	Note          string // why nothing is done, when Before and After are equal

	ours      bool // Before has something of ours in it
	ownFolder bool // the folder is for this file alone
}

// Changed reports whether Apply would write.
func (c Change) Changed() bool {
	return (c.Before == nil) != (c.After == nil) || !bytes.Equal(c.Before, c.After)
}

// PlanConfigure returns the changes that make the mirror the first host of each registry. It writes nothing.
func PlanConfigure(c Config) ([]Change, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	registries := c.Registries
	if len(registries) == 0 {
		registries = []Registry{{Host: AllRegistries}}
	}
	var changes []Change
	var errs []error
	for _, r := range registries {
		change, err := c.planAdd(r)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", change.Path, err))
		}
		changes = append(changes, change)
	}
	return changes, errors.Join(errs...)
}

func (c Config) planAdd(r Registry) (Change, error) {
	folder := c.folder(r.Host)
	change, err := readChange(folder)
	if err != nil {
		return change, err
	}
	if len(change.Before) == 0 {
		if err := checkCertificates(folder); err != nil {
			return change, err
		}
	}
	change.After, err = addBlock(change.Before, settings{mirror: c.Mirror, server: serverURL(r)})
	switch {
	case errors.Is(err, errByHand):
		change.After, change.Note = change.Before, errByHand.Error()
		return change, nil
	case err == nil && !change.Changed():
		change.Note = "already configured"
	}
	return change, err
}

// PlanRemove returns the changes that take the mirror out again. It writes nothing.
func PlanRemove(c Config) ([]Change, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	folders, err := c.foldersToClean()
	if err != nil {
		return nil, err
	}
	var changes []Change
	var errs []error
	for _, folder := range folders {
		change, err := planCut(folder)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", change.Path, err))
		}
		if change.Changed() || len(c.Registries) > 0 {
			changes = append(changes, change)
		}
	}
	return changes, errors.Join(errs...)
}

func (c Config) foldersToClean() ([]string, error) {
	var folders []string
	for _, r := range c.Registries {
		folders = append(folders, c.folder(r.Host))
	}
	if len(folders) > 0 {
		return folders, nil
	}
	entries, err := os.ReadDir(c.CertsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		folders = append(folders, filepath.Join(c.CertsDir, e.Name()))
	}
	return folders, nil
}

func planCut(folder string) (Change, error) {
	change, err := readChange(folder)
	if err != nil {
		return change, err
	}
	change.After, err = cutBlock(change.Before)
	if err != nil {
		return change, err
	}
	if !change.Changed() {
		change.Note = "not configured"
		return change, nil
	}
	backup, err := os.ReadFile(change.Path + backupSuffix)
	switch {
	case err == nil && bytes.Equal(bytes.TrimRight(backup, "\n"), bytes.TrimRight(change.After, "\n")):
		change.After = backup // gives back the missing newline at the end, too
	case errors.Is(err, fs.ErrNotExist) && len(bytes.TrimSpace(change.After)) == 0:
		change.After = nil // nobody but us has put anything there
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return change, err
	}
	return change, nil
}

// readChange returns the present state of a folder's file.
func readChange(folder string) (Change, error) {
	path := filepath.Join(folder, fileName)
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // a link stays one
	}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !isNotDir(err) {
		return Change{Path: path}, err
	}
	return Change{Path: path, Before: text, After: text, ours: bytes.Contains(text, []byte(beginMark)), ownFolder: true}, nil
}

// folder returns where containerd looks for a registry: the name with underscores first, if it is there.
func (c Config) folder(host string) string {
	if i := strings.LastIndexByte(host, ':'); i > 0 {
		folder := filepath.Join(c.CertsDir, host[:i]+"_"+host[i+1:]+"_")
		if _, err := os.Stat(folder); err == nil {
			return folder
		}
	}
	return filepath.Join(c.CertsDir, host)
}

// checkCertificates refuses a folder in Docker's style, which containerd reads only while there is no hosts.toml.
func checkCertificates(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	i := slices.IndexFunc(entries, func(e fs.DirEntry) bool {
		return slices.Contains([]string{".crt", ".cert", ".key"}, filepath.Ext(e.Name()))
	})
	if i < 0 {
		return nil
	}
	return fmt.Errorf("%w: containerd would ignore %s beside it; write a %s with server, ca and client first, then run this again",
		ErrCertificates, entries[i].Name(), fileName)
}

// serverURL returns what containerd would use without a hosts.toml; empty for AllRegistries, where it is each one's own.
func serverURL(r Registry) string {
	switch {
	case r.Host == AllRegistries:
		return ""
	case r.Host == "docker.io":
		return "https://registry-1.docker.io"
	case r.PlainHTTP || isLoopback(r.Host):
		return "http://" + r.Host
	}
	return "https://" + r.Host
}

func isLoopback(registry string) bool {
	host := (&url.URL{Host: registry}).Hostname()
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// Apply writes the changes, each file in one step, and stops at the first that fails.
func Apply(changes []Change) error {
	for _, c := range changes {
		if !c.Changed() {
			continue
		}
		if err := c.apply(); err != nil {
			return err
		}
	}
	return nil
}

func (c Change) apply() error {
	folder := filepath.Dir(c.Path)
	backup := c.Path + backupSuffix
	if c.After == nil {
		if err := os.Remove(c.Path); err != nil {
			return err
		}
		if c.ownFolder {
			_ = os.Remove(folder) // only if empty
		}
		return nil
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if err := c.keepBackup(backup); err != nil {
		return err
	}
	if err := write(c.Path, c.After); err != nil {
		return err
	}
	if text, err := os.ReadFile(backup); err == nil && bytes.Equal(text, c.After) {
		return os.Remove(backup) // the file is again what it was
	}
	return nil
}

// keepBackup copies a file that has nothing of ours in it, once.
func (c Change) keepBackup(backup string) error {
	if c.Before == nil || c.ours {
		return nil
	}
	if _, err := os.Lstat(backup); err == nil {
		return nil
	}
	info, err := os.Stat(c.Path)
	if err != nil {
		return err
	}
	// It may hold secrets, as the file does.
	return renameio.WriteFile(backup, c.Before, info.Mode().Perm(), renameio.WithTempDir(filepath.Dir(backup)), renameio.WithStaticPermissions(info.Mode().Perm()))
}

// target follows symbolic links, so that a link stays one.
func target(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	return path
}

// write replaces a file in one step, keeping the permissions of one that was there.
func write(path string, text []byte) error {
	err := renameio.WriteFile(path, text, 0o644, renameio.WithTempDir(filepath.Dir(path)), renameio.WithExistingPermissions())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}

// Diff shows what the change does, in the form of diff -u without context; empty when it does nothing.
func (c Change) Diff() string {
	if !c.Changed() {
		return ""
	}
	before, after := lines(c.Before), lines(c.After)
	head := 0
	for head < min(len(before), len(after)) && before[head] == after[head] {
		head++
	}
	tail := 0
	for tail < min(len(before), len(after))-head && before[len(before)-1-tail] == after[len(after)-1-tail] {
		tail++
	}
	var b strings.Builder
	fmt.Fprintf(&b, "--- %s\n+++ %s\n", nameOrNull(c.Path, c.Before), nameOrNull(c.Path, c.After))
	gone, come := before[head:len(before)-tail], after[head:len(after)-tail]
	fmt.Fprintf(&b, "@@ -%s +%s @@\n", hunk(head, len(gone)), hunk(head, len(come)))
	for _, line := range gone {
		fmt.Fprintf(&b, "-%s\n", strings.TrimSuffix(line, "\n"))
	}
	for _, line := range come {
		fmt.Fprintf(&b, "+%s\n", strings.TrimSuffix(line, "\n"))
	}
	return b.String()
}

// hunk names the n lines behind the first head ones as diff does: from 1, but no lines are behind the line before.
func hunk(head, n int) string {
	if n > 0 {
		head++
	}
	return fmt.Sprintf("%d,%d", head, n)
}

func lines(text []byte) []string { return slices.Collect(strings.Lines(string(text))) }

func nameOrNull(path string, text []byte) string {
	if text == nil {
		return os.DevNull
	}
	return path
}
