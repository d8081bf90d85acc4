package erofs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMountNamesTheFileThatIsMissing(t *testing.T) {
	boot := filepath.Join(t.TempDir(), "boot")
	if err := os.WriteFile(boot, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, boot, device, want string }{
		{"no bootstrap", boot + "x", boot, boot + "x"},
		{"no device", boot, boot + "y", boot + "y"},
		{"a folder", boot, filepath.Dir(boot), "no regular file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := Mount(tc.boot, []string{tc.device}, t.TempDir())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("want an error with %q, got %v", tc.want, err)
			}
		})
	}
}

func TestRootMountRefusesWhatIsNoImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	boot := filepath.Join(t.TempDir(), "boot")
	if err := os.WriteFile(boot, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	if err := Mount(boot, nil, target); err == nil {
		t.Error("mounted 8192 zeros")
	}
	if err := Unmount(target); err != nil {
		t.Errorf("nothing was mounted, so nothing is wrong: %v", err)
	}
}
