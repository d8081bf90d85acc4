package converter_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"testing"
)

// fileOfLayer returns one file of a gzip-compressed tar.
func fileOfLayer(t testing.TB, layer []byte, name string) []byte {
	t.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(layer))
	check(t, err)
	tr := tar.NewReader(zr)
	for {
		hdr, err := tr.Next()
		check(t, err)
		if hdr.Name == name {
			data, err := io.ReadAll(tr)
			check(t, err)
			return data
		}
	}
}
