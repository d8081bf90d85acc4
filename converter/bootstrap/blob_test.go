package bootstrap

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
)

// reversed writes parts as nydus does: data, then header.
func reversed(t testing.TB, parts ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	for i := 0; i < len(parts); i += 2 {
		out.WriteString(parts[i+1])
		check(t, tar.NewWriter(&out).WriteHeader(&tar.Header{Name: parts[i], Size: int64(len(parts[i+1])), Typeflag: tar.TypeReg}))
	}
	return out.Bytes()
}

// tocEntry describes a part at off.
func tocEntry(flags uint32, name string, off, stored int, plain string) string {
	le := binary.LittleEndian
	e := make([]byte, tocEntrySize)
	le.PutUint32(e, flags)
	copy(e[tocName:], name)
	sum := SHA256.sum([]byte(plain))
	copy(e[tocDigest:], sum[:])
	le.PutUint64(e[tocOffset:], uint64(off))
	le.PutUint64(e[tocCompressedLen:], uint64(stored))
	le.PutUint64(e[tocLen:], uint64(len(plain)))
	return string(e)
}

func TestInlinedBootstrapIsFound(t *testing.T) {
	comp, err := newCompressor(Zstd, 1<<20)
	check(t, err)
	packed, err := comp.pack(bytes.Repeat([]byte("boot"), 2000))
	check(t, err)
	long := string(bytes.Repeat([]byte("boot"), 2000))
	toc := func(entry string) []byte {
		return reversed(t, "image.boot", string(packed), "rafs.blob.toc", tocEntry(1, "blob.meta", 0, 0, "")+entry)
	}
	for _, tc := range []struct {
		name string
		blob []byte
		want string
		err  error
	}{
		{"last", reversed(t, "image.blob", "data", "blob.meta", "table", "image.boot", "the bootstrap"), "the bootstrap", nil},
		{"before another part", reversed(t, "image.blob", "data", "image.boot", "here", "blob.digest", "x"), "here", nil},
		{"compressed", toc(tocEntry(tocIsZstd, "image.boot", 0, len(packed), long)), long, nil},
		{"plain by the table", toc(tocEntry(tocIsPlain, "image.boot", 0, len(packed), string(packed))), string(packed), nil},
		{"other bytes", toc(tocEntry(tocIsPlain, "image.boot", 0, 7, "invalid")), "", ErrInvalid},
		{"more than it expands to", toc(tocEntry(tocIsZstd, "image.boot", 0, len(packed), long+"x")), "", ErrInvalid},
		{"behind the table", toc(tocEntry(tocIsPlain, "image.boot", 5000, 7, "invalid")), "", ErrInvalid},
		{"LZ4", toc(tocEntry(tocIsLZ4, "image.boot", 0, 7, "invalid")), "", ErrUnsupported},
		{"not in the table", toc(""), "", ErrInvalid},
		{"half a table", toc("x"), "", ErrInvalid},
		{"none", reversed(t, "image.blob", "data", "blob.meta", "table"), "", ErrInvalid},
		{"no parts", []byte("plain data"), "", ErrInvalid},
		{"nothing", nil, "", ErrInvalid},
		{"only zeros", make([]byte, 4096), "", ErrInvalid},
		{"a part longer than the blob", reversed(t, "image.boot", "four")[2:], "", ErrInvalid},
		{"endless empty parts", bytes.Repeat(reversed(t, "x", ""), 99), "", ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Inlined(bytes.NewReader(tc.blob), int64(len(tc.blob)))
			if !errors.Is(err, tc.err) || string(got) != tc.want {
				t.Errorf("want %.20q, %v; got %.20q, %v", tc.want, tc.err, got, err)
			}
		})
	}
}

func TestInlinedBootstrapTakesTheBlobsDigest(t *testing.T) {
	img, _ := sample(t, 1)
	raw, err := Encode(img)
	check(t, err)
	copy(raw[deviceTableOffset:], ownTag)
	copy(raw[binary.LittleEndian.Uint64(raw[extBlobTable:]):], ownTag)
	blob := reversed(t, "image.boot", string(raw))
	self := digest.FromBytes(blob)
	got, err := DecodeInlined(bytes.NewReader(blob), int64(len(blob)), self)
	check(t, err)
	if got.Blobs[0].Digest != self || got.Blobs[1].Digest != img.Blobs[1].Digest {
		t.Errorf("blobs %v", got.Blobs)
	}
	if _, err := Decode(bytes.NewReader(raw), int64(len(raw))); !errors.Is(err, ErrInvalid) {
		t.Errorf("without the blob's digest: %v", err)
	}
}
