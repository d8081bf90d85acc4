package converter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	fakeregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/repository"
)

// registryWithReferrers starts a registry that has the referrers API.
func registryWithReferrers(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(fakeregistry.New(fakeregistry.Logger(log.New(io.Discard, "", 0)), fakeregistry.WithReferrersSupport(true)))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// shelf is where an image is, for tests.
type shelf interface {
	Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error)
	Blob(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error)
	Push(ctx context.Context, b repository.Blob) (repository.Outcome, error)
	PutManifest(ctx context.Context, ref, mediaType string, raw []byte) error
	referring
}

type referring interface {
	Referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error)
	Refer(ctx context.Context, subject digest.Digest, desc ocispec.Descriptor, raw []byte) error
}

func shelfOf(t *testing.T, s string) (shelf, string) {
	t.Helper()
	ref, err := repository.ParseReference(s)
	check(t, err)
	if ref.IsLayout() {
		return repository.NewLayout(ref.Folder), ref.Name()
	}
	return repository.NewRegistry(ref.Registry, once().Config), ref.Name()
}

// putBlob writes a blob and returns its descriptor.
func putBlob(t *testing.T, at shelf, mediaType string, raw []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	_, err := at.Push(t.Context(), repository.Blob{Descriptor: d, Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw[offset:])), nil
	}})
	check(t, err)
	return d
}

// putArtifact writes an artifact, which refers to subject if that is not nil, under the tag if there is one.
func putArtifact(t *testing.T, at shelf, kind, tag string, subject *ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	m := ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.example." + kind, Subject: subject,
		Config: putBlob(t, at, ocispec.MediaTypeEmptyJSON, []byte("{}")),
		Layers: []ocispec.Descriptor{putBlob(t, at, "application/vnd.example.data", []byte("what "+kind+" says"))},
	}
	m.SchemaVersion = 2
	raw, err := json.Marshal(m)
	check(t, err)
	d := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw)), ArtifactType: m.ArtifactType}
	if subject != nil {
		check(t, at.Refer(t.Context(), subject.Digest, d, raw))
	}
	if tag != "" {
		check(t, at.PutManifest(t.Context(), tag, d.MediaType, raw))
	}
	return d
}

// signed is a converted image with all that can refer to one.
func signed(t *testing.T, ref string) (root ocispec.Descriptor) {
	t.Helper()
	cfg := config(t, ref)
	cfg.ModelPack = true
	made, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	at, tag := shelfOf(t, ref)
	root, _, err = at.Manifest(t.Context(), tag)
	check(t, err)
	signature := putArtifact(t, at, "signature", "", &root)
	putArtifact(t, at, "countersignature", "", &signature)
	plain := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: made.Variants[0].Plain, Size: 1}
	putArtifact(t, at, "sbom", "", &plain)
	putArtifact(t, at, "cosign", repository.FallbackTag(root.Digest)+".sig", nil)
	return root
}

