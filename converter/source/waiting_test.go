package source

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Whoever waits for a source is told why, before each pause.
func TestPausesAreTold(t *testing.T) {
	f, url := newWeb(t, web{"/model.gguf": noise(1, 50_000)})
	f.of["/model.gguf"] = []fault{status(503), nil, cut(1000), status(429)}
	var mu sync.Mutex
	var told []string
	cfg := quick(Config{Waiting: func(why string, _ time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, why)
	}})
	m, err := Open(t.Context(), url+"/model.gguf", cfg)
	check(t, err)
	_, err = read(t.Context(), m, "model.gguf", 0)
	check(t, err)
	host := strings.TrimPrefix(url, "http://")
	want := []string{host + " answered 503", url + "/model.gguf: its connection was cut at byte 1000", host + " answered 429"}
	if !slices.Equal(told, want) {
		t.Errorf("want %q, got %q", want, told)
	}
}
