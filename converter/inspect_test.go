package converter_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/converter"
)

func inspect(t *testing.T, cfg converter.InspectConfig) *converter.Inspection {
	t.Helper()
	cfg.Access = once()
	got, err := converter.Inspect(t.Context(), cfg)
	check(t, err)
	return got
}

func TestInspectionSaysWhatAnImageIs(t *testing.T) {
	cfg := config(t, registryWith(t, nil)+"/ml/tiny:v1")
	check(t, os.WriteFile(filepath.Join(cfg.Model, "model.safetensors"), safetensors(t), 0o600))
	cfg.ModelPack, cfg.Annotations = true, map[string]string{"org.opencontainers.image.source": "https://models.example/tiny"}
	made, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	got := inspect(t, converter.InspectConfig{Image: cfg.Target})
	want := &converter.InspectedModel{
		Name: "tiny", Path: "/models/tiny", Files: made.ModelFiles, Bytes: made.ModelBytes,
		Formats: []string{"pytorch", "safetensors"}, Source: "https://models.example/tiny",
	}
	if diff := cmp.Diff(want, got.Model); diff != "" {
		t.Errorf("model (-want +got):\n%s", diff)
	}
	if !got.Converted || got.Digest != made.Digest || got.ModelPack.Digest != made.ModelPack || got.ModelPack.Layers != 3 || len(got.Platforms) != 1 {
		t.Errorf("%+v", got)
	}
	if h := got.Platforms[0].Plain.Layers[0]; h.Kind != "base" || h.Holds != "" { // that base has no history
		t.Errorf("%+v", h)
	}
	p := got.Platforms[0]
	if p.ChunkSize != 1<<20 || p.RAFSChunks == 0 || !cmp.Equal(p.Compressors, []string{"none", "zstd"}) || p.Prefetch[0] != "/models/tiny/config.json" {
		t.Errorf("%+v", p)
	}
	var lines []string
	for _, l := range append(p.Plain.Layers, p.Nydus.Layers...) {
		lines = append(lines, l.Kind+": "+l.Holds)
		if l.Kind != "bootstrap" && (l.Chunks == 0 || l.MeanChunk == 0) {
			t.Errorf("%+v has no chunks", l)
		}
	}
	model := []string{"model: 7 files from config.json", "model: tokenizer/deep/merges.bin", "model: weights.bin"}
	wantLines := append(append([]string{"base: "}, model...), append([]string{"framework: /etc/hello"}, append(model, "bootstrap: 21 names, 5 chunk maps")...)...)
	if diff := cmp.Diff(wantLines, lines); diff != "" {
		t.Errorf("layers (-want +got):\n%s", diff)
	}
}

// safetensors is a file of that format with one small tensor.
func safetensors(t *testing.T) []byte {
	t.Helper()
	header := `{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`
	return append([]byte{byte(len(header)), 0, 0, 0, 0, 0, 0, 0}, header+"\x00\x00\x80?"...)
}

