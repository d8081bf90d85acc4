package repository

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func readBlob(t *testing.T, r interface {
	Blob(context.Context, ocispec.Descriptor, int64) (io.ReadCloser, error)
}, d ocispec.Descriptor, offset int64) ([]byte, error) {
	t.Helper()
	rc, err := r.Blob(t.Context(), d, offset)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func TestLayoutKeepsBlobsAndTags(t *testing.T) {
	l := NewLayout(filepath.Join(t.TempDir(), "deep", "layout"))
	data := noise(1, 3<<20)
	b := blobOf(data)
	for _, want := range []Outcome{Sent, Present} {
		got, err := l.Push(t.Context(), b)
		if err != nil || got != want {
			t.Errorf("want %s, got %s: %v", want, got, err)
		}
	}
	for _, offset := range []int64{0, 17} {
		got, err := readBlob(t, l, b.Descriptor, offset)
		check(t, err)
		if !bytes.Equal(got, data[offset:]) {
			t.Errorf("from %d: other bytes", offset)
		}
	}
	for _, tag := range []string{"v1", "v2", "v1"} {
		check(t, l.PutManifest(t.Context(), tag, ocispec.MediaTypeImageIndex, fmt.Appendf(nil, `{"mediaType":"x","tag":%q}`, tag)))
	}
	desc, raw, err := l.Manifest(t.Context(), "v1")
	check(t, err)
	if desc.MediaType != ocispec.MediaTypeImageIndex || !strings.Contains(string(raw), "v1") {
		t.Errorf("%+v %s", desc, raw)
	}
	if byDigest, _, err := l.Manifest(t.Context(), desc.Digest.String()); err != nil || byDigest.MediaType != "x" {
		t.Errorf("by digest: %+v %v", byDigest, err)
	}
	if _, _, err := l.Manifest(t.Context(), ""); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "v2") {
		t.Errorf("without a tag: want those there are, got %v", err)
	}
	var index ocispec.Index
	raw, err = os.ReadFile(filepath.Join(l.folder, "index.json"))
	check(t, err)
	check(t, json.Unmarshal(raw, &index))
	if len(index.Manifests) != 2 {
		t.Errorf("%d tags, want 2", len(index.Manifests))
	}
	wantNoPartials(t, l.folder)
}

func wantNoPartials(t *testing.T, folder string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(folder, "blobs", "*", partialPrefix+"*"))
	check(t, err)
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWhatAKilledProcessLeftIsSwept(t *testing.T) {
	l := NewLayout(t.TempDir())
	b := blobOf(noise(1, 1000))
	_, err := l.Push(t.Context(), b)
	check(t, err)
	folder := filepath.Dir(l.blobPath(b.Digest))
	check(t, os.WriteFile(filepath.Join(folder, partialPrefix+"1"), noise(2, 100), 0o600))
	mine, err := l.Create(t.Context())
	check(t, err)
	other, err := NewLayout(l.folder).Create(t.Context()) // while the first is being written
	check(t, err)
	_, err = mine.Write(noise(3, 100))
	check(t, err)
	check(t, mine.Commit(t.Context(), blobOf(noise(3, 100)).Digest, 100))
	other.Cancel(t.Context())
	wantNoPartials(t, l.folder)
	if _, err := l.Stat(t.Context(), blobOf(noise(3, 100)).Digest); err != nil {
		t.Errorf("what was being written: %v", err)
	}
}

// A blob whose bytes a disk has spoiled is not there, and is written anew.
func TestSpoiledBlobOfALayoutIsWrittenAnew(t *testing.T) {
	l := NewLayout(t.TempDir())
	data := noise(1, 1<<20)
	b := blobOf(data)
	_, err := l.Push(t.Context(), b)
	check(t, err)
	spoiled := bytes.Clone(data)
	spoiled[1000] ^= 1
	check(t, os.WriteFile(l.blobPath(b.Digest), spoiled, 0o600))
	if found, err := l.Has(t.Context(), b.Descriptor); err != nil || found {
		t.Errorf("found %v, %v", found, err)
	}
	told := int64(0)
	b.Progress = func(n int64) { told += n }
	for _, want := range []Outcome{Sent, Present} {
		told = 0
		outcome, err := l.Push(t.Context(), b)
		if err != nil || outcome != want || told != b.Size {
			t.Errorf("want %s, got %s, %d bytes told, %v", want, outcome, told, err)
		}
	}
	if got, err := os.ReadFile(l.blobPath(b.Digest)); err != nil || !bytes.Equal(got, data) {
		t.Errorf("other bytes: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Push(ctx, b); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestSignaturesAreNoSecondImage(t *testing.T) {
	l := NewLayout(t.TempDir())
	image := []byte(`{"schemaVersion":2}`)
	check(t, l.PutManifest(t.Context(), "v1", ocispec.MediaTypeImageManifest, image))
	for _, kind := range []string{"", ".sig", ".att"} {
		tag := "sha256-" + digest.FromBytes(image).Encoded() + kind
		check(t, l.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"annotations":{"a":"`+kind+`"}}`)))
	}
	if d, _, err := l.Manifest(t.Context(), ""); err != nil || d.Digest != digest.FromBytes(image) {
		t.Errorf("the only image: %v, %v", d.Digest, err)
	}
	check(t, l.PutManifest(t.Context(), "sha256-fast", ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"annotations":{"b":""}}`)))
	if _, _, err := l.Manifest(t.Context(), ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("a tag that only begins like a digest: %v", err)
	}
}

