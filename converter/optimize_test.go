package converter_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/converter"
)

func TestOptimizePutsTheNamedFilesFirst(t *testing.T) {
	cfg := config(t, registryWith(t, nil)+"/ml/tiny:v1")
	cfg.ModelPack = true
	made, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	before := inspect(t, converter.InspectConfig{Image: cfg.Target})
	o := converter.OptimizeConfig{Image: cfg.Target, Access: once(), Tag: "fast",
		Files: []string{"/models/tiny/weights.bin", "etc/hello", "/etc/hello", "/models", "/no/such"}}
	dry := o
	dry.DryRun = true
	foreseen, err := converter.Optimize(t.Context(), dry)
	check(t, err)
	got, err := converter.Optimize(t.Context(), o)
	check(t, err)
	if foreseen.Written || foreseen.Digest != got.Digest || got.Before != made.Digest || !got.Written {
		t.Errorf("foreseen %+v, got %+v, made %s", foreseen, got, made.Digest)
	}
	p := got.Platforms[0]
	if want := []string{"/models/tiny/weights.bin", "/etc/hello", "/models/tiny/config.json"}; !slices.Equal(p.Prefetch[:3], want) {
		t.Errorf("order %q, want it to begin with %q", p.Prefetch, want)
	}
	if want := []string{"/models", "/no/such"}; !slices.Equal(p.Left, want) {
		t.Errorf("left out %q, want %q", p.Left, want)
	}
	after := inspect(t, converter.InspectConfig{Image: cfg.Target[:len(cfg.Target)-len("v1")] + "fast"})
	if diff := cmp.Diff(p.Prefetch, after.Platforms[0].Prefetch); diff != "" {
		t.Errorf("what was written (-said +read):\n%s", diff)
	}
	if before.Platforms[0].Plain.Digest != after.Platforms[0].Plain.Digest || before.ModelPack.Digest != after.ModelPack.Digest {
		t.Error("the plain variant or the ModelPack changed")
	}
	layers := len(after.Platforms[0].Nydus.Layers)
	if diff := cmp.Diff(before.Platforms[0].Nydus.Layers[:layers-1], after.Platforms[0].Nydus.Layers[:layers-1]); diff != "" {
		t.Errorf("Nydus layers but the last (-before +after):\n%s", diff)
	}
	_, err = converter.Check(t.Context(), converter.CheckConfig{Image: after.Target, Deep: true, Access: once()})
	check(t, err)
	if again, err := converter.Optimize(t.Context(), converter.OptimizeConfig{Image: after.Target, Files: o.Files, Access: once()}); err != nil || again.Digest != got.Digest {
		t.Errorf("the same order again: %+v, %v; want digest %s", again, err, got.Digest)
	}
}

func TestOptimizeRefusesWhatItCannotDo(t *testing.T) {
	cfg := config(t, registryWith(t, nil)+"/ml/tiny:v1")
	made, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	byDigest := cfg.Target[:len(cfg.Target)-len(":v1")] + "@" + made.Digest.String()
	for _, o := range []converter.OptimizeConfig{{Image: cfg.Target}, {Image: byDigest, Files: []string{"/etc/hello"}}} {
		o.Access = once()
		if _, err := converter.Optimize(t.Context(), o); !errors.Is(err, converter.ErrConfig) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