func TestInspectionListsFilesAsLsDoes(t *testing.T) {
	cfg := config(t, registryWith(t, nil)+"/ml/tiny:v1")
	cfg.Base = writeLayout(t, runnableBase(t))
	made, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	files := map[string]converter.InspectedFile{}
	got := inspect(t, converter.InspectConfig{Image: cfg.Target, Files: true})
	for _, f := range got.Files {
		files[strings.TrimPrefix(f.Path, "/models/tiny/")] = f
	}
	var weights digest.Digest
	for _, l := range made.Layers {
		if l.Of == "weights.bin" {
			weights = l.Digest
		}
	}
	if f := files["weights.bin"]; f.Mode != "-rw-r--r--" || f.Size != 5<<20+123 || f.Layer != weights {
		t.Errorf("%+v", f)
	}
	if f := files["model.bin"]; f.Mode != "lrwxrwxrwx" || f.Link != "weights.bin" {
		t.Errorf("%+v", f)
	}
	if f := files["run.sh"]; f.Mode != "-rwxr-xr-x" {
		t.Errorf("%+v", f)
	}
	if _, ok := files["/bin/setuid"]; ok || len(got.Files) != 15 {
		t.Errorf("%d files: %v", len(got.Files), files)
	}
	modes := map[string]string{}
	for _, f := range inspect(t, converter.InspectConfig{Image: cfg.Target, Files: true, Path: "/"}).Files {
		modes[f.Path] = f.Mode
	}
	for path, want := range map[string]string{
		"/": "drwxr-xr-x", "/tmp": "drwxrwxrwt", "/bin/setuid": "-rwsr-xr-x", "/dev/null": "crw-rw-rw-", "/srv/fifo": "prw-------", "/lib": "lrwxrwxrwx",
	} {
		if modes[path] != want {
			t.Errorf("%s: want %s, got %s", path, want, modes[path])
		}
	}
	one := inspect(t, converter.InspectConfig{Image: cfg.Target, Files: true, Path: "models/tiny/tokenizer/deep/"})
	if len(one.Files) != 2 || one.Files[1].Path != "/models/tiny/tokenizer/deep/merges.bin" {
		t.Errorf("%+v", one.Files)
	}
	_, err = converter.Inspect(t.Context(), converter.InspectConfig{Image: cfg.Target, Files: true, Path: "/none", Access: once()})
	wantError(t, err, converter.ErrSource, "nothing at /none")
	_, err = converter.Inspect(t.Context(), converter.InspectConfig{Image: cfg.Target, Files: true, Platform: "linux/mips", Access: once()})
	wantError(t, err, converter.ErrSource, "there are linux/amd64")
}

func TestInspectionOfOrdinaryImages(t *testing.T) {
	host := registryWith(t, nil)
	ref, err := name.NewTag(host + "/base:v1")
	check(t, err)
	check(t, remote.Write(ref, runnableBase(t)))
	got := inspect(t, converter.InspectConfig{Image: ref.String(), Files: true})
	if got.Converted || got.Model != nil || !cmp.Equal(got.Lacks, []string{"an index", "a Nydus variant for linux/amd64"}) {
		t.Errorf("%+v", got.Lacks)
	}
	paths := map[string]converter.InspectedFile{}
	for _, f := range got.Files {
		paths[f.Path] = f
	}
	layers := got.Platforms[0].Plain.Layers
	if f := paths["/etc/replaced"]; f.Size != 3 || f.Layer != layers[1].Digest || len(layers) != 3 || layers[0].Kind != "base" {
		t.Errorf("%+v %+v", f, layers)
	}
	if _, ok := paths["/etc/gone"]; ok {
		t.Error("a file is listed that an upper layer hides")
	}
	got = inspect(t, converter.InspectConfig{Image: writeLayout(t, smallBase(t), baseImage(t, v1.Platform{OS: "linux", Architecture: "arm64"}))})
	if len(got.Platforms) != 2 || got.Platforms[1].Platform != "linux/arm64" {
		t.Errorf("%+v", got.Platforms)
	}
}

func TestInspectionOfArtifacts(t *testing.T) {
	host := registryWithReferrers(t)
	root := signed(t, host+"/a/m:v1")
	at, _ := shelfOf(t, host+"/a/m:v1")
	putArtifact(t, at, "thing", "thing", nil)
	got := inspect(t, converter.InspectConfig{Image: host + "/a/m:thing"})
	if got.Converted || len(got.Platforms) != 1 || got.Platforms[0].Plain.Layers[0].Kind != "layer" {
		t.Errorf("%+v", got)
	}
	_, err := converter.Inspect(t.Context(), converter.InspectConfig{Image: host + "/a/m:thing", Files: true, Access: once()})
	wantError(t, err, converter.ErrSource, "no tree of files")
	whole := inspect(t, converter.InspectConfig{Image: host + "/a/m:v1"})
	if len(whole.Referrers) != 1 || whole.Digest != root.Digest {
		t.Errorf("%+v", whole.Referrers)
	}
	pack := inspect(t, converter.InspectConfig{Image: host + "/a/m@" + whole.ModelPack.Digest.String()})
	if pack.ModelPack == nil || pack.ModelPack.Layers != 3 || len(pack.Platforms) != 0 {
		t.Errorf("%+v", pack)
	}
}

