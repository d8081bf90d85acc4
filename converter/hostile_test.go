package converter_test

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/shoal-project/shoal/converter"
	"golang.org/x/sys/unix"
)

// safetensorsOf is a file whose header says what it is given.
func safetensorsOf(header string, data int) []byte {
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(out, header...), make([]byte, data)...)
}

func TestModelFilesThatContradictThemselves(t *testing.T) {
	const tensor = `{"w":{"dtype":"F32","shape":[1048576],"data_offsets":[0,4194304]}}`
	whole := safetensorsOf(tensor, 4<<20)
	gguf := append([]byte("GGUF\x03\x00\x00\x00"), bytes.Repeat([]byte{0xff}, 2<<20)...)
	for name, data := range map[string][]byte{
		"cut.safetensors":             whole[:len(whole)-1],
		"longer.safetensors":          append(slices.Clone(whole), 0),
		"cut-in-header.safetensors":   whole[:20],
		"huge-header.safetensors":     append(binary.LittleEndian.AppendUint64(nil, 1<<62), make([]byte, 2<<20)...),
		"beyond.safetensors":          safetensorsOf(strings.Replace(tensor, "4194304]", "9223372036854775807]", 1), 4<<20),
		"negative.safetensors":        safetensorsOf(strings.Replace(tensor, "[0,", "[-8,", 1), 4<<20),
		"backwards.safetensors":       safetensorsOf(strings.Replace(tensor, "[0,", "[5000000,", 1), 4<<20),
		"no-json.safetensors":         safetensorsOf(strings.Repeat("x", 100), 4<<20),
		"pointer.safetensors":         []byte("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
		"absurd-counts.gguf":          gguf,
		"cut.gguf":                    gguf[:30],
		"other-magic.gguf":            noise(1, 2<<20),
		"sub/folder/deep.safetensors": whole[:1<<20],
	} {
		t.Run(name, func(t *testing.T) {
			model := t.TempDir()
			check(t, os.MkdirAll(filepath.Dir(filepath.Join(model, name)), 0o755))
			check(t, os.WriteFile(filepath.Join(model, name), data, 0o600))
			check(t, os.WriteFile(filepath.Join(model, "good.safetensors"), whole, 0o600))
			cfg := converts(t, model)
			_, err := converter.Convert(t.Context(), cfg)
			wantError(t, err, converter.ErrSource, name)
			wantNothingLeft(t, cfg)
			stream := converts(t, "-")
			stream.Source.Stdin = bytes.NewReader(tarFolder(t, model))
			_, err = converter.Convert(t.Context(), stream)
			wantError(t, err, converter.ErrSource, name)
			cfg.AnyFormat = true
			_, err = converter.Convert(t.Context(), cfg)
			check(t, err)
			wantModel(t, cfg.Target, sums(t, model))
		})
	}
}

func TestOddFoldersAreConvertedOrRefusedByName(t *testing.T) {
	long := strings.Repeat("n", 255)
	for name, tc := range map[string]struct {
		make func(t *testing.T, dir string) error
		want string // "" for those that are converted
	}{
		"name of 255 bytes": {func(_ *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, long), noise(1, 2<<20), 0o600)
		}, ""},
		"deep": {func(_ *testing.T, dir string) error {
			deep := filepath.Join(dir, strings.Repeat("deep/", 100))
			return errors.Join(os.MkdirAll(deep, 0o755), os.WriteFile(filepath.Join(deep, "x"), []byte("x"), 0o600))
		}, ""},
		"sparse": {func(_ *testing.T, dir string) error {
			path := filepath.Join(dir, "sparse")
			return errors.Join(os.WriteFile(path, []byte("start"), 0o600), os.Truncate(path, 40<<20+7))
		}, ""},
		"hard links": {func(_ *testing.T, dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, "one"), noise(1, 2<<20), 0o600), os.Link(filepath.Join(dir, "one"), filepath.Join(dir, "two")))
		}, ""},
		"line break in a name": {func(_ *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, "a\nb"), []byte("x"), 0o600)
		}, ""},
		"name that is no UTF-8": {func(_ *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, "caf\xe9"), []byte("x"), 0o600)
		}, `caf\xe9`},
		"circle of links": {func(_ *testing.T, dir string) error {
			return errors.Join(os.Symlink("b", filepath.Join(dir, "a")), os.Symlink("a", filepath.Join(dir, "b")))
		}, "/a"},
		"link to a folder above": {func(_ *testing.T, dir string) error { return os.Symlink("..", filepath.Join(dir, "up")) }, "up"},
		"socket": {func(t *testing.T, dir string) error {
			l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			check(t, err)
			t.Cleanup(func() { _ = l.Close() })
			return os.Rename(l.Addr().String(), filepath.Join(dir, "socket"))
		}, "socket"},
		"pipe":     {func(_ *testing.T, dir string) error { return unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600) }, "pipe"},
		"whiteout": {func(_ *testing.T, dir string) error { return os.WriteFile(filepath.Join(dir, ".wh.x"), nil, 0o600) }, ".wh.x"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := converts(t, t.TempDir())
			check(t, os.WriteFile(filepath.Join(cfg.Model, "config.json"), []byte("{}"), 0o600))
			check(t, tc.make(t, cfg.Model))
			_, err := converter.Convert(t.Context(), cfg)
			if tc.want != "" {
				wantError(t, err, converter.ErrSource, tc.want)
				wantNothingLeft(t, cfg)
				return
			}
			check(t, err)
			_, err = converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target})
			check(t, err)
			wantModel(t, cfg.Target, sums(t, cfg.Model))
		})
	}
}

func TestArchivesThatMeanHarmAreRefused(t *testing.T) {
	zeros := t.TempDir()
	for i := range 8 {
		check(t, os.WriteFile(filepath.Join(zeros, fmt.Sprint(i)), make([]byte, 1<<20), 0o600))
	}
	bomb := tarFolder(t, zeros)
	zw, err := zstd.NewWriter(nil)
	check(t, err)
	var traversal bytes.Buffer
	w := zip.NewWriter(&traversal)
	for _, name := range []string{"good", "../../outside"} {
		f, err := w.Create(name)
		check(t, err)
		_, err = f.Write([]byte("x"))
		check(t, err)
	}
	check(t, w.Close())
	served := t.TempDir()
	for name, tc := range map[string]struct {
		raw  []byte
		want string
	}{
		"bomb.tar.gz":   {gzipped(t, bomb), "expands to more than"},
		"bomb.tar.zst":  {zw.EncodeAll(bomb, nil), "expands to more than"},
		"one.tar.gz":    {gzipped(t, tarOf(t, file("zeros", strings.Repeat("0", 8<<20)))), "the limit"},
		"bomb.zip":      {zipFolder(t, zeros), "more than"},
		"traversal.zip": {traversal.Bytes(), "leads out"},
		"traversal.tar": {tarOf(t, file("good", "x"), file("../../outside", "x")), "leads out"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(served, name)
			check(t, os.WriteFile(path, tc.raw, 0o600))
			cfg := converts(t, path)
			cfg.Source.MaxExpanded = 4 << 20
			_, err := converter.Convert(t.Context(), cfg)
			wantError(t, err, converter.ErrSource, tc.want)
			wantNothingLeft(t, cfg)
		})
	}
}
