package mirror

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestManifestDoesNotOpenTheBlobsOfOthers names another repository's blob as one that lies elsewhere: registries take such manifests unseen.
func TestManifestDoesNotOpenTheBlobsOfOthers(t *testing.T) {
	secret := digest.FromString("another's")
	for name, blob := range map[string]string{
		"layer with URLs":        `"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":307200,"urls":["http://example.com/x"]}]`,
		"Docker's foreign layer": `"layers":[{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":%q,"size":307200}]`,
		"OCI's foreign layer":    `"layers":[{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":%q,"size":307200}]`,
		"configuration":          `"config":{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":307200,"urls":["http://example.com/x"]}`,
		"bootstrap": `"layers":[{"digest":%q,"size":307200,"urls":["http://example.com/x"],"annotations":{"` +
			nydusBootstrapNote + `":"true"}}]`,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, Config{TagTTL: time.Hour, VerdictTTL: time.Hour}, nil)
			named := f.origin.put("mine", manifestType, fmt.Appendf(nil, `{"schemaVersion":2,`+blob+`}`, secret))
			if got := f.get("/v2/mine/manifests/mine"); got.status != 200 {
				t.Fatalf("manifest: status %d", got.status)
			}
			if got := f.get("/v2/mine/blobs/" + secret.String()); got.status != 404 {
				t.Errorf("status %d for a blob that the origin does not have there", got.status)
			}
			if len(f.blobs.opened)+len(f.blobs.warmed) > 0 {
				t.Errorf("fetched: %v, %v", f.blobs.opened, f.blobs.warmed)
			}
			if name == "configuration" {
				return
			}
			if img, err := f.handler.Image(f.origin.Listener.Addr().String(), "mine", named); !errors.Is(err, ErrUnknown) {
				t.Errorf("image for mounting: %+v, %v", img, err)
			}
		})
	}
}
