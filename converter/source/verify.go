package source

import (
	"bytes"
	"crypto/sha1" // git names its blobs so
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/opencontainers/go-digest"
)

// checksum is one promise about the whole content of a file.
type checksum struct {
	kind string
	hash hash.Hash
	want []byte
}

func sha256Sum(d digest.Digest) ([]checksum, error) {
	if d == "" {
		return nil, nil
	}
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("%q is no sha256 digest", d)
	}
	want, err := hex.DecodeString(d.Encoded())
	return []checksum{{"sha256", sha256.New(), want}}, err
}

// gitSum is what git calls a file: the sha1 of a header and the content.
func gitSum(oid string, size int64) ([]checksum, error) {
	want, err := hex.DecodeString(oid)
	if err != nil || len(want) != sha1.Size {
		return nil, fmt.Errorf("%q is no name of a git blob", oid)
	}
	h := sha1.New() // see above
	fmt.Fprintf(h, "blob %d\x00", size)
	return []checksum{{"git sha1", h, want}}, nil
}

// verifier passes content on and, instead of io.EOF, tells that it is not what was promised.
type verifier struct {
	io.ReadCloser
	name string // of the file, for errors
	size int64  // -1: not known
	sums []checksum
	n    int64
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	v.n += int64(n)
	for i := range v.sums {
		v.sums[i].hash.Write(p[:n])
	}
	switch {
	case v.size >= 0 && v.n > v.size:
		return 0, classify(ErrDigest, "%s: it is longer than the %d bytes its source promises", v.name, v.size)
	case errors.Is(err, io.EOF):
		return n, v.verdict(err)
	}
	return n, err
}

func (v *verifier) verdict(eof error) error {
	if v.size >= 0 && v.n != v.size {
		return classify(ErrDigest, "%s: it has %d bytes, its source promises %d", v.name, v.n, v.size)
	}
	for _, s := range v.sums {
		if got := s.hash.Sum(nil); !bytes.Equal(got, s.want) {
			return classify(ErrDigest, "%s: its content has the %s %x, its source promises %x; what is between spoils it, or the source is broken",
				v.name, s.kind, got, s.want)
		}
	}
	return eof
}

// crcSum is what zip archives promise.
func crcSum(crc uint32) checksum {
	return checksum{"crc32", crc32.NewIEEE(), binary.BigEndian.AppendUint32(nil, crc)}
}
