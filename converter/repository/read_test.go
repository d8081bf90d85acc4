package repository

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// cutAfter ends the answer to each of the first n blob requests after a mebibyte.
func cutAfter(f *fakeRegistry, n int64, ranges bool) func(http.ResponseWriter, *http.Request) bool {
	var left atomic.Int64
	left.Store(n)
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		data := f.blob(digest.Digest(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]))
		if !ranges {
			r.Header.Del("Range")
		}
		if left.Add(-1) < 0 {
			return false
		}
		w.Header().Set("Content-Length", "99999999")
		if strings.HasPrefix(r.Header.Get("Range"), "bytes=") {
			w.WriteHeader(http.StatusPartialContent)
			return true // promises much, sends nothing
		}
		_, _ = w.Write(data[:1<<20])
		return true
	}
}

func TestReadingGoesOnAfterACut(t *testing.T) {
	data := noise(1, 5<<20)
	for name, ranges := range map[string]bool{"ranges": true, "a registry without ranges": false} {
		t.Run(name, func(t *testing.T) {
			f, address := newFake(t)
			b := blobOf(data)
			f.blobs[b.Digest.String()] = data
			f.before = cutAfter(f, 2, ranges)
			got, err := readBlob(t, registryAt(t, address, Config{Retry: hasty(4)}), b.Descriptor, 0)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes: %v", len(got), err)
			}
			got, err = readBlob(t, registryAt(t, address, Config{}), b.Descriptor, 1234567)
			if err != nil || !bytes.Equal(got, data[1234567:]) {
				t.Errorf("from an offset: %d bytes: %v", len(got), err)
			}
		})
	}
}

func TestReadingEndsInAnErrorWhereTheBytesAreOthers(t *testing.T) {
	f, address := newFake(t)
	b := blobOf(noise(2, 1<<20))
	r := registryAt(t, address, Config{Retry: hasty(3)})
	for name, stored := range map[string][]byte{
		"other bytes": noise(3, 1<<20), "longer": append(noise(2, 1<<20), 0),
	} {
		f.mu.Lock()
		f.blobs[b.Digest.String()] = stored
		f.mu.Unlock()
		if _, err := readBlob(t, r, b.Descriptor, 0); !errors.Is(err, ErrDigest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.mu.Lock()
	f.blobs[b.Digest.String()] = noise(2, 1<<20)[:1<<19]
	f.mu.Unlock()
	if _, err := readBlob(t, r, b.Descriptor, 0); err == nil {
		t.Error("shorter: no error")
	}
	if _, err := readBlob(t, r, blobOf([]byte("none")).Descriptor, 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
}

func TestManifestsAreVerified(t *testing.T) {
	f, address := newFake(t)
	raw := []byte(`{"schemaVersion":2}`)
	d := digest.FromBytes(raw)
	f.blobs["v1"], f.blobs[d.String()] = raw, raw
	other := digest.FromString("other")
	f.blobs[other.String()] = raw
	huge := digest.FromString("huge")
	f.blobs[huge.String()] = make([]byte, maxManifest+1)
	r := registryAt(t, address, Config{Retry: hasty(2)})
	for _, ref := range []string{"v1", d.String()} {
		desc, got, err := r.Manifest(t.Context(), ref)
		if err != nil || desc.Digest != d || !bytes.Equal(got, raw) || desc.MediaType != ocispec.MediaTypeImageManifest {
			t.Errorf("%s: %+v %v", ref, desc, err)
		}
	}
	for ref, want := range map[string]error{other.String(): ErrDigest, huge.String(): ErrDigest, "v9": ErrNotFound} {
		if _, _, err := r.Manifest(t.Context(), ref); !errors.Is(err, want) {
			t.Errorf("%s: want %v, got %v", ref, want, err)
		}
	}
	check(t, r.PutManifest(t.Context(), "v2", ocispec.MediaTypeImageIndex, raw))
	if _, got, err := r.Manifest(t.Context(), "v2"); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("what was put: %v", err)
	}
}

func TestReaderMayBeClosedEarly(t *testing.T) {
	f, address := newFake(t)
	b := blobOf(noise(4, 8<<20))
	f.blobs[b.Digest.String()] = noise(4, 8<<20)
	r, err := registryAt(t, address, Config{}).Blob(t.Context(), b.Descriptor, 0)
	check(t, err)
	_, err = io.CopyN(io.Discard, r, 1000)
	check(t, err)
	check(t, r.Close())
	if _, err := io.Copy(io.Discard, r); err == nil {
		t.Error("it is read after Close")
	}
}