// wantSigned checks that all of signed is there.
func wantSigned(t *testing.T, ref string, root ocispec.Descriptor) {
	t.Helper()
	_, err := converter.Check(t.Context(), converter.CheckConfig{Image: ref, Deep: true, Access: once()})
	check(t, err)
	at, tag := shelfOf(t, ref)
	got, raw, err := at.Manifest(t.Context(), tag)
	check(t, err)
	if got.Digest != root.Digest {
		t.Errorf("want %s, got %s", root.Digest, got.Digest)
	}
	var index ocispec.Index
	check(t, json.Unmarshal(raw, &index))
	if diff := cmp.Diff([]string{"signature", "countersignature"}, kindsOf(t, at, root.Digest)); diff != "" {
		t.Errorf("referrers of the index (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"sbom"}, kindsOf(t, at, index.Manifests[0].Digest)); diff != "" {
		t.Errorf("referrers of the plain manifest (-want +got):\n%s", diff)
	}
	_, _, err = at.Manifest(t.Context(), repository.FallbackTag(root.Digest)+".sig")
	check(t, err)
}

// kindsOf returns what refers to a manifest, by the referrers' own word: the fake's list has another one.
func kindsOf(t *testing.T, at shelf, d digest.Digest) (out []string) {
	t.Helper()
	list, err := at.Referrers(t.Context(), d)
	check(t, err)
	for _, r := range list {
		_, raw, err := at.Manifest(t.Context(), r.Digest.String())
		check(t, err)
		var m ocispec.Manifest
		check(t, json.Unmarshal(raw, &m))
		out = append(out, strings.TrimPrefix(m.ArtifactType, "application/vnd.example."))
		out = append(out, kindsOf(t, at, r.Digest)...)
	}
	return out
}

func copyImage(t *testing.T, source, target string) *converter.CopyResult {
	t.Helper()
	rec := &recorder{}
	got, err := converter.Copy(t.Context(), converter.CopyConfig{Source: source, Target: target, Access: once(), Progress: rec})
	check(t, err)
	if rec.plan != rec.done || rec.plan[converter.Push] != got.Bytes {
		t.Errorf("planned %v, done %v of %d", rec.plan, rec.done, got.Bytes)
	}
	return got
}

func TestCopyTakesAllThatRefersToTheImage(t *testing.T) {
	old, layout := func() string { return registryWith(t, nil) + "/a/m:v1" }, func() string { return "oci:" + t.TempDir() + "/l:v1" }
	modern := func() string { return registryWithReferrers(t) + "/b/m:v1" }
	for _, tc := range []struct {
		name     string
		from, to func() string
	}{
		{"between registries with the referrers API", modern, modern},
		{"between registries without", old, old},
		{"from one without to one with", old, modern},
		{"from one with to one without", modern, old},
		{"into a layout", modern, layout},
		{"out of a layout", layout, old},
		{"between layouts", layout, layout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			from, to := tc.from(), tc.to()
			root := signed(t, from)
			got := copyImage(t, from, to)
			if got.Digest != root.Digest || got.Manifests != 8 || len(got.Referrers) != 4 || got.Sent.Blobs != got.Blobs || !got.Copied {
				t.Errorf("%+v", got)
			}
			wantSigned(t, to, root)
			again := copyImage(t, from, to)
			if again.Present.Blobs != got.Blobs || again.Present.Bytes != got.Bytes || again.Sent.Blobs != 0 {
				t.Errorf("the second time: %+v", again)
			}
			wantSigned(t, to, root)
		})
	}
}

// The only image of a layout needs no tag, also when something there refers to it.
func TestLayoutWithOneSignedImageNeedsNoTag(t *testing.T) {
	folder := t.TempDir() + "/l"
	root := signed(t, "oci:"+folder+":v1")
	at, _ := shelfOf(t, "oci:"+folder)
	index, err := os.ReadFile(folder + "/index.json")
	check(t, err)
	var list ocispec.Index
	check(t, json.Unmarshal(index, &list))
	// cosign's tag is one more name, so without it.
	list.Manifests = slices.DeleteFunc(list.Manifests, func(d ocispec.Descriptor) bool {
		return strings.HasSuffix(d.Annotations[ocispec.AnnotationRefName], ".sig")
	})
	index, err = json.Marshal(list)
	check(t, err)
	check(t, os.WriteFile(folder+"/index.json", index, 0o600))
	got, _, err := at.Manifest(t.Context(), "")
	check(t, err)
	if got.Digest != root.Digest {
		t.Errorf("want %s, got %s", root.Digest, got.Digest)
	}
}

