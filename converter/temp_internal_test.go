package converter

import (
	"os"
	"path/filepath"
	"testing"
)

// What a killed process left is swept, what a living one uses is not, nor what is of others.
func TestTemporaryFoldersOfDeadProcessesAreSwept(t *testing.T) {
	parent := t.TempDir()
	for _, name := range []string{"shoal-convert-1/deep", "other"} {
		if err := os.MkdirAll(filepath.Join(parent, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"shoal-convert-1/deep/layer-1", "shoal-convert-file", "other/kept"} {
		if err := os.WriteFile(filepath.Join(parent, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("other", filepath.Join(parent, "shoal-convert-link")); err != nil {
		t.Fatal(err)
	}
	mine, err := newTempFolder(parent)
	if err != nil {
		t.Fatal(err)
	}
	other, err := newTempFolder(parent)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		filepath.Join(parent, "shoal-convert-1"): false, filepath.Join(parent, "shoal-convert-file"): true,
		filepath.Join(parent, "other", "kept"): true, mine.path: true, other.path: true,
	} {
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("%s: want it there: %v; %v", name, want, err)
		}
	}
	for _, f := range []*tempFolder{mine, other} {
		if err := f.remove(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(f.path); err == nil {
			t.Errorf("%s stays", f.path)
		}
	}
}
