package mirror

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registries look at an index's manifests alone: layers in it are nobody's word, and so is what only some readers of JSON see.
func TestDocumentsOpenNothingThatARegistryMayNotHaveSeen(t *testing.T) {
	secret, own := digest.FromString("another's"), digest.FromString("mine")
	layer := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":307200}`, secret)
	mine := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":5}`, own)
	for name, doc := range map[string]struct{ mediaType, body string }{
		"Docker's list with layers":  {dockerList, `{"schemaVersion":2,"mediaType":"` + dockerList + `","manifests":[],"layers":[` + layer + `]}`},
		"index with layers":          {ocispec.MediaTypeImageIndex, `{"layers":[` + layer + `]}`},
		"index with a configuration": {ocispec.MediaTypeImageIndex, `{"manifests":[],"config":` + layer + `}`},
		"index given as a manifest":  {manifestType, `{"mediaType":"` + dockerList + `","layers":[` + layer + `]}`},
		"of another kind":            {"application/vnd.oci.artifact.manifest.v1+json", `{"layers":[` + layer + `]}`},
		"layers twice":               {manifestType, `{"layers":[` + mine + `],"layers":[` + layer + `]}`},
		"layers in two cases":        {manifestType, `{"layers":[` + mine + `],"Layers":[` + layer + `]}`},
		"layers in an odd case":      {manifestType, `{"layers":[` + mine + `],"layer\u017f":[` + layer + `]}`},
		"digest in two cases":        {manifestType, fmt.Sprintf(`{"layers":[{"digest":%q,"size":307200,"DIGEST":%q}]}`, own, secret)},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, Config{TagTTL: time.Hour, VerdictTTL: time.Hour}, nil)
			named := f.origin.put("mine", doc.mediaType, []byte(doc.body))
			if got := f.get("/v2/mine/manifests/mine"); got.status != 200 {
				t.Fatalf("manifest: status %d", got.status)
			}
			if got := f.get("/v2/mine/blobs/" + secret.String()); got.status != 404 {
				t.Errorf("status %d for a blob that the origin does not have there", got.status)
			}
			if img, err := f.handler.Image(f.origin.Listener.Addr().String(), "mine", named); err == nil && len(img.Layers) > 0 {
				t.Errorf("image for mounting: %+v", img)
			}
		})
	}
}

// An index may say of what is no manifest that it is the Nydus variant.
func TestAnIndexIsNoNydusVariant(t *testing.T) {
	f := newFixture(t, Config{TagTTL: time.Hour, VerdictTTL: time.Hour}, nil)
	secret := digest.FromString("another's")
	list := f.origin.put("", dockerList, fmt.Appendf(nil, `{"mediaType":%q,"manifests":[],"layers":[{"digest":%q,"size":307200},`+
		`{"digest":%q,"size":307200,"annotations":{%q:"true"}}]}`, dockerList, secret, f.blob, nydusBootstrapNote))
	f.origin.put("dual", ocispec.MediaTypeImageIndex, fmt.Appendf(nil, `{"manifests":[{"digest":%q},{"digest":%q,"artifactType":%q}]}`, f.manifest, list, nydusArtifactType))
	for _, reference := range []string{"dual", f.manifest.String()} {
		if got := f.get("/v2/a/b/manifests/" + reference); got.status != 200 {
			t.Fatalf("%s: status %d", reference, got.status)
		}
	}
	if got := f.get("/v2/a/b/blobs/" + secret.String()); got.status != 404 {
		t.Errorf("status %d for a blob that the origin does not have there", got.status)
	}
	if img, err := f.handler.Image(f.origin.Listener.Addr().String(), "a/b", f.manifest); err == nil && len(img.Nydus) > 0 || err != nil && !errors.Is(err, errKind) && !errors.Is(err, ErrUnknown) {
		t.Errorf("image for mounting: %+v, %v", img, err)
	}
}
