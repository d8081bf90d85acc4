package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"github.com/shoal-project/shoal/registry-mirror/upstream"
)

func TestCallerThatLeavesInMidStreamDoesNotGetTheBlobRefused(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	f.blobs.stuckAt = 200000
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.mirror.URL+f.blobPath()+"?ns="+f.origin.Listener.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := f.mirror.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	leave()
	_ = resp.Body.Close()
	f.mirror.Close() // waits for the handler
	f.blobs.stuckAt = -1

	f.mirror = httptest.NewServer(f.handler)
	t.Cleanup(f.mirror.Close)
	if got := f.get(f.blobPath(), "Range", "bytes=100-"); got.status != http.StatusPartialContent {
		t.Errorf("status %d for a blob that nothing is wrong with", got.status)
	}
}

func TestRefusalIsOfTheRepositoryThatFailed(t *testing.T) {
	f := newFixture(t, Config{Stall: 50 * time.Millisecond}, nil)
	f.blobs.failAt = 200000
	f.rawGet()
	if got := f.get(f.blobPath()); got.status != 404 {
		t.Fatalf("status %d right after the failure, want 404", got.status)
	}
	f.blobs.failAt = -1
	if got := f.get("/v2/other/blobs/" + f.blob.String()); got.status != 200 {
		t.Errorf("status %d in a repository whose origin is fine", got.status)
	}
}

func TestManifestOfOneRepositoryIsNotServedInAnother(t *testing.T) {
	f := newFixture(t, Config{TagTTL: time.Hour, VerdictTTL: time.Hour}, nil)
	f.origin.password = "Basic right"
	f.get("/v2/private/manifests/v1", "Authorization", "Basic right")
	f.origin.set(func() { f.origin.password = "" })
	f.get("/v2/public/manifests/v1")
	f.origin.set(func() { f.origin.manifests = map[string][]byte{} })
	// The caller may read public, and only private has it.
	moved := manifestOf(f.blob, 7)
	if err := f.records.store(Record{Registry: f.origin.Listener.Addr().String(), Repository: "private", Reference: "v2",
		Digest: digest.FromBytes(moved), MediaType: manifestType, Body: moved, Checked: time.Now(), Credential: credential("Basic right")}); err != nil {
		t.Fatal(err)
	}
	if got := f.get("/v2/public/manifests/" + digest.FromBytes(moved).String()); got.status != 404 {
		t.Errorf("status %d: a manifest of another repository was served", got.status)
	}
}

func TestIndexOfAnotherRepositoryDoesNotNameTheChunkMaps(t *testing.T) {
	f := newFixture(t, Config{TagTTL: time.Hour, VerdictTTL: time.Hour}, nil)
	lazy := fmt.Appendf(nil, `{"layers":[{"digest":%q,"size":99,"annotations":{%q:"true"}}]}`, digest.FromString("evil"), nydusBootstrapNote)
	index := fmt.Appendf(nil, `{"manifests":[{"digest":%q},{"digest":%q,"artifactType":%q}]}`,
		f.manifest, f.origin.put("", manifestType, lazy), nydusArtifactType)
	f.origin.put("evil", "application/vnd.oci.image.index.v1+json", index)
	f.get("/v2/evil/manifests/evil")
	f.get("/v2/evil/manifests/" + f.manifest.String())

	f.get("/v2/a/b/manifests/" + f.manifest.String())
	f.get(f.blobPath())
	want := []BlobRef{{Registry: f.origin.Listener.Addr().String(), Repository: "a/b", Digest: f.blob, Size: int64(len(f.blobs.data))}}
	if d := cmp.Diff(want, f.blobs.opened); d != "" {
		t.Errorf("blobs opened (-want +got):\n%s", d)
	}
}

func TestImageIsLearnedInEachRepository(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	f.get("/v2/first/manifests/v1")
	f.get("/v2/a/b/manifests/v1")
	var info blobInfo
	key := blobKey(request{Ref: upstream.Ref{Registry: f.origin.Listener.Addr().String(), Repository: "a/b"}}, f.blob)
	if !f.records.get(bucketBlobs, key, &info) || info.Size != int64(len(f.blobs.data)) {
		t.Errorf("blob of the second repository: %+v", info)
	}
}

func TestVerdictOfAClockThatWasAheadIsNotBelieved(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	registry := f.origin.Listener.Addr().String()
	if err := f.records.accept(registry, "a/b", "", time.Now().Add(1000*time.Hour)); err != nil {
		t.Fatal(err)
	}
	f.origin.password = "Basic right"
	if got := f.get(f.blobPath()); got.status != http.StatusUnauthorized {
		t.Errorf("status %d, want the origin's 401", got.status)
	}
	if err := f.records.accept(registry, "a/b", "", time.Now()); err != nil {
		t.Fatal(err)
	}
	if at := f.records.accepted(registry, "a/b", ""); at.After(time.Now()) {
		t.Errorf("the verdict is still of %v", at)
	}
}

