package converter_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/bootstrap"
)

// described is an image of an index, with its attestation if it has one.
func withAttestations(t *testing.T, img v1.Image, platform v1.Platform, mediaType types.MediaType) v1.ImageIndex {
	t.Helper()
	sum, err := img.Digest()
	check(t, err)
	about, err := mutate.AppendLayers(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1),
		static.NewLayer([]byte(`{"_type":"https://in-toto.io/Statement/v0.1"}`), "application/vnd.in-toto+json"))
	check(t, err)
	unknown := &v1.Platform{OS: "unknown", Architecture: "unknown"}
	return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, mediaType),
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &platform}},
		mutate.IndexAddendum{Add: about, Descriptor: v1.Descriptor{Platform: unknown, Annotations: map[string]string{
			"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": sum.String(),
		}}},
		mutate.IndexAddendum{Add: mutate.Annotations(about, map[string]string{"x": "y"}).(v1.Image), Descriptor: v1.Descriptor{Platform: unknown, Annotations: map[string]string{
			"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": "sha256:" + strings.Repeat("0", 64),
		}}})
}

// dockerSchema2 gives an image the media types that docker push writes.
func dockerSchema2(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	layers, err := img.Layers()
	check(t, err)
	out := mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.DockerConfigJSON), types.DockerManifestSchema2)
	cfg, err := img.ConfigFile()
	check(t, err)
	cfg = cfg.DeepCopy()
	cfg.RootFS.DiffIDs, cfg.History = nil, nil
	out, err = mutate.ConfigFile(out, cfg)
	check(t, err)
	for _, l := range layers {
		out, err = mutate.Append(out, mutate.Addendum{Layer: l, MediaType: types.DockerLayer})
		check(t, err)
	}
	return out
}

func TestImageKeepsItsPlainManifestAndItsAttestations(t *testing.T) {
	for name, tc := range map[string]struct {
		img   v1.Image
		index types.MediaType
	}{
		"OCI": {smallBase(t), types.OCIImageIndex}, "Docker schema 2": {dockerSchema2(t, smallBase(t)), types.DockerManifestList},
	} {
		for _, where := range []string{"same tag", "other registry", "layout"} {
			t.Run(name+", "+where, func(t *testing.T) {
				ref := registryWith(t, nil) + "/app:v1"
				tag, err := tagOf(ref)
				check(t, err)
				check(t, remote.WriteIndex(tag, withAttestations(t, tc.img, linuxAMD64(), tc.index)))
				cfg := converter.Config{Image: ref, Target: ref, Access: once(), TempDir: t.TempDir()}
				switch where {
				case "other registry":
					cfg.Target = registryWith(t, nil) + "/copy:v1"
				case "layout":
					cfg.Target = "oci:" + t.TempDir() + "/out:v1"
				}
				r, err := converter.Convert(t.Context(), cfg)
				check(t, err)
				want, err := tc.img.Digest()
				check(t, err)
				if r.Variants[0].Plain.String() != want.String() || len(r.Kept) != 1 {
					t.Errorf("want %s and one attestation, got %+v", want, r)
				}
				checked, err := converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target, Access: once()})
				check(t, err)
				if checked.Digest != r.Digest {
					t.Errorf("the tag is at %s", checked.Digest)
				}
				if where == "layout" {
					img := openLayout(t, cfg.Target)
					if last := img.manifests[2]; len(img.manifests) != 3 || img.index.Manifests[2].Platform.OS != "unknown" || len(img.blob(t, last.Layers[0].Digest)) == 0 {
						t.Errorf("index: %+v", img.index)
					}
					return
				}
				tag, err = tagOf(cfg.Target)
				check(t, err)
				got, err := remote.Image(tag) // as a client that knows of no Nydus
				check(t, err)
				if d, err := got.Digest(); err != nil || d != want {
					t.Errorf("pulled %s, %v", d, err)
				}
				idx, err := remote.Index(tag)
				check(t, err)
				hash, err := v1.NewHash(r.Kept[0].String())
				check(t, err)
				about, err := idx.Image(hash)
				check(t, err)
				layers, err := about.Layers()
				check(t, err)
				rc, err := layers[0].Compressed()
				check(t, err)
				raw, err := io.ReadAll(rc)
				if err != nil || !strings.Contains(string(raw), "in-toto") {
					t.Errorf("attestation: %q, %v", raw, err)
				}
				check(t, rc.Close())
			})
		}
	}
}

