package source

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, data string, mode fs.FileMode) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, []byte(data), mode))
}

func TestWalkListsParentsFirstInByteOrder(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/b/x", "1", 0o600)
	write(t, dir+"/b.txt", "22", 0o600)
	write(t, dir+"/a", "333", 0o711)
	check(t, os.Mkdir(dir+"/empty", 0o700))
	check(t, os.Symlink("b/x", dir+"/link"))
	check(t, os.Symlink("../a", dir+"/b/up"))
	files, err := Walk(dir)
	check(t, err)
	var got []string
	for _, f := range files {
		got = append(got, strings.TrimSpace(f.Path+" "+f.Link))
	}
	if diff := cmp.Diff([]string{"a", "b", "b/up ../a", "b/x", "b.txt", "empty", "link b/x"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !files[0].Executable || files[0].Size != 3 || files[3].Executable {
		t.Errorf("%+v", files[0])
	}
}

func TestLinksOutOfTheFolderBecomeFiles(t *testing.T) {
	top := t.TempDir()
	write(t, top+"/blobs/abc", "weights", 0o600)
	write(t, top+"/snap/config.json", "{}", 0o600)
	check(t, os.Symlink("../blobs/abc", top+"/snap/model.bin"))
	check(t, os.Symlink(top+"/snap/config.json", top+"/snap/absolute"))
	check(t, os.Symlink("../snap/config.json", top+"/snap/round"))
	files, err := Walk(top + "/snap")
	check(t, err)
	for _, f := range files {
		if f.Link != "" || !f.Mode.IsRegular() {
			t.Errorf("%s is still a link", f.Path)
		}
		r, err := f.Open(t.Context(), 0)
		check(t, err)
		data, err := io.ReadAll(r)
		check(t, err)
		check(t, r.Close())
		if int64(len(data)) != f.Size || f.Size == 0 {
			t.Errorf("%s: %d bytes, size says %d", f.Path, len(data), f.Size)
		}
	}
}

func TestWalkNamesWhatItCannotTake(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(dir string) error
		want string
	}{
		{"link to nothing", func(dir string) error { return os.Symlink("nowhere", dir+"/broken") }, "broken"},
		{"link to itself", func(dir string) error { return os.Symlink("loop", dir+"/loop") }, "loop"},
		{"folder outside", func(dir string) error { return os.Symlink("/proc", dir+"/proc") }, "copy the folder"},
		{"fifo", func(dir string) error { return syscall.Mkfifo(dir+"/pipe", 0o600) }, "pipe"},
		{"name", func(dir string) error { return os.WriteFile(dir+"/\xff", nil, 0o600) }, "UTF-8"},
		{"absolute link to a folder", func(dir string) error { return os.Symlink(dir+"/..", dir+"/up") }, "relative"},
		{"whiteout", func(dir string) error { return os.WriteFile(dir+"/.wh.ok", nil, 0o600) }, "hides"},
		{"opaque mark", func(dir string) error { return os.Mkdir(dir+"/.wh..wh..opq", 0o700) }, "hides"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/ok", "x", 0o600)
			check(t, tc.make(dir))
			_, err := Walk(dir)
			if !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("want ErrModel with %q, got %v", tc.want, err)
			}
		})
	}
}

func TestUnreadableFileIsNamed(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/secret", "x", 0)
	if os.Geteuid() == 0 { // root reads everything, so this thread stops being root for files
		check(t, os.Chmod(filepath.Dir(dir), 0o755))
		check(t, os.Chmod(dir, 0o755))
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		check(t, unix.Setfsuid(65534))
		defer func() { check(t, unix.Setfsuid(0)) }()
	}
	if _, err := Walk(dir); !errors.Is(err, fs.ErrPermission) || !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

func mkdir(path string) error { return os.MkdirAll(path, 0o755) }

func TestSingleFileIsAModel(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/tiny.Q4.gguf", "GGUF", 0o600)
	m, err := Open(t.Context(), dir+"/tiny.Q4.gguf", Config{})
	check(t, err)
	if len(m.Files) != 1 || m.Files[0].Path != "tiny.Q4.gguf" || m.Name != "tiny.Q4" || !m.Local {
		t.Fatalf("%+v", m)
	}
	r, err := m.Files[0].Open(t.Context(), 2)
	check(t, err)
	defer r.Close()
	if data, err := io.ReadAll(r); string(data) != "UF" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
}

func TestFolderIsNamedByItself(t *testing.T) {
	dir := t.TempDir() + "/llama"
	write(t, dir+"/a", "x", 0o600)
	t.Chdir(dir)
	for _, ref := range []string{dir, dir + "/", ".", "../llama"} {
		m, err := Open(t.Context(), ref, Config{})
		if err != nil || m.Name != "llama" {
			t.Errorf("%s: %+v, %v", ref, m, err)
		}
	}
}

func TestUnknownSourcesAreExplained(t *testing.T) {
	for ref, want := range map[string]string{
		"":                           "not named",
		"org/name":                   "hf://org/name",
		"gs://bucket/x":              "s3://bucket/x --s3-endpoint https://storage.googleapis.com",
		"ftp://u:secret@host/file":   "ftp://host/file",
		"foo://u:secret@host/file":   "no such kind",
		"oci:" + t.TempDir() + ":v1": "models are not read from OCI layouts",
		"oci:./not-there:v1":         "models are not read from OCI layouts",
		"oci:r.example.com/ml/x:v1":  "oci://r.example.com/ml/x:v1",
		"docker://u:secret@r.example.com/ml/x:v1": "write oci://r.example.com/ml/x:v1",
		"docker-archive:x.tar":                    "write oci://REGISTRY/NAME:TAG",
		"hf:org/name":                             "write hf://org/name",
		"s3:bucket/x":                             "write s3://bucket/x",
		"huggingface.co/org/name":                 "hf://org/name",
		"https://huggingface.co/org/name/":        "hf://org/name",
		"https://huggingface.co/gpt2":             "hf://gpt2",
		"https://hf.co/org/name/tree/v1":          "hf://org/name@v1",
		"az://container/x":                        "download or mount it",
		"git@huggingface.co:org/name":             "git lfs pull",
		"/dev/null":                               "neither file nor folder",
	} {
		_, err := Open(t.Context(), ref, Config{})
		if !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v", ref, err)
		}
	}
}

func TestNamesOf255BytesAndDeepFoldersAreTaken(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/"+strings.Repeat("é", 127)+"x", "x", 0o600)
	write(t, dir+"/"+strings.Repeat("d/", 50)+"f", "x", 0o600)
	if files, err := Walk(dir); err != nil || len(files) != 52 {
		t.Errorf("%d names, %v", len(files), err)
	}
}

// BenchmarkWalk lists a model of many small files.
func BenchmarkWalk(b *testing.B) {
	dir := b.TempDir()
	for i := range 20000 {
		folder := filepath.Join(dir, string(rune('a'+i%20)))
		if i < 20 {
			check(b, os.Mkdir(folder, 0o755))
		}
		check(b, os.WriteFile(filepath.Join(folder, strings.Repeat("x", 10)+string(rune('a'+i%26))+string(rune('0'+i/2600))+strings.Repeat("y", i%97)), nil, 0o600))
	}
	for b.Loop() {
		if _, err := Walk(dir); err != nil {
			b.Fatal(err)
		}
	}
}
