package mirror

import (
	"net/http"
	"strconv"
	"testing"
)

func TestConditionsOfRangesHold(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	size := len(f.blobs.data)
	etag := `"` + f.blob.String() + `"`
	for _, c := range []struct {
		method         string
		header         []string
		status, length int
	}{
		{"GET", []string{"Range", "bytes=1-9"}, 206, 9},
		{"GET", []string{"Range", "bytes=1-9", "If-Range", etag}, 206, 9},
		{"GET", []string{"Range", "bytes=1-9", "If-Range", `"another"`}, 200, size},
		{"GET", []string{"Range", "bytes=1-9", "If-Range", "W/" + etag}, 200, size}, // weak ones never match
		{"GET", []string{"Range", "bytes=1-9", "If-Range", "Sat, 28 Nov 2026 12:00:00 GMT"}, 200, size},
		{"GET", []string{"Range", "bytes=999999-"}, 416, -1},
		{"GET", []string{"Range", "bytes=999999-", "If-None-Match", etag}, 304, -1},
		{"HEAD", []string{"Range", "bytes=1-9"}, 200, size}, // ranges are of GET alone
		{"HEAD", []string{"Range", "bytes=999999-"}, 200, size},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, f.mirror.URL+f.blobPath()+"?ns="+f.origin.Listener.Addr().String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(c.header); i += 2 {
			req.Header.Set(c.header[i], c.header[i+1])
		}
		resp, err := f.mirror.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != c.status || c.length >= 0 && resp.Header.Get("Content-Length") != strconv.Itoa(c.length) {
			t.Errorf("%s %v: %d, length %s; want %d, %d", c.method, c.header, resp.StatusCode, resp.Header.Get("Content-Length"), c.status, c.length)
		}
		if ranged := resp.Header.Get("Content-Range") != ""; ranged != (c.status == 206 || c.status == 416) {
			t.Errorf("%s %v: Content-Range %q", c.method, c.header, resp.Header.Get("Content-Range"))
		}
	}
}
