package examples

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// machine is one with shoal and a web server that the pages name.
func machine(t *testing.T) *world {
	t.Helper()
	cluster.NeedTools(t, "bash", "jq", "curl", "go")
	dir := t.TempDir()
	w := &world{home: filepath.Join(dir, "home")}
	bin, web := filepath.Join(dir, "bin"), filepath.Join(dir, "web")
	w.runner.dir = filepath.Join(dir, "work")
	for _, d := range []string{w.home, bin, web, w.runner.dir} {
		check(t, os.MkdirAll(d, 0o700))
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "github.com/shoal-project/shoal/cmd/shoal")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build shoal: %v\n%s", err, out)
	}
	data := make([]byte, 3<<20)
	sum := sha256.Sum256(data)
	check(t, os.WriteFile(filepath.Join(web, "llama.tar.zst"), data, 0o600))
	check(t, os.MkdirAll(filepath.Join(web, "llama", "parts"), 0o700))
	for _, name := range []string{"config.json", "parts/1.bin", "parts/2.bin"} {
		check(t, os.WriteFile(filepath.Join(web, "llama", name), []byte(name), 0o600))
	}
	files := http.FileServer(http.Dir(web))
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("ETag", `"`+hex.EncodeToString(sum[:8])+`"`)
		files.ServeHTTP(rw, r)
	}))
	t.Cleanup(server.Close)
	w.web = server.URL
	w.runner.env = []string{"HOME=" + w.home, "PATH=" + bin + ":" + os.Getenv("PATH"), "SHA256=" + hex.EncodeToString(sum[:]),
		"SHOAL_NODE=" + freeAddress(t), "SCHEDULER=" + freeAddress(t)}
	return w
}

// freeAddress returns an address of this machine that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().String()
}

func TestExamplesOfGetRun(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and starts shoal")
	}
	w := machine(t)
	node := exec.Command("bash", "-c", `exec shoal node --data-dir data --mirror-listen 127.0.0.1:0 --admin-listen "$SHOAL_NODE"`)
	node.Dir, node.Env = w.runner.dir, w.runner.env
	check(t, node.Start())
	t.Cleanup(func() {
		_ = node.Process.Signal(os.Interrupt)
		_ = node.Wait() // how it ends is of no interest here
	})
	w.runner.shell(t, `for i in $(seq 100); do shoal status >/dev/null 2>&1 && break; sleep 0.1; done; shoal status`, nil)
	w.page(t, "get.md")
	w.runner.shell(t, "cmp llama.tar.zst again.tar.zst; cmp llama.tar.zst private.tar.zst; cmp llama.tar.zst signed.tar.zst; grep -x parts/2.bin llama/parts/2.bin", nil)
}

func TestExamplesOfSecurityRun(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and starts shoal")
	}
	machine(t).page(t, "security.md")
}
