package snapshotter

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRootDamagedMetadataAreNamedWithTheWayOut(t *testing.T) {
	const page = 4096
	for name, damage := range map[string]func(data []byte) []byte{
		"zeros":        func(data []byte) []byte { return make([]byte, len(data)) },
		"no free list": func(data []byte) []byte { clear(data[2*page:]); return data },
		"cut off":      func(data []byte) []byte { return data[:3*page] },
		"no leaves": func(data []byte) []byte {
			for at := 2 * page; at < len(data); at += page {
				if data[at+8] == 2 { // the page's flags
					clear(data[at : at+page])
				}
			}
			return data
		},
		"what is no database": func([]byte) []byte { return bytes.Repeat([]byte("text\n"), page) },
	} {
		t.Run(name, func(t *testing.T) {
			needRoot(t)
			h := &host{t: t, reg: newRegistry(t), pins: newPins(), root: filepath.Join(t.TempDir(), "snapshots")}
			h.start()
			h.cfg.Mounter = nil
			if _, err := h.Prepare(t.Context(), "key", ""); err != nil {
				t.Fatal(err)
			}
			check(t, h.Close())
			path := filepath.Join(h.root, metadataName)
			data, err := os.ReadFile(path)
			check(t, err)
			check(t, os.WriteFile(path, damage(data), 0o600))
			s, err := New(Config{Root: h.root})
			if err == nil {
				check(t, s.Close())
			}
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), metadataName) || !strings.Contains(err.Error(), "move "+h.root) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v", err)
			}
			check(t, os.Rename(h.root, h.root+"-away"))
			h.start() // the way out
			check(t, h.Close())
		})
	}
}