func TestCopyWithoutReferrers(t *testing.T) {
	from, to := registryWithReferrers(t)+"/a/m:v1", registryWithReferrers(t)+"/b/m:v1"
	root := signed(t, from)
	got, err := converter.Copy(t.Context(), converter.CopyConfig{Source: from, Target: to, NoReferrers: true, Access: once()})
	check(t, err)
	at, _ := shelfOf(t, to)
	if len(got.Referrers) != 0 || len(kindsOf(t, at, root.Digest)) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestDryCopyWritesNothing(t *testing.T) {
	var writes atomic.Int64
	from := registryWith(t, nil) + "/a/m:v1"
	signed(t, from)
	host := registryWith(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			question := r.Method == http.MethodPatch && strings.Contains(r.URL.Path, "/uploads/00000000-") && r.ContentLength == 0
			if r.Method != http.MethodGet && r.Method != http.MethodHead && !question {
				writes.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	})
	dry := converter.CopyConfig{Source: from, Target: host + "/b/m:v1", DryRun: true, Access: once()}
	got, err := converter.Copy(t.Context(), dry)
	check(t, err)
	if writes.Load() != 0 || got.Copied || got.Sent.Bytes != got.Bytes || got.Bytes == 0 {
		t.Errorf("%d writes, %+v", writes.Load(), got)
	}
	copyImage(t, from, host+"/b/m:v1")
	got, err = converter.Copy(t.Context(), dry)
	check(t, err)
	if got.Present.Bytes != got.Bytes || got.Sent.Blobs != 0 {
		t.Errorf("after the copy: %+v", got)
	}
	dry.Target = "oci:" + t.TempDir() + "/none:v1"
	got, err = converter.Copy(t.Context(), dry)
	check(t, err)
	if got.Sent.Bytes != got.Bytes {
		t.Errorf("to a layout that is not there: %+v", got)
	}
}

func TestCopyWithinARegistryMounts(t *testing.T) {
	var mounts atomic.Int64
	host := registryWith(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead && strings.HasPrefix(r.URL.Path, "/v2/b/m/blobs/") {
				w.WriteHeader(http.StatusNotFound) // the fake has one store for all repositories
				return
			}
			if r.URL.Query().Get("from") == "a/m" {
				mounts.Add(1)
				w.WriteHeader(http.StatusCreated)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	signed(t, host+"/a/m:v1")
	got := copyImage(t, host+"/a/m:v1", host+"/b/m:v1")
	if int(mounts.Load()) != got.Blobs || got.Mounted.Blobs != got.Blobs {
		t.Errorf("%d mounts, %+v", mounts.Load(), got)
	}
}

// Whatever is tagged can be copied, and comes out with the digest it had.
func TestCopyOfAnyArtifact(t *testing.T) {
	host := registryWith(t, nil)
	put := func(tag string, v remote.Taggable) string {
		ref := host + "/any:" + tag
		parsed, err := name.NewTag(ref)
		check(t, err)
		check(t, remote.Put(parsed, v))
		return ref
	}
	write := func(tag string, img v1.Image) string {
		ref, err := name.NewTag(host + "/any:" + tag)
		check(t, err)
		check(t, remote.Write(ref, img))
		return ref.String()
	}
	docker, err := random.Image(3000, 2)
	check(t, err)
	inner := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: smallBase(t)})
	nested := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.DockerManifestList), mutate.IndexAddendum{Add: docker}, mutate.IndexAddendum{Add: inner})
	nestedRef, err := name.NewTag(host + "/any:nested")
	check(t, err)
	check(t, remote.WriteIndex(nestedRef, nested))
	at, _ := shelfOf(t, host+"/any:x")
	putArtifact(t, at, "artifact", "artifact", nil)
	cache, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		putBlob(t, at, ocispec.MediaTypeImageLayerGzip, []byte("a layer in a cache")),
		putBlob(t, at, "application/vnd.buildkit.cacheconfig.v0", []byte("{}")),
	}})
	check(t, err)
	foreign := ocispec.Descriptor{
		MediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Digest: digest.FromString("windows"), Size: 7,
		URLs: []string{"https://example.com/windows"},
	}
	windows, err := json.Marshal(ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, Config: putBlob(t, at, ocispec.MediaTypeImageConfig, []byte("{}")), Layers: []ocispec.Descriptor{foreign},
	})
	check(t, err)
	for name, ref := range map[string]string{
		"docker schema 2":         write("docker", docker),
		"nested index":            nestedRef.String(),
		"artifact":                host + "/any:artifact",
		"cache of BuildKit":       put("cache", rawManifest{cache, types.OCIImageIndex}),
		"layer behind a URL":      put("windows", rawManifest{windows, types.OCIManifestSchema1}),
		"layout and single image": writeLayout(t, smallBase(t)),
	} {
		t.Run(name, func(t *testing.T) {
			layout, target := "oci:"+t.TempDir()+"/l:v1", registryWith(t, nil)+"/copy:v1"
			copyImage(t, ref, layout)
			got := copyImage(t, layout, target)
			from, tag := shelfOf(t, ref)
			want, raw, err := from.Manifest(t.Context(), tag)
			check(t, err)
			to, tag := shelfOf(t, target)
			desc, copied, err := to.Manifest(t.Context(), tag)
			check(t, err)
			if got.Digest != want.Digest || desc.Digest != want.Digest || desc.MediaType != want.MediaType || !bytes.Equal(raw, copied) {
				t.Errorf("want %+v, got %+v and %+v", want, desc, got)
			}
			if foreign := name == "layer behind a URL"; foreign != (len(got.Foreign) == 1) {
				t.Errorf("foreign: %v", got.Foreign)
			}
		})
	}
}

