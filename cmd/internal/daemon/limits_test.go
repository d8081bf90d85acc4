package daemon

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/peer/limits"
)

func TestLimitsAreReplacedAsAWholeOrNotAtAll(t *testing.T) {
	l, err := limits.New(limits.Rates{Upload: 5 << 20})
	if err != nil {
		t.Fatal(err)
	}
	h := serveSettings(l.Rates, setLimits(l, slog.New(slog.DiscardHandler)))
	for _, c := range []struct {
		method, body string
		status       int
		upload       limits.Rate
	}{
		{http.MethodGet, "", 200, 5 << 20},
		{http.MethodPut, `{"upload": 2097152, "source": "7MiB"}`, 200, 2 << 20},
		{http.MethodPut, `{"uplaod": 3145728}`, 400, 2 << 20},
		{http.MethodPut, `{"upload": 3145728} {}`, 400, 2 << 20},
		{http.MethodPut, `{"upload": 5}`, 400, 2 << 20},
		{http.MethodPut, `nonsense`, 400, 2 << 20},
		{http.MethodPut, `{"upload": 3145728, "source": "` + strings.Repeat("0", maxLimitsBody) + `"}`, 400, 2 << 20},
		{http.MethodDelete, "", 405, 2 << 20},
		{http.MethodPut, `{}`, 200, 0},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, limitsPath, strings.NewReader(c.body)))
		if got := l.Rates().Upload; w.Code != c.status || got != c.upload {
			t.Errorf("%s %.40s: status %d, upload %s; want %d, %s: %s", c.method, c.body, w.Code, got, c.status, c.upload, w.Body)
		}
	}
}
