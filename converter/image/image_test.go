package image

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const base = `{"architecture":"amd64","os":"linux","created":"2025-01-01T00:00:00Z","x-unknown":{"kept":1},
"config":{"Entrypoint":["/bin/a"],"Cmd":["b"],"Env":["A=1","B=2"],"Healthcheck":{"Test":["NONE"]}},
"rootfs":{"type":"layers","diff_ids":["sha256:old"]},"history":[{"created_by":"base"}]}`

func TestConfigKeepsWhatItDoesNotKnow(t *testing.T) {
	raw, err := Config([]byte(base), Settings{
		Entrypoint: []string{"/serve"}, Env: []string{"B=3", "C="}, History: []string{"new"},
	}, []digest.Digest{"sha256:new"})
	check(t, err)
	want := `{"architecture":"amd64","config":{"Entrypoint":["/serve"],"Env":["A=1","B=3","C="],"Healthcheck":{"Test":["NONE"]}},` +
		`"created":"1970-01-01T00:00:00Z","history":[{"created_by":"base"},{"created":"1970-01-01T00:00:00Z","created_by":"new"}],` +
		`"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:new"]},"x-unknown":{"kept":1}}`
	if diff := cmp.Diff(want, string(raw)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConfigRefusesWhatIsNoConfiguration(t *testing.T) {
	for _, bad := range []string{"", "[]", `{"history":1}`, `{"config":1}`, `{"config":{"Env":1}}`} {
		if _, err := Config([]byte(bad), Settings{Env: []string{"A=1"}}, nil); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func TestIndexNamesThePlainVariantFirst(t *testing.T) {
	blob := BlobLayer(digest.FromString("blob"), 7)
	boot := BootstrapLayer(digest.FromString("boot"), digest.FromString("diff"), 9)
	plain, err := Plain([]byte(base), Settings{}, []Layer{{Descriptor: ocispec.Descriptor{Digest: digest.FromString("blob"), Size: 7}, DiffID: "sha256:x"}}, nil)
	check(t, err)
	nydus, err := Nydus([]byte(base), Settings{}, []Layer{blob, boot}, map[string]string{"a": "b"})
	check(t, err)
	first, second := plain.Manifest.Descriptor, nydus.Manifest.Descriptor
	second.ArtifactType, second.Platform = ArtifactTypeNydus, &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	raw, err := Index([]ocispec.Descriptor{first, second}, nil)
	check(t, err)
	var index ocispec.Index
	check(t, json.Unmarshal(raw.Bytes, &index))
	if index.Manifests[0].Digest != plain.Manifest.Digest || index.Manifests[0].ArtifactType != "" ||
		index.Manifests[1].ArtifactType != ArtifactTypeNydus || index.Manifests[1].Platform.OS != "linux" {
		t.Errorf("%+v", index.Manifests)
	}
	var m ocispec.Manifest
	check(t, json.Unmarshal(nydus.Manifest.Bytes, &m))
	if m.Config.MediaType != MediaTypeConfig || m.Layers[0].MediaType != MediaTypeBlob || m.Layers[0].Annotations[AnnotationBlob] != "true" ||
		m.Layers[1].Annotations[AnnotationBootstrap] != "true" || m.Layers[1].Annotations[AnnotationFSVersion] != "6" {
		t.Errorf("%s", nydus.Manifest.Bytes)
	}
}

func TestBootstrapLayerDoesNotDependOnMapOrder(t *testing.T) {
	files := map[string][]byte{BootstrapName: []byte("boot"), "image/a.chunks": []byte("a"), "image/a.blob.meta": nil, "image/b.chunks": nil}
	var first digest.Digest
	for range 20 {
		var out bytes.Buffer
		_, err := WriteBootstrapLayer(&out, Files(files))
		check(t, err)
		got := digest.FromBytes(out.Bytes())
		if first != "" && got != first {
			t.Fatal("two runs, two digests")
		}
		first = got
	}
}

// The digest of an image must not change with the toolchain it was converted by. If this test fails after an update of the
// compressor or the codec, images converted before and after share no bootstrap.
func TestBootstrapLayerIsTheSameWithEveryToolchain(t *testing.T) {
	text := bytes.Repeat([]byte("shoal "), 1000)
	for i := range text {
		text[i] ^= byte(i * i >> 7)
	}
	var out bytes.Buffer
	_, err := WriteBootstrapLayer(&out, Files(map[string][]byte{BootstrapName: text}))
	check(t, err)
	const want = "sha256:9eeb014ca893dfa28301f977691ff92a840282530cd96ea8171f614dc031afd7"
	if got := digest.FromBytes(out.Bytes()); got != want {
		t.Errorf("want %s, got %s", want, got)
	}
}