func TestCopyRefusesWhatCannotBe(t *testing.T) {
	host := registryWith(t, nil)
	check2 := func(source, target string, class error, text string) {
		t.Helper()
		_, err := converter.Copy(t.Context(), converter.CopyConfig{Source: source, Target: target, Access: once()})
		wantError(t, err, class, text)
	}
	signed(t, host+"/a/m:v1")
	check2(host+"/a/m", host+"/b/m:v1", converter.ErrConfig, "has no tag")
	check2(host+"/a/m:v1", host+"/b/m", converter.ErrConfig, "has no tag")
	check2("m:v1", host+"/b/m:v1", converter.ErrConfig, "REGISTRY/NAME:TAG")
	check2(host+"/a/m:none", host+"/b/m:v1", converter.ErrSource, "does not exist")
	check2(host+"/a/m:v1", host+"/b/m@"+digest.FromString("x").String(), converter.ErrConfig, "the source has the digest")
	check2("oci:"+t.TempDir(), host+"/b/m:v1", converter.ErrSource, "does not exist")
	check2(host+"/a/m:v1", freeAddress(t)+"/b/m:v1", converter.ErrRegistry, "nobody listens")
}

// A hostile or broken source is named, and its damage bounded.
func TestCopyIntoALayoutThatCannotBeWrittenBlamesTheTarget(t *testing.T) {
	cfg := config(t, "oci:"+t.TempDir()+":v1")
	_, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	inTheWay := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(inTheWay, nil, 0o600))
	_, err = converter.Copy(t.Context(), converter.CopyConfig{Source: cfg.Target, Target: "oci:" + inTheWay + ":v1"})
	wantError(t, err, converter.ErrRegistry, "not a directory")
	if errors.Is(err, converter.ErrSource) {
		t.Errorf("the source is blamed: %v", err)
	}
}