func TestCredentialRefusedForABlobIsNotBelievedWhenTheOriginGoesDown(t *testing.T) {
	f := newFixture(t, Config{VerdictTTL: time.Nanosecond}, nil)
	f.get("/v2/a/b/manifests/v1")
	f.origin.set(func() { f.origin.password = "Basic right" })
	if got := f.get(f.blobPath()); got.status != http.StatusUnauthorized {
		t.Fatalf("status %d, want 401", got.status)
	}
	f.origin.set(func() { f.origin.down = true })
	if got := f.get(f.blobPath()); got.status == 200 {
		t.Error("the origin refused this caller, and it was served while the origin is down")
	}
}

func TestRecordsThatCannotBeWrittenCostNoAnswer(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	if err := f.records.Close(); err != nil { // stands for a full disk
		t.Fatal(err)
	}
	if got := f.get(f.blobPath()); got.status != 200 {
		t.Errorf("blob: status %d", got.status)
	}
	f.origin.set(func() { f.origin.password = "Basic right" })
	if got := f.get("/v2/a/b/manifests/v1"); got.status != http.StatusUnauthorized {
		t.Errorf("manifest: status %d, want the origin's challenge", got.status)
	}
}

func TestSeedThatAnswersWithAnotherManifestIsNotBelieved(t *testing.T) {
	other := []byte(`{"layers":[]}`)
	f := newFixture(t, Config{}, clusterFunc(func(q Query) (Record, error) {
		return Record{Registry: q.Registry, Repository: q.Repository, Reference: q.Reference, Digest: digest.FromBytes(other),
			MediaType: manifestType, Body: other, Checked: time.Now()}, nil
	}))
	f.origin.set(func() { f.origin.down = true })
	if got := f.get("/v2/a/b/manifests/" + f.manifest.String()); got.status == 200 {
		t.Errorf("asked for %s, got %s", f.manifest, got.header.Get("Docker-Content-Digest"))
	}
}

type clusterFunc func(Query) (Record, error)

func (clusterFunc) Publish(Record)                                      {}
func (c clusterFunc) Lookup(_ context.Context, q Query) (Record, error) { return c(q) }

func TestOldVerdictsAreForgotten(t *testing.T) {
	r := openRecords(t)
	for i := range 100 {
		if err := r.accept("r", "a/b", fmt.Sprint("old token ", i), time.Now().Add(-48*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.accept("r", "a/b", "new", time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := r.forget(time.Now().Add(-24 * time.Hour)); err != nil {
		t.Fatal(err)
	}
	if at := r.accepted("r", "a/b", "old token 7"); !at.IsZero() || r.accepted("r", "a/b", "new").IsZero() {
		t.Errorf("the old verdict is of %v", at)
	}
}

func TestWhileTheOriginIsDownCredentialsAreAskedForAsItDid(t *testing.T) {
	f := newFixture(t, Config{TagTTL: -1, VerdictTTL: -1}, nil)
	f.origin.password = "Basic right"
	for _, path := range []string{"/v2/private/manifests/v1", f.blobPath()} {
		f.get(path) // as containerd does, which shows credentials only when it is asked for them
		if got := f.get(path, "Authorization", "Basic right"); got.status != http.StatusOK {
			t.Fatalf("%s: status %d with the origin up", path, got.status)
		}
	}
	f.origin.set(func() { f.origin.down = true })
	for _, path := range []string{"/v2/private/manifests/v1", f.blobPath()} {
		got := f.get(path)
		if got.status != http.StatusUnauthorized || got.header.Get("WWW-Authenticate") != `Basic realm="origin"` {
			t.Errorf("%s: status %d, header %v; want the origin's challenge", path, got.status, got.header)
		}
		if got := f.get(path, "Authorization", "Basic right"); got.status != http.StatusOK {
			t.Errorf("%s: status %d with credentials that the origin accepted", path, got.status)
		}
		if got := f.get(path, "Authorization", "Basic wrong"); got.status == http.StatusOK {
			t.Errorf("%s: served with credentials that the origin has never accepted", path)
		}
	}
}

// What an earlier version believed of manifests opens no blob any more.
func TestWhatOldVersionsLearnedIsForgotten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mirror.db")
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range oldBuckets() {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r, err := OpenRecords(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = r.db.View(func(tx *bbolt.Tx) error {
			for _, name := range oldBuckets() {
				if tx.Bucket([]byte(name)) != nil {
					t.Errorf("bucket %s is still there", name)
				}
			}
			return nil
		})
		if err := errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
