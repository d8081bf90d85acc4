package mirror

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// putDual pushes an index of the fixture's image and a Nydus variant, and returns the variant's digest.
func (f *fixture) putDual(boot digest.Digest) digest.Digest {
	lazy := f.origin.put("", manifestType, fmt.Appendf(nil, `{"layers":[{"digest":%q,"size":%d},{"digest":%q,"size":99,"annotations":{%q:"true"}}]}`,
		f.blob, len(f.blobs.data), boot, nydusBootstrapNote))
	f.origin.put("dual", ocispec.MediaTypeImageIndex, fmt.Appendf(nil, `{"manifests":[{"digest":%q},{"digest":%q,"artifactType":%q}]}`,
		f.manifest, lazy, nydusArtifactType))
	return lazy
}

func TestImageTellsTheNydusVariantBesideAPlainOne(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	boot, host := digest.FromString("boot"), f.origin.Listener.Addr().String()
	lazy := f.putDual(boot)
	if _, err := f.handler.Image(host, "a/b", f.manifest); !errors.Is(err, ErrUnknown) {
		t.Errorf("before anything passed: %v", err)
	}
	f.get("/v2/a/b/manifests/dual")
	f.get("/v2/a/b/manifests/" + f.manifest.String())
	plain, err := f.handler.Image(host, "a/b", f.manifest)
	if err != nil || len(plain.Layers) != 1 || len(plain.Nydus) != 2 || plain.Bootstrap().Digest != boot {
		t.Fatalf("%+v, %v", plain, err)
	}
	itself, err := f.handler.Image(host, "a/b", lazy)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(plain.Nydus, itself.Layers) + cmp.Diff(itself.Layers, itself.Nydus); d != "" {
		t.Errorf("the Nydus variant itself (-want +got):\n%s", d)
	}
	want := BlobRef{Registry: host, Repository: "a/b", Digest: f.blob, Size: int64(len(f.blobs.data)), MapLayer: boot, MapSize: 99}
	if d := cmp.Diff(want, plain.Blob(plain.Layers[0])); d != "" {
		t.Errorf("reference of a layer (-want +got):\n%s", d)
	}
	if got := plain.Blob(*plain.Bootstrap()); got.MapLayer != "" {
		t.Errorf("the bootstrap layer has its chunk map in %s", got.MapLayer)
	}
	if _, err := f.handler.Image(host, "other", f.manifest); !errors.Is(err, ErrUnknown) {
		t.Errorf("in another repository: %v", err)
	}
}

func TestImageWithoutANydusVariantIsPlain(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	f.get("/v2/a/b/manifests/v1")
	got, err := f.handler.Image(f.origin.Listener.Addr().String(), "a/b", f.manifest)
	if err != nil || len(got.Layers) != 1 || got.Bootstrap() != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestAuthorizationIsThatOfTheLastCallerTheOriginAccepted(t *testing.T) {
	f := newFixture(t, Config{TagTTL: -1, VerdictTTL: -1}, nil)
	host := f.origin.Listener.Addr().String()
	f.origin.set(func() { f.origin.password = "Basic right" })
	f.get("/v2/private/manifests/v1", "Authorization", "Basic right")
	f.get("/v2/private/manifests/v1", "Authorization", "Basic wrong")
	if got := f.handler.Authorization(host, "private"); got != "Basic right" {
		t.Errorf("got %q", got)
	}
	if got := f.handler.Authorization(host, "a/b"); got != "" {
		t.Errorf("of a repository that nobody read: %q", got)
	}
}

func TestCallersAreForgottenWhenThereAreMany(t *testing.T) {
	var c callers
	for i := range 3 * maxCallers {
		c.note("r", fmt.Sprint(i), "x")
	}
	if len(c.last) > maxCallers || c.last[fmt.Sprintf("r/%d", 3*maxCallers-1)] != "x" {
		t.Errorf("%d are kept", len(c.last))
	}
}
