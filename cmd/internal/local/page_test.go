package local_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/peer"
)

// hostile is a node some of whose texts come from others, who would like to have a script in the page.
func hostile() local.Status {
	return local.Status{Name: "node-1", Version: "v1", Addr: "10.0.0.1:7702", Seed: true,
		Schedulers: []peer.LinkStatus{{URL: "http://10.0.0.9:7700", Live: true}, {URL: "http://10.0.0.8:7700"}},
		Store:      local.StoreStatus{Blobs: 3, Held: 3 << 30, Reserved: 4 << 30, MaxPercent: 80},
		Tasks: []peer.TaskStatus{{ID: digest.FromString("x"), Size: 200, Held: 50, Readers: 2, Origin: 10, Failed: "<script>alert(1)</script>",
			Parents: []peer.ParentStatus{{Addr: "10.0.0.2:7702", Bytes: 40}}}},
		Uploads: []local.Upload{{ID: digest.FromString("x"), Host: "10.0.0.3", Bytes: 2048}}}
}

func page(t *testing.T, s local.Status, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
	r.RemoteAddr, r.Host = "127.0.0.1:5", "127.0.0.1:7703"
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	local.ServePage(func(context.Context) local.Status { return s }).ServeHTTP(w, r)
	return w
}

func TestPageShowsTheNode(t *testing.T) {
	body := page(t, hostile()).Body.String()
	for _, want := range []string{"node-1", "Shoal seed", "10.0.0.9:7700", "in session", "no session", "3 blobs, 3.0 GiB of 4.0 GiB held", "80 %",
		`value="25"`, "10.0.0.2:7702 40 B", "origin 10 B", "10.0.0.3", "2.0 KiB", "&lt;script&gt;"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in the page", want)
		}
	}
	if strings.Contains(body, "<script") {
		t.Error("a script of somebody else's is in the page")
	}
	if body := page(t, local.Status{Name: "new"}).Body.String(); !strings.Contains(body, "Nothing yet") || !strings.Contains(body, "what the disk has") {
		t.Error("the page of a new node does not say that there is nothing")
	}
}

func TestPageIsForWhoTypesItsAddress(t *testing.T) {
	for site, want := range map[string]int{"none": 200, "same-origin": 200, "cross-site": 403, "same-site": 403} {
		if got := page(t, hostile(), "Sec-Fetch-Site", site).Code; got != want {
			t.Errorf("asked for from %s: %d, want %d", site, got, want)
		}
	}
	if got := page(t, hostile(), "Origin", "http://evil.example").Code; got != 403 {
		t.Errorf("asked for by a page: %d", got)
	}
}
