package repository

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// Whoever waits for a registry is told why, before each pause.
func TestPausesAreTold(t *testing.T) {
	f, address := newFake(t)
	f.before = first(2, http.MethodPatch, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	var mu sync.Mutex
	var told []string
	cfg := Config{Retry: hasty(5), Waiting: func(why string, pause time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, why)
		if pause <= 0 || pause > 2*time.Millisecond {
			t.Errorf("a pause of %s", pause)
		}
	}}
	_, err := registryAt(t, address, cfg).Push(t.Context(), blobOf(noise(1, 1000)))
	check(t, err)
	if want := []string{address + " answered 503", address + " answered 503"}; !slices.Equal(told, want) {
		t.Errorf("want %q, got %q", want, told)
	}
}

func TestReasonsAreShort(t *testing.T) {
	for want, err := range map[string]error{
		"does not move":                errIdle,
		"has lost an upload":           fmt.Errorf("%w: of a thing", ErrLost),
		"did not answer (a long word)": errors.New("a long word"),
	} {
		if got := reason(err); got != want {
			t.Errorf("want %q, got %q", want, got)
		}
	}
}
