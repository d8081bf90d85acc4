package daemon

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/store"
)

func TestPinsAreSetListedAndRemovedOverHTTP(t *testing.T) {
	s, err := store.Open(t.TempDir(), store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h, d := servePins(s), digest.FromString("x").String()
	for _, c := range []struct {
		method, path string
		status       int
		body         string
	}{
		{http.MethodGet, "/pins", 200, "{}"},
		{http.MethodPut, "/pins/" + d + "/job/7", 204, ""},
		{http.MethodPut, "/pins/" + d + "/job/7", 204, ""},
		{http.MethodGet, "/pins", 200, `{"` + d + `":["job/7"]}`},
		{http.MethodDelete, "/pins/" + d + "/another", 204, ""},
		{http.MethodDelete, "/pins/" + d + "/job/7", 204, ""},
		{http.MethodGet, "/pins", 200, "{}"},
		{http.MethodPut, "/pins/" + d + "/", 400, "owner of a pin"},
		{http.MethodPut, "/pins/latest/me", 400, "name a blob like sha256:"},
		{http.MethodPost, "/pins", 405, ""},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.path, nil))
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s %s: status %d, want %d; %q, want %q", c.method, c.path, w.Code, c.status, w.Body, c.body)
		}
	}
}