func TestCopyOfHostileImages(t *testing.T) {
	host := registryWith(t, nil)
	at, _ := shelfOf(t, host+"/h:x")
	blob := putBlob(t, at, ocispec.MediaTypeImageLayer, []byte("a layer"))
	configBlob := putBlob(t, at, ocispec.MediaTypeImageConfig, []byte("{}"))
	put := func(tag, mediaType string, v any) ocispec.Descriptor {
		raw, err := json.Marshal(v)
		check(t, err)
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
		for _, ref := range []string{d.Digest.String(), tag} { // the fake refuses indexes of what is not there
			parsed, err := name.ParseReference(host + "/h:" + ref)
			if strings.Contains(ref, ":") {
				parsed, err = name.ParseReference(host + "/h@" + ref)
			}
			check(t, err)
			check(t, remote.Put(parsed, rawManifest{raw, types.MediaType(mediaType)}))
		}
		return d
	}
	manifest := func(layers ...ocispec.Descriptor) ocispec.Manifest {
		return ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: configBlob, Layers: layers}
	}
	missing := ocispec.Descriptor{MediaType: blob.MediaType, Digest: digest.FromString("nowhere"), Size: 7}
	put("missing", ocispec.MediaTypeImageManifest, manifest(missing))
	long, short, negative, two := blob, blob, blob, blob
	long.Size, short.Size, negative.Size, two.Size = 1<<40, 3, -1, 8
	put("long", ocispec.MediaTypeImageManifest, manifest(long))
	put("short", ocispec.MediaTypeImageManifest, manifest(short))
	put("negative", ocispec.MediaTypeImageManifest, manifest(negative))
	put("two", ocispec.MediaTypeImageManifest, manifest(blob, two))
	path := blob
	path.Digest = "../../../../etc/passwd"
	put("path", ocispec.MediaTypeImageManifest, manifest(path))
	good := put("good", ocispec.MediaTypeImageManifest, manifest(blob))
	many := make([]ocispec.Descriptor, 10_000)
	for i := range many {
		many[i] = good
	}
	put("many", ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: many})
	lying := good
	lying.Size++
	put("lying", ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{lying}})
	deep := good
	for i := range 12 {
		deep = put(fmt.Sprintf("deep%d", i), ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{deep}})
	}
	put("schema1", "application/vnd.docker.distribution.manifest.v1+prettyjws", map[string]any{"schemaVersion": 1})
	for _, tc := range []struct {
		tag, want string
		class     error
	}{
		{"missing", missing.Digest.String(), converter.ErrSource},
		{"long", blob.Digest.String(), converter.ErrVerify},
		{"short", blob.Digest.String(), converter.ErrVerify},
		{"negative", "cannot be", converter.ErrVerify},
		{"two", "once with 7 bytes and once with 8", converter.ErrVerify},
		{"path", "passwd", converter.ErrVerify},
		{"many", "10000 manifests", converter.ErrSource},
		{"lying", good.Digest.String(), converter.ErrVerify},
		{"deep11", "indexes within indexes", converter.ErrSource},
		{"schema1", "schema 1", converter.ErrSource},
	} {
		t.Run(tc.tag, func(t *testing.T) {
			target := registryWith(t, nil) + "/t:v1"
			_, err := converter.Copy(t.Context(), converter.CopyConfig{Source: host + "/h:" + tc.tag, Target: target, Access: once()})
			wantError(t, err, tc.class, tc.want)
			to, tag := shelfOf(t, target)
			if _, _, err := to.Manifest(t.Context(), tag); err == nil {
				t.Error("the tag was written")
			}
			folder := t.TempDir() + "/l"
			_, err = converter.Copy(t.Context(), converter.CopyConfig{Source: host + "/h:" + tc.tag, Target: "oci:" + folder + ":v1", Access: once()})
			wantError(t, err, tc.class, tc.want)
			if left, _ := filepath.Glob(folder + "/blobs/sha256/.partial-*"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// A registry whose lists of referrers lead in circles, or do not end, is left after finitely many requests.
func TestCopyOfReferrersWithoutEnd(t *testing.T) {
	var requests atomic.Int64
	var circle, endless atomic.Bool
	var listing atomic.Value // what every list of referrers says
	host := registryWith(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			isTag := strings.Contains(r.URL.Path, "/manifests/sha256-")
			switch {
			case circle.Load() && strings.Contains(r.URL.Path, "/referrers/"):
				_ = json.NewEncoder(w).Encode(ocispec.Index{Manifests: listing.Load().([]ocispec.Descriptor)})
			case circle.Load() && isTag && r.Method == http.MethodGet: // the signature is the image itself
				r.URL.Path = "/v2/a/m/manifests/v1"
				h.ServeHTTP(w, r)
			case endless.Load() && strings.Contains(r.URL.Path, "/referrers/"):
				w.Header().Set("Link", fmt.Sprintf(`<%s?n=%d>; rel="next"`, r.URL.Path, requests.Load()))
				_ = json.NewEncoder(w).Encode(ocispec.Index{Manifests: listing.Load().([]ocispec.Descriptor)})
			default:
				h.ServeHTTP(w, r)
			}
		})
	})
	root := signed(t, host+"/a/m:v1")
	listing.Store([]ocispec.Descriptor{root})
	circle.Store(true)
	requests.Store(0)
	target := registryWith(t, nil) + "/b/m:v1"
	copyImage(t, host+"/a/m:v1", target)
	if n := requests.Load(); n > 100 {
		t.Errorf("%d requests", n)
	}
	circle.Store(false)
	endless.Store(true)
	_, err := converter.Copy(t.Context(), converter.CopyConfig{Source: host + "/a/m:v1", Target: target, Access: once()})
	if err == nil || !strings.Contains(err.Error(), "--no-referrers") {
		t.Errorf("an endless list: %v", err)
	}
}

func TestCopyGoesOnAfterItWasInterrupted(t *testing.T) {
	from := registryWith(t, nil) + "/a/m:v1"
	signed(t, from)
	var cut atomic.Bool
	cut.Store(true)
	host := registryWith(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if cut.Load() && r.Method == http.MethodPatch && r.ContentLength > 4<<20 {
				_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
				panic(http.ErrAbortHandler)
			}
			h.ServeHTTP(w, r)
		})
	})
	_, err := converter.Copy(t.Context(), converter.CopyConfig{Source: from, Target: host + "/b/m:v1", Access: once(), Uploads: 1})
	wantError(t, err, converter.ErrRegistry, host)
	cut.Store(false)
	if got := copyImage(t, from, host+"/b/m:v1"); got.Present.Blobs == 0 || got.Sent.Blobs == 0 {
		t.Errorf("%+v", got)
	}
}