func TestDiffTellsWhatTravels(t *testing.T) {
	host := registryWith(t, nil)
	first := config(t, host+"/ml/tiny:v1")
	_, err := converter.Convert(t.Context(), first)
	check(t, err)
	weights, err := os.ReadFile(filepath.Join(first.Model, "weights.bin"))
	check(t, err)
	copy(weights[2<<20:], "a few other bytes in the midst")
	check(t, os.WriteFile(filepath.Join(first.Model, "weights.bin"), weights, 0o644))
	check(t, os.WriteFile(filepath.Join(first.Model, "added.bin"), noise(7, 1<<20), 0o644))
	check(t, os.Remove(filepath.Join(first.Model, "nothing")))
	second := first
	second.Target = "oci:" + t.TempDir() + "/l:v2"
	_, err = converter.Convert(t.Context(), second)
	check(t, err)
	diff := func(from, to string) *converter.DiffResult {
		got, err := converter.Diff(t.Context(), converter.DiffConfig{From: from, To: to, Files: true, Access: once()})
		check(t, err)
		return got
	}
	got := diff(first.Target, second.Target)
	for name, v := range map[string]*converter.VariantDiff{"plain": got.Platforms[0].Plain, "nydus": got.Platforms[0].Nydus} {
		if v.AbsentBytes < 6<<20 || v.AbsentBytes >= v.Bytes {
			t.Errorf("%s: %d of %d bytes by whole blobs", name, v.AbsentBytes, v.Bytes)
		}
		// The added file, and some chunks of 64 KiB around the change.
		if v.ChunkBytes < 1<<20 || v.ChunkBytes > 2<<20 || v.ChunkShare > 0.3 || v.Chunks == 0 {
			t.Errorf("%s: %d bytes by chunks (%f)", name, v.ChunkBytes, v.ChunkShare)
		}
		var sum int64
		for _, l := range v.Layers {
			sum += l.MissingBytes
			if l.Present && l.MissingBytes > 0 {
				t.Errorf("%+v", l)
			}
		}
		if sum != v.ChunkBytes {
			t.Errorf("%s: the layers sum up to %d", name, sum)
		}
	}
	want := []converter.FileChange{
		{Path: "added.bin", Change: "added", After: 1 << 20}, {Path: "nothing", Change: "removed"},
		{Path: "weights.bin", Change: "changed", Before: int64(len(weights)), After: int64(len(weights))},
	}
	if d := cmp.Diff(want, got.Files); d != "" || len(got.Notes) != 0 {
		t.Errorf("files (-want +got):\n%s%v", d, got.Notes)
	}
	same := diff(first.Target, first.Target)
	if v := same.Platforms[0].Nydus; v.AbsentBytes != 0 || v.ChunkBytes != 0 || len(same.Files) != 0 {
		t.Errorf("%+v", v)
	}
}

func TestDiffWithOrdinaryImages(t *testing.T) {
	base := writeLayout(t, smallBase(t))
	cfg := config(t, "oci:"+t.TempDir()+"/l:v1")
	cfg.Base = base
	_, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	got, err := converter.Diff(t.Context(), converter.DiffConfig{From: base, To: cfg.Target, Files: true, Access: once()})
	check(t, err)
	v := got.Platforms[0].Plain
	if !v.Layers[0].Present || v.AbsentLayers != 3 || len(got.Notes) != 2 || got.Platforms[0].Nydus.AbsentBytes != got.Platforms[0].Nydus.Bytes {
		raw, _ := json.Marshal(got)
		t.Errorf("%s", raw)
	}
	back, err := converter.Diff(t.Context(), converter.DiffConfig{From: cfg.Target, To: base, Access: once()})
	check(t, err)
	if p := back.Platforms[0]; p.Nydus != nil || p.Plain.AbsentBytes != 0 {
		t.Errorf("%+v", p)
	}
	other := writeLayout(t, baseImage(t, v1.Platform{OS: "linux", Architecture: "arm64"}, tarOf(t, file("a", "a"))))
	none, err := converter.Diff(t.Context(), converter.DiffConfig{From: base, To: other, Access: once()})
	check(t, err)
	if p := none.Platforms[0]; p.Plain.AbsentShare != 1 || !strings.Contains(none.Notes[0], "has no image for linux/arm64") {
		t.Errorf("%+v %v", p, none.Notes)
	}
}
