package daemon

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/cmd/internal/config"
)

func TestHostsTomlIsThereWhileTheNodeIs(t *testing.T) {
	dir := t.TempDir()
	cfg := config.DefaultNode()
	cfg.DataDir, cfg.Mirror.Listen, cfg.Admin.Listen = filepath.Join(dir, "data"), "127.0.0.1:0", "127.0.0.1:0"
	cfg.Mirror.Configure = config.Configure{CertsDir: filepath.Join(dir, "certs"), Registries: []string{"10.0.0.1:5000"}}
	cfg.Registries = map[string]config.Registry{"10.0.0.1:5000": {PlainHTTP: true}}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	// Others' files stay, also one that sends another registry to the same mirror.
	other := filepath.Join(cfg.Mirror.Configure.CertsDir, "other", "hosts.toml")
	if err := os.MkdirAll(filepath.Dir(other), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, []byte("server = \"https://other\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(cfg.Mirror.Configure.CertsDir, "10.0.0.1:5000", "hosts.toml")

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- RunNode(ctx, cfg, "test", io.Discard) }() // ends with ctx
	var text []byte
	for deadline := time.Now().Add(30 * time.Second); len(text) == 0; time.Sleep(10 * time.Millisecond) {
		text, _ = os.ReadFile(file)
		select {
		case err := <-ended:
			t.Fatalf("the node ended: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s", file)
		}
	}
	if !strings.Contains(string(text), `[host."http://127.0.0.1:`) || !strings.Contains(string(text), `server = "http://10.0.0.1:5000"`) {
		t.Errorf("hosts.toml is\n%s", text)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("hosts.toml stays although the node has stopped")
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}

func TestWhatTheNodeMayNotWriteIsToldWithTheWayOut(t *testing.T) {
	dir := t.TempDir()
	cfg := config.DefaultNode()
	cfg.DataDir, cfg.Mirror.Listen, cfg.Admin.Listen = filepath.Join(dir, "data"), "127.0.0.1:0", "127.0.0.1:0"
	cfg.Mirror.Configure.CertsDir = "/proc/shoal" // where nobody may
	if err := RunNode(t.Context(), cfg, "test", io.Discard); err == nil || !strings.Contains(err.Error(), "mirror.configure") {
		t.Errorf("error %v, want one that names mirror.configure", err)
	}
}