func TestLayoutSaysWhatIsWrong(t *testing.T) {
	l := NewLayout(t.TempDir())
	if _, _, err := l.Manifest(t.Context(), "v1"); !errors.Is(err, ErrLayout) || !errors.Is(err, ErrNotFound) {
		t.Errorf("empty folder: %v", err)
	}
	b := blobOf(noise(2, 1000))
	if _, err := readBlob(t, l, b.Descriptor, 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing blob: %v", err)
	}
	_, err := l.Push(t.Context(), b)
	check(t, err)
	check(t, os.WriteFile(l.blobPath(b.Digest), noise(3, 1000), 0o600))
	if _, err := readBlob(t, l, b.Descriptor, 0); !errors.Is(err, ErrDigest) {
		t.Errorf("other bytes: %v", err)
	}
	check(t, os.Truncate(l.blobPath(b.Digest), 500))
	if _, err := readBlob(t, l, b.Descriptor, 0); !errors.Is(err, ErrDigest) {
		t.Errorf("cut: %v", err)
	}
	if outcome, err := l.Push(t.Context(), b); err != nil || outcome != Sent {
		t.Errorf("a cut blob is not written again: %s, %v", outcome, err)
	}
	lie := blobOf(noise(4, 1000))
	lie.Open = blobOf(noise(5, 1000)).Open
	if _, err := l.Push(t.Context(), lie); !errors.Is(err, ErrDigest) {
		t.Errorf("bytes that are not the descriptor's: %v", err)
	}
	check(t, os.WriteFile(filepath.Join(l.folder, "index.json"), []byte("{"), 0o600))
	if _, _, err := l.Manifest(t.Context(), "v1"); !errors.Is(err, ErrLayout) {
		t.Errorf("broken index: %v", err)
	}
	wantNoPartials(t, l.folder)
}

func TestStreamIntoALayoutAppearsWholeOrNotAtAll(t *testing.T) {
	l := NewLayout(t.TempDir())
	data := noise(6, 1<<20)
	up, err := l.Create(t.Context())
	check(t, err)
	_, err = up.Write(data)
	check(t, err)
	if found, err := l.Has(t.Context(), blobOf(data).Descriptor); err != nil || found {
		t.Errorf("it is there before its end: %v", err)
	}
	if err := up.Commit(t.Context(), digest.FromBytes(data), int64(len(data)-1)); !errors.Is(err, ErrLayout) {
		t.Errorf("another size: %v", err)
	}
	up.Cancel(t.Context())
	wantNoPartials(t, l.folder)
	up, err = l.Create(t.Context())
	check(t, err)
	_, err = up.Write(data)
	check(t, err)
	check(t, up.Commit(t.Context(), digest.FromBytes(data), int64(len(data))))
	up.Cancel(t.Context())
	if found, err := l.Has(t.Context(), blobOf(data).Descriptor); err != nil || !found {
		t.Errorf("it is not there: %v", err)
	}
}

func TestLayoutThatCannotBeWrittenSaysSoHoweverItIsWritten(t *testing.T) {
	up, err := NewLayout(t.TempDir()).create(digest.SHA256)
	check(t, err)
	check(t, up.file.Close())
	defer up.Cancel(t.Context())
	if _, err := io.Copy(up, strings.NewReader("x")); !errors.Is(err, ErrLayout) {
		t.Errorf("got %v", err)
	}
}

