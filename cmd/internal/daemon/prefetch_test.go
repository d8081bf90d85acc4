package daemon

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/snapshotter"
	"github.com/shoal-project/shoal/snapshotter/lazy"
)

// wanted is a driver that takes down what it is to fetch.
type wanted struct {
	lazy.Mounter

	ahead lazy.Prefetch
}

// Mount implements lazy.Mounter.
func (w *wanted) Mount(_ context.Context, image lazy.Image, _ string) error {
	w.ahead = image.Prefetch
	return nil
}

func TestConfigurationOverrulesWhatImagesSayIsFetched(t *testing.T) {
	for _, c := range []struct {
		configured, image string
		want              lazy.Prefetch
		warned            bool
	}{
		{"", "", lazy.Prefetch{}, false}, {"", "none", lazy.Prefetch{None: true}, false}, {"whole", "none", lazy.Prefetch{}, false},
		{"none", "/models", lazy.Prefetch{None: true}, false}, {"/models,/usr/lib", "none", lazy.Prefetch{Files: []string{"/models", "/usr/lib"}}, false},
		{"", "models", lazy.Prefetch{}, true}, {"none", "models", lazy.Prefetch{None: true}, false},
	} {
		t.Run(cmp.Or(c.configured, "nothing")+" over "+cmp.Or(c.image, "nothing"), func(t *testing.T) {
			var log bytes.Buffer
			var driver wanted
			m := &mounter{prefetch: c.configured, driver: &driver, cfg: lazy.Config{Log: slog.New(slog.NewTextHandler(&log, nil))}}
			if err := m.Mount(t.Context(), snapshotter.MountedImage{Name: "registry.example/m:1", Prefetch: c.image}, "target"); err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(c.want, driver.ahead); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if got := strings.Contains(log.String(), "registry.example/m:1"); got != c.warned {
				t.Errorf("warned: %v, want %v: %s", got, c.warned, log.String())
			}
		})
	}
}