func TestCorruptSourceIsNamed(t *testing.T) {
	folder := t.TempDir() + "/l"
	signed(t, "oci:"+folder+":v1")
	blobs, err := filepath.Glob(folder + "/blobs/sha256/*")
	check(t, err)
	var largest string
	var size int64
	for _, b := range blobs {
		if info, err := os.Stat(b); err == nil && info.Size() > size {
			largest, size = b, info.Size()
		}
	}
	raw, err := os.ReadFile(largest)
	check(t, err)
	raw[len(raw)/2] ^= 1
	check(t, os.WriteFile(largest, raw, 0o600))
	_, err = converter.Copy(t.Context(), converter.CopyConfig{Source: "oci:" + folder + ":v1", Target: registryWith(t, nil) + "/b/m:v1", Access: once()})
	wantError(t, err, converter.ErrVerify, filepath.Base(largest))
}

// Debian's docker-registry has no referrers API, and refuses manifests whose parts are missing.
func TestCopyToDockerRegistry(t *testing.T) {
	from := registryWithReferrers(t) + "/a/m:v1"
	root := signed(t, from)
	host := dockerRegistry(t)
	copyImage(t, from, host+"/b/m:v1")
	wantSigned(t, host+"/b/m:v1", root)
	got := copyImage(t, host+"/b/m:v1", host+"/c/m:v2")
	if got.Mounted.Blobs != got.Blobs {
		t.Errorf("within the registry: %+v", got)
	}
	wantSigned(t, host+"/c/m:v2", root)
	back := registryWithReferrers(t) + "/d/m:v1"
	copyImage(t, host+"/c/m:v2", back)
	wantSigned(t, back, root)
}
