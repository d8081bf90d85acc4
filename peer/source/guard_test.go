package source_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/peer/source"
)

func TestURLThatAnotherHostNamedLeadsToNoServiceOfThisMachine(t *testing.T) {
	endpoints, err := source.NewEndpoints(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer endpoints.Close()
	for _, host := range []string{"127.0.0.1:9", "127.9.9.9:9", "[::1]:9", "[::ffff:127.0.0.1]:9", "169.254.1.2:9", "[fe80::1%25lo]:9", "0.0.0.0:9", "[::]:9", "224.0.0.1:9", "localhost:9"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+host+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := endpoints.Web(host, true).Do(req)
		if err == nil {
			resp.Body.Close()
		}
		if !errors.Is(err, piece.ErrDenied) {
			t.Errorf("%s: error %v, want that it is denied", host, err)
		}
	}
}
