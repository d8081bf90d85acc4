package local_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/shoal-project/shoal/cmd/internal/local"
)

func TestOnlyUsersOfTheMachineAreServed(t *testing.T) {
	for name, c := range map[string]struct {
		remote, host string
		header       [2]string
		want         int
	}{
		"loopback":           {"127.0.0.1:5", "127.0.0.1:7703", [2]string{}, 200},
		"loopback by name":   {"[::1]:5", "localhost:7703", [2]string{}, 200},
		"mapped":             {"[::ffff:127.0.0.1]:5", "[::1]:7703", [2]string{}, 200},
		"another machine":    {"10.0.0.7:5", "127.0.0.1:7703", [2]string{}, 403},
		"unknown":            {"@", "127.0.0.1:7703", [2]string{}, 403},
		"rebound name":       {"127.0.0.1:5", "evil.example:7703", [2]string{}, 403},
		"page":               {"127.0.0.1:5", "127.0.0.1:7703", [2]string{"Origin", "http://evil.example"}, 403},
		"page, same machine": {"127.0.0.1:5", "127.0.0.1:7703", [2]string{"Sec-Fetch-Site", "none"}, 403},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/content", nil)
			r.RemoteAddr, r.Host = c.remote, c.host
			if c.header[0] != "" {
				r.Header.Set(c.header[0], c.header[1])
			}
			w := httptest.NewRecorder()
			local.Guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
			if w.Code != c.want {
				t.Errorf("status %d, want %d", w.Code, c.want)
			}
		})
	}
}