func TestSeveralWritersOfALayoutKeepEachOthersTags(t *testing.T) {
	folder := t.TempDir()
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			tag := fmt.Sprintf("v%d", i)
			if err := NewLayout(folder).PutManifest(context.Background(), tag, ocispec.MediaTypeImageManifest, []byte(`{"tag":"`+tag+`"}`)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i := range 16 {
		if _, _, err := NewLayout(folder).Manifest(t.Context(), fmt.Sprintf("v%d", i)); err != nil {
			t.Error(err)
		}
	}
}

func TestManifestsThatShareATagAreAnIndex(t *testing.T) {
	for _, tag := range []string{"latest", ""} {
		l := NewLayout(t.TempDir())
		for i := range 2 {
			raw := fmt.Appendf(nil, `{"n":%d}`, i)
			check(t, l.PutManifest(t.Context(), digest.FromBytes(raw).String(), ocispec.MediaTypeImageManifest, raw))
			desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
			if tag != "" {
				desc.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
			}
			index, err := l.index()
			if errors.Is(err, ErrNotFound) {
				index, err = &ocispec.Index{}, nil
			}
			check(t, err)
			index.Manifests = append(index.Manifests, desc)
			raw, err = json.Marshal(index)
			check(t, err)
			check(t, os.WriteFile(filepath.Join(l.folder, "index.json"), raw, 0o600))
		}
		desc, raw, err := l.Manifest(t.Context(), tag)
		check(t, err)
		var index ocispec.Index
		check(t, json.Unmarshal(raw, &index))
		if desc.MediaType != ocispec.MediaTypeImageIndex || len(index.Manifests) != 2 {
			t.Errorf("tag %q: %s %s", tag, desc.MediaType, raw)
		}
	}
}

func TestTagIsNotMistakenForTheEndOfALongerOne(t *testing.T) {
	l := NewLayout(t.TempDir())
	put := func(tag, note string) digest.Digest {
		raw := []byte(`{"note":"` + note + `"}`)
		check(t, l.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, raw))
		return digest.FromBytes(raw)
	}
	other := put("registry.example.com/other:v1", "other")
	for _, tc := range []struct {
		tag  string
		want digest.Digest
	}{{"v1", other}, {"registry.example.com/other:v1", other}} {
		if desc, _, err := l.Manifest(t.Context(), tc.tag); err != nil || desc.Digest != tc.want {
			t.Errorf("%s: got %s, %v", tc.tag, desc.Digest, err)
		}
	}
	mine := put("v1", "mine")
	if desc, _, err := l.Manifest(t.Context(), "v1"); err != nil || desc.Digest != mine {
		t.Errorf("got %s (%s), want %s: %v", desc.Digest, desc.MediaType, mine, err)
	}
}

func TestReferencesAreRead(t *testing.T) {
	d := "sha256:" + strings.Repeat("0", 64)
	for in, want := range map[string]string{
		"r.example.com/a/b:v1":         "r.example.com/a/b:v1 tag=v1",
		"localhost/a":                  "localhost/a tag=",
		"127.0.0.1:5000/a@" + d:        "127.0.0.1:5000/a@" + d + " tag=",
		"r.example.com/a:v1@" + d:      "r.example.com/a@" + d + " tag=v1",
		"oci:./x:v1":                   "oci:./x:v1 tag=v1",
		"oci:/a:b/c":                   "oci:/a:b/c tag=",
		"oci:x@" + d:                   "oci:x@" + d + " tag=",
		"a/b:v1":                       "",
		"https://r.example.com/a":      "",
		"r.example.com/UP:v1":          "",
		"r.example.com/a:":             "",
		"r.example.com/a@sha256:short": "",
		"oci:":                         "",
		"":                             "",
	} {
		got, err := ParseReference(in)
		if want == "" {
			if !errors.Is(err, ErrReference) {
				t.Errorf("%q: got %v, %v", in, got, err)
			}
			continue
		}
		check(t, err)
		if diff := cmp.Diff(want, got.String()+" tag="+got.Tag); diff != "" {
			t.Errorf("%q (-want +got):\n%s", in, diff)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, seed := range []string{"r.example.com/a/b:v1@sha256:" + strings.Repeat("0", 64), "oci:x:y", "localhost/a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		r, err := ParseReference(in)
		if err != nil {
			if !errors.Is(err, ErrReference) {
				t.Fatalf("%q: error without a class: %v", in, err)
			}
			return
		}
		if again, err := ParseReference(r.String()); err != nil || again.String() != r.String() {
			t.Fatalf("%q is %q, and that is %q: %v", in, r, again, err)
		}
	})
}
