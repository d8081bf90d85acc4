package local_test

import (
	"context"
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
