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

// maxPerFile is how much of it may be added for each small file, in bytes; 650 were measured.
const maxPerFile = 1000

// TestMemoryDoesNotGrowWithTheModel converts in a process of its own and looks at the most memory it ever held. MEMORY_TEST_SIZE asks for
// another number of bytes: the sizes of real models take too long for every run.
func TestMemoryDoesNotGrowWithTheModel(t *testing.T) {
	size := askedFor(t, "MEMORY_TEST_SIZE", 256<<20)
	model := filepath.Join(t.TempDir(), "large")
	check(t, os.Mkdir(model, 0o755))
	shards := max(4, size>>30)
	for i := range shards {
		writeShard(t, filepath.Join(model, fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, shards)), size/shards)
	}
	writeSmall(t, model, 2000)
	held := heldByConversion(t, model)
	t.Logf("%d bytes in %d shards: at most %d MiB held", size, shards, held>>20)
	if held > maxMemory {
		t.Errorf("%d bytes", held)
	}
}

// TestMemoryOfManyFiles compares models of few and of many small files. MEMORY_TEST_FILES asks for another number of many.
func TestMemoryOfManyFiles(t *testing.T) {
	few, many := int64(1000), askedFor(t, "MEMORY_TEST_FILES", 40_000)
	var held [2]int64
	for i, files := range []int64{few, many} {
		model := filepath.Join(t.TempDir(), "small")
		check(t, os.Mkdir(model, 0o755))
		writeSmall(t, model, int(files))
		held[i] = heldByConversion(t, model)
	}
	per := (held[1] - held[0]) / (many - few)
	t.Logf("%d files: at most %d MiB held; %d files: %d MiB, %d bytes for each", few, held[0]>>20, many, held[1]>>20, per)
	if per > maxPerFile {
		t.Errorf("%d bytes for each file, want %d or less", per, maxPerFile)
	}
}

// askedFor is a number that the environment may change.
func askedFor(t *testing.T, name string, n int64) int64 {
	t.Helper()
	if text := os.Getenv(name); text != "" {
		var err error
		n, err = strconv.ParseInt(text, 10, 64)
		check(t, err)
	}
	return n
}

func writeSmall(t *testing.T, model string, files int) {
	t.Helper()
	for i := range files {
		sub := filepath.Join(model, fmt.Sprintf("small-%03d", i/1000))
		if i%1000 == 0 {
			check(t, os.Mkdir(sub, 0o755))
		}
		check(t, os.WriteFile(filepath.Join(sub, fmt.Sprintf("%d.json", i)), fmt.Appendf(nil, `{"number": %d}`, i), 0o600))
	}
}

// heldByConversion returns the most memory that a process held which converts a model into a layout, collecting garbage as the command does.
func heldByConversion(t *testing.T, model string) int64 {
	t.Helper()
	exe, err := os.Executable()
	check(t, err)
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestConvertForMemory$", "-test.v")
	cmd.Env = append(os.Environ(), "GOGC=50", "MEMORY_TEST_MODEL="+model, "MEMORY_TEST_BASE="+writeLayout(t, smallBase(t)), "MEMORY_TEST_TARGET=oci:"+t.TempDir()+":v1")
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
	t.Logf("%.1f s", time.Since(begin).Seconds())
	return held << 10
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

// TestConvertForMemory is the process that heldByConversion starts.
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
