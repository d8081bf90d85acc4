package converter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/repository"
	"github.com/zeebo/blake3"
)

// hostileStore answers every question for a manifest with the same bytes, whatever digest was asked for. It says of everything that
// it refers to everything.
type hostileStore struct {
	store
	mediaType string
	raw       []byte
	asked     int
}

func (h *hostileStore) Manifest(context.Context, string) (ocispec.Descriptor, []byte, error) {
	h.asked++
	// A new digest each time, as of a graph without end.
	return ocispec.Descriptor{
		MediaType: h.mediaType, Digest: digest.FromString(fmt.Sprint(h.asked)), Size: int64(len(h.raw)),
	}, h.raw, nil
}

func (h *hostileStore) Referrers(context.Context, digest.Digest) ([]ocispec.Descriptor, error) {
	return []ocispec.Descriptor{{MediaType: h.mediaType, Digest: digest.FromString(fmt.Sprint(h.asked)), Size: int64(len(h.raw))}}, nil
}

func (h *hostileStore) Blob(_ context.Context, d ocispec.Descriptor, _ int64) (io.ReadCloser, error) {
	return nil, fmt.Errorf("blob %s: %w", d.Digest, repository.ErrNotFound)
}

// FuzzGraph reads any bytes as a manifest, and what they name. It ends, and its errors have a class.
func FuzzGraph(f *testing.F) {
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x"), Size: 7}
	for _, m := range []any{
		ocispec.Manifest{Config: d, Layers: []ocispec.Descriptor{d, d}, Subject: &d},
		ocispec.Index{Manifests: []ocispec.Descriptor{d}},
		map[string]any{"manifests": "x"}, nil,
	} {
		raw, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(ocispec.MediaTypeImageIndex, raw)
		f.Add("", raw)
	}
	f.Fuzz(func(t *testing.T, mediaType string, raw []byte) {
		h := &hostileStore{mediaType: mediaType, raw: raw}
		_, err := readGraph(t.Context(), h, "example.com/m:v1", "v1", len(raw)%2 == 0)
		wantClass(t, err)
		img, err := openImage(t.Context(), h, "example.com/m:v1", "v1")
		wantClass(t, err)
		if err == nil {
			_, err = openVariants(t.Context(), img, silent{})
			wantClass(t, err)
		}
		if h.asked > 100_000 {
			t.Errorf("%d requests", h.asked)
		}
	})
}

func wantClass(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, ErrSource) && !errors.Is(err, ErrVerify) && !errors.Is(err, ErrRegistry) {
		t.Errorf("an error without a class: %v", err)
	}
}

// An index of indexes, each with other digests, is left after finitely many requests.
func TestGraphWithoutEndIsLeft(t *testing.T) {
	h := &hostileStore{mediaType: ocispec.MediaTypeImageIndex}
	list := make([]ocispec.Descriptor, 100)
	size := 0
	for range 4 { // until the size it says is its own
		for i := range list {
			list[i] = ocispec.Descriptor{MediaType: h.mediaType, Digest: digest.FromString(fmt.Sprint("child", i)), Size: int64(size)}
		}
		h.raw, _ = json.Marshal(ocispec.Index{Manifests: list})
		size = len(h.raw)
	}
	_, err := readGraph(t.Context(), h, "example.com/m:v1", "v1", true)
	if !errors.Is(err, ErrSource) || h.asked > 5*maxManifests {
		t.Errorf("%d requests: %v", h.asked, err)
	}
}

// RAFS chunks are found whatever the sizes of the writes are, and what is wrong with them is told.
func TestRAFSChunksAreVerifiedAsTheyPass(t *testing.T) {
	x, err := bootstrap.NewExpander()
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	data := make([]byte, 10_000)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	blob := &bootstrap.Blob{Digest: digest.FromBytes(data), Size: int64(len(data))}
	chunk := func(offset int64, length uint32) rafsChunk {
		return rafsChunk{blob, &bootstrap.Chunk{Digest: blake3.Sum256(data[offset : offset+int64(length)]), Offset: offset, Length: length, Size: length}}
	}
	good := []rafsChunk{chunk(0, 1), chunk(1, 999), chunk(4096, 4096), chunk(9000, 1000)}
	wrong := chunk(4096, 4096)
	wrong.chunk.Digest[3] ^= 1
	behind := chunk(9000, 1000)
	behind.chunk.Offset = 9001
	for _, tc := range []struct {
		name   string
		chunks []rafsChunk
		ok     bool
	}{{"good", good, true}, {"none", nil, true}, {"wrong", []rafsChunk{good[0], wrong}, false}, {"behind the end", []rafsChunk{good[0], behind}, false}} {
		for _, step := range []int{1, 7, 1000, 4096, len(data)} {
			v := &rafsVerifier{x: x, chunks: tc.chunks}
			for rest := data; len(rest) > 0; {
				n := min(step, len(rest))
				if got, err := v.Write(rest[:n]); got != n || err != nil {
					t.Fatal(got, err)
				}
				rest = rest[n:]
			}
			if err := v.end(); (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrVerify) {
				t.Errorf("%s, writes of %d bytes: %v", tc.name, step, err)
			}
		}
	}
}

func TestChunksThatOverlapAreRefused(t *testing.T) {
	blob := &bootstrap.Blob{Digest: digest.FromString("x")}
	one, same, over := &bootstrap.Chunk{Length: 100, Size: 100}, &bootstrap.Chunk{Length: 100, Size: 100, FileOffset: 7}, &bootstrap.Chunk{Offset: 99, Length: 100, Size: 100}
	b := &checkedBlob{rafs: []rafsChunk{{blob, same}, {blob, one}}}
	if err := b.order(); err != nil || len(b.rafs) != 1 {
		t.Errorf("one chunk of two platforms: %v, %d", err, len(b.rafs))
	}
	b = &checkedBlob{rafs: []rafsChunk{{blob, over}, {blob, one}}}
	if err := b.order(); !errors.Is(err, ErrVerify) {
		t.Errorf("want ErrVerify, got %v", err)
	}
}

func TestModesAsLsShowsThem(t *testing.T) {
	for mode, want := range map[uint32]string{
		bootstrap.TypeRegular | 0o644: "-rw-r--r--", bootstrap.TypeDir | 0o1777: "drwxrwxrwt", bootstrap.TypeRegular | 0o4755: "-rwsr-xr-x",
		bootstrap.TypeRegular | 0o6644: "-rwSr-Sr--", bootstrap.TypeDir | 0o1000: "d--------T", bootstrap.TypeSocket | 0o700: "srwx------", 0: "?---------",
	} {
		if got := modeText(mode); got != want {
			t.Errorf("%o: want %s, got %s", mode, want, got)
		}
	}
}

func TestModelsFolderIsFound(t *testing.T) {
	for _, tc := range []struct {
		files []string
		want  string
	}{
		{nil, ""},
		{[]string{"models/a/x", "models/a/y/z"}, "models/a"},
		{[]string{"models/a/sub/x", "models/a/sub/y"}, "models/a"},
		{[]string{"srv/m/x/1", "srv/m/x/2"}, "srv/m/x"},
		{[]string{"a", "b/c"}, ""},
		{[]string{"models/ab/x", "models/a/x"}, "models"},
	} {
		if got := modelRoot(tc.files); got != tc.want {
			t.Errorf("%v: want %q, got %q", tc.files, tc.want, got)
		}
	}
}
