package local_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/cmd/internal/local"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/source"
)

// endless is a blob that moves for ever and never has what is wanted.
type endless struct{}

func (endless) AwaitMoving(ctx context.Context, _, _ int64, _ time.Duration) (int64, error) {
	<-ctx.Done()
	return 0, context.Cause(ctx)
}
func (endless) File() (*os.File, error) { return nil, os.ErrNotExist }
func (endless) Close() error            { return nil }

// Under a digest that is said of a URL nothing else is shared than what was checked by it, and that is known at the end only.
func TestPartOfAURLIsNotSharedByADigestThatIsSaidOfIt(t *testing.T) {
	opened := 0
	h := local.Content(local.ContentConfig{
		Probe: func(context.Context, source.Web) (source.Info, error) { return source.Info{Size: 1 << 30}, nil },
		Open: func(context.Context, peer.Blob) (local.Blob, error) {
			opened++
			return nil, errors.New("asked for")
		},
	})
	ask := func(part string) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/content",
			strings.NewReader(`{"url": "http://origin.example/model", "digest": "sha256:`+strings.Repeat("5", 64)+`", `+part+`}`)))
		return w.Code
	}
	for _, part := range []string{`"length": 10`, `"off": 1000000000, "length": 10`, `"length": 1073741823`} {
		if code := ask(part); code != http.StatusBadRequest || opened != 0 {
			t.Errorf("%s: answer %d, %d blobs opened, want 400 and none", part, code, opened)
		}
	}
	for at, part := range []string{`"length": -1`, `"off": 1000000000, "length": -1`} { // all of it, and the rest of what broke off
		if code := ask(part); code != http.StatusServiceUnavailable || opened != at+1 {
			t.Errorf("%s: answer %d, %d blobs opened, want 503 and one each", part, code, opened)
		}
	}
}

// A URL is read from its beginning on: who wants its end is better off at the origin, however well the cluster gets on.
func TestPartThatIsFarFromTheBeginningIsNotWaitedForLong(t *testing.T) {
	h := local.Content(local.ContentConfig{
		Probe: func(context.Context, source.Web) (source.Info, error) {
			return source.Info{Size: 1 << 30, Validator: source.Validator{ETag: `"a"`}}, nil
		},
		Open:      func(context.Context, peer.Blob) (local.Blob, error) { return endless{}, nil },
		FirstByte: 50 * time.Millisecond,
	})
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/content",
		strings.NewReader(`{"url": "http://origin.example/model", "off": 1000000000, "length": 10}`))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "no first byte within 50ms") {
		t.Errorf("answer %d %s, want 503 that says why", w.Code, w.Body)
	}
}