func tagOf(ref string) (name.Tag, error) { return name.NewTag(ref) }

// An image that was converted before gets a new Nydus variant in place of the old one. Its weights are not stored a second time, and
// what loads first stays first.
// An image without layers has nothing to mount. As a base it is good: a model is all that the image holds.
func TestImageWithoutLayers(t *testing.T) {
	base := writeLayout(t, baseImage(t, linuxAMD64()))
	_, err := converter.Convert(t.Context(), converter.Config{Image: base, Target: nowhere(t)})
	wantError(t, err, converter.ErrSource, "has no layers for linux/amd64")
	cfg := config(t, nowhere(t))
	cfg.Base = base
	_, err = converter.Convert(t.Context(), cfg)
	check(t, err)
	_, err = converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target, Deep: true})
	check(t, err)
	wantModel(t, cfg.Target, sums(t, cfg.Model))
}

func TestConvertedImageIsConvertedAgain(t *testing.T) {
	dir := writeModel(t, time.Now(), 0o644)
	for name, first := range map[string]string{"layout": "oci:" + t.TempDir() + "/out:v1", "registry": registryWith(t, nil) + "/ml/tiny:v1"} {
		t.Run(name, func(t *testing.T) {
			cfg := converts(t, dir)
			cfg.Base = writeLayout(t, baseImage(t, linuxAMD64(), tarOf(t, file("lib", strings.Repeat("library ", 1<<18)))))
			cfg.Target, cfg.ModelPack = first, true
			one, err := converter.Convert(t.Context(), cfg)
			check(t, err)
			again := converter.Config{Image: first, Target: "oci:" + t.TempDir() + "/again:v1", Compressor: "lz4_block"}
			two, err := converter.Convert(t.Context(), again)
			check(t, err)
			_, err = converter.Check(t.Context(), converter.CheckConfig{Image: again.Target})
			check(t, err)
			if one.Variants[0].Plain != two.Variants[0].Plain || one.Variants[0].Nydus == two.Variants[0].Nydus || len(two.Kept) != 1 || two.Kept[0] != one.ModelPack {
				t.Errorf("one: %+v\ntwo: %+v", one, two)
			}
			var size int64
			for _, l := range kinds(two, "framework") {
				size += l.Size
			}
			if size > 1<<20 {
				t.Errorf("%d bytes of new blobs: %+v", size, kinds(two, "framework"))
			}
			wantModel(t, again.Target, sums(t, dir))
			itself := again // who does not know which version was the last names the tag that is to be replaced
			itself.Previous = first
			itself.Target = "oci:" + t.TempDir() + "/itself:v1"
			_, err = converter.Convert(t.Context(), itself)
			check(t, err)
			for _, target := range []string{again.Target, itself.Target} {
				_, boot := openLayout(t, target).readFS(t)
				if names := prefetched(t, boot); len(names) < 3 || names[0] != "models/tiny/config.json" || names[len(names)-1] != "models/tiny/weights.bin" {
					t.Errorf("prefetch table: %q", names)
				}
			}
		})
	}
}

// prefetched returns the names in the prefetch table.
func prefetched(t testing.TB, boot *bootstrap.Image) []string {
	t.Helper()
	names := map[*bootstrap.Inode]string{}
	check(t, boot.Walk(func(path string, n *bootstrap.Inode) error { names[n] = path; return nil }))
	var out []string
	for _, n := range boot.Prefetch {
		out = append(out, names[n])
	}
	return out
}

func TestPrefetchTableIsInTheOrderOfLoaders(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tiny")
	check(t, os.Mkdir(dir, 0o755))
	for _, name := range []string{
		"README.md", "model-10.safetensors", "model-2.safetensors", "model-1.safetensors", "config.json", "tokenizer.json", "model.safetensors.index.json", "vocab.txt", "picture.png",
	} {
		check(t, os.WriteFile(filepath.Join(dir, name), noise(1, 1<<20), 0o644))
	}
	cfg := converts(t, dir)
	cfg.AnyFormat = true
	_, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	_, boot := openLayout(t, cfg.Target).readFS(t)
	want := []string{
		"models/tiny/config.json", "models/tiny/tokenizer.json", "models/tiny/vocab.txt", "models/tiny/model.safetensors.index.json",
		"models/tiny/model-1.safetensors", "models/tiny/model-2.safetensors", "models/tiny/model-10.safetensors",
	}
	if diff := cmp.Diff(want, prefetched(t, boot)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
