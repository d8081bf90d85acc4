package converter_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/converter"
)

// maxMemory is how much memory in bytes a conversion into a layout may take, whatever the size of the model.
const maxMemory = 150 << 20

// TestMemoryDoesNotGrowWithTheModel converts in a process of its own and looks at the most memory it ever held. MEMORY_TEST_SIZE and
// MEMORY_TEST_FILES ask for another number of bytes and of small files: the sizes of real models take too long for every run.
func TestMemoryDoesNotGrowWithTheModel(t *testing.T) {
	size, files := int64(256<<20), 2000
	for name, set := range map[string]func(n int64){"MEMORY_TEST_SIZE": func(n int64) { size = n }, "MEMORY_TEST_FILES": func(n int64) { files = int(n) }} {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.ParseInt(text, 10, 64)
			check(t, err)
			set(n)
		}
	}
	model := filepath.Join(t.TempDir(), "large")
	check(t, os.Mkdir(model, 0o755))
	shards := max(4, size>>30)
	for i := range shards {
		writeShard(t, filepath.Join(model, fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, shards)), size/shards)
	}
	for i := range files {
		sub := filepath.Join(model, fmt.Sprintf("small-%03d", i/1000))
		if i%1000 == 0 {
			check(t, os.Mkdir(sub, 0o755))
		}
		check(t, os.WriteFile(filepath.Join(sub, fmt.Sprintf("%d.json", i)), fmt.Appendf(nil, `{"number": %d}`, i), 0o600))
	}
	exe, err := os.Executable()
	check(t, err)
	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestConvertForMemory$", "-test.v")
	cmd.Env = append(os.Environ(), "MEMORY_TEST_MODEL="+model, "MEMORY_TEST_BASE="+writeLayout(t, smallBase(t)), "MEMORY_TEST_TARGET=oci:"+out+":v1")
	begin := time.Now()
	printed, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, printed)
	}
	_, rest, _ := strings.Cut(string(printed), "VmHWM:")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		t.Fatalf("it printed %s", printed)
	}
	held, err := strconv.ParseInt(fields[0], 10, 64)
	check(t, err)
	t.Logf("%d bytes in %d shards and %d small files: at most %d MiB held, %.1f s", size, shards, files, held>>10, time.Since(begin).Seconds())
	if held<<10 > maxMemory && files <= 2000 {
		t.Errorf("%d KiB", held)
	}
}

// writeShard makes a safetensors file with holes: a page of noise every MiB.
func writeShard(t *testing.T, path string, size int64) {
	t.Helper()
	const tensor = 16 << 20
	var header strings.Builder
	size = size / tensor * tensor
	for at := int64(0); at < size; at += tensor {
		fmt.Fprintf(&header, `,"t%d":{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}`, at/tensor, tensor, at, at+tensor)
	}
	raw := safetensorsOf("{"+header.String()[1:]+"}", 0)
	f, err := os.Create(path)
	check(t, err)
	defer func() { check(t, f.Close()) }()
	_, err = f.Write(raw)
	check(t, err)
	check(t, f.Truncate(int64(len(raw))+size))
	page := noise(uint64(size), 4096)
	for at := int64(0); at < size; at += 1 << 20 {
		binary.LittleEndian.PutUint64(page, uint64(at))
		_, err = f.WriteAt(page, int64(len(raw))+at)
		check(t, err)
	}
}

// TestConvertForMemory is the process that TestMemoryDoesNotGrowWithTheModel starts.
func TestConvertForMemory(t *testing.T) {
	model := os.Getenv("MEMORY_TEST_MODEL")
	if model == "" {
		t.Skip("it is started by another test")
	}
	_, err := converter.Convert(t.Context(), converter.Config{Model: model, Base: os.Getenv("MEMORY_TEST_BASE"), Target: os.Getenv("MEMORY_TEST_TARGET")})
	check(t, err)
	status, err := os.ReadFile("/proc/self/status")
	check(t, err)
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmHWM:") {
			fmt.Println(line)
		}
	}
}
