package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSizesMayHaveUnits(t *testing.T) {
	for text, want := range map[string]Size{"10GiB": 10 << 30, "500GB": 500e9, "'1.5 TiB'": 3 << 39, "0": 0, "1073741824": 1 << 30, "0x400": 1024, "-1": -1} {
		file := filepath.Join(t.TempDir(), "node.yaml")
		if err := os.WriteFile(file, []byte("store: {max_bytes: "+text+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		n := DefaultNode()
		if err := Load(file, &n); err != nil || n.Store.MaxBytes != want {
			t.Errorf("%s: %d, %v; want %d", text, n.Store.MaxBytes, err, want)
		}
	}
	for _, text := range []string{"much", "10Gi", "[1]", "-1GiB"} {
		file := filepath.Join(t.TempDir(), "node.yaml")
		if err := os.WriteFile(file, []byte("name: a\nstore: {max_bytes: "+text+", no: 1}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		n := DefaultNode()
		if err := Load(file, &n); err == nil || !strings.Contains(err.Error(), "line 2: size") || !strings.Contains(err.Error(), `unknown key "no"`) {
			t.Errorf("%s: %v, want an error with the line, besides the other one", text, err)
		}
	}
}
