package erofs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/converter/bootstrap"
)

// Kubelets and containerds put their folders wherever they like.
func TestRootMountTakesAnyPath(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for name, sub := range map[string]string{"comma": "a,b", "colon": "a:b", "equals": "a=b", "long": strings.Repeat("long/", 60)} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), sub)
			check(t, os.MkdirAll(dir, 0o755))
			boot, blob, target := writeImage(t, dir), filepath.Join(dir, "blob"), t.TempDir()
			check(t, os.WriteFile(blob, append([]byte("content"), make([]byte, 4089)...), 0o600))
			check(t, Mount(boot, []string{blob}, target))
			defer func() { check(t, Unmount(target)) }()
			got, err := os.ReadFile(filepath.Join(target, "file"))
			if err != nil || string(got) != "content" {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// writeImage writes the bootstrap of an image with one file of seven bytes.
func writeImage(t *testing.T, dir string) string {
	t.Helper()
	boot, err := bootstrap.Encode(&bootstrap.Image{
		ChunkSize: 1 << 20,
		Blobs:     []bootstrap.Blob{{Digest: digest.FromString("blob"), Size: 4096, TableOffset: 4096, ChunkCount: 1, DeviceSize: 4096}},
		Chunks:    []bootstrap.Chunk{{Length: 7, Size: 7}},
		Root: &bootstrap.Inode{Mode: bootstrap.TypeDir | 0o755, Children: map[string]*bootstrap.Inode{
			"file": {Mode: bootstrap.TypeRegular | 0o644, Size: 7, Chunks: []uint32{0}},
		}},
	})
	check(t, err)
	path := filepath.Join(dir, "boot")
	check(t, os.WriteFile(path, boot, 0o600))
	return path
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
