package converter_test

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/source"
)

func TestStreamMakesTheLayersOfTheFolder(t *testing.T) {
	model, base := writeModel(t, time.Now(), 0o600), writeLayout(t, smallBase(t))
	layers := func(model string, packed []byte) []converter.Layer {
		result, err := converter.Convert(t.Context(), converter.Config{
			Model: model, Name: "tiny", Base: base, Target: "oci:" + filepath.Join(t.TempDir(), "out") + ":v1",
			Source: source.Config{Stdin: bytes.NewReader(packed)},
		})
		check(t, err)
		var out []converter.Layer
		for _, l := range result.Layers {
			if l.Kind == "model" {
				out = append(out, l)
			}
		}
		return out
	}
	packed, err := exec.CommandContext(t.Context(), need(t, "tar"), "-C", model, "-c", ".").Output()
	check(t, err)
	if diff := cmp.Diff(layers(model, nil), layers("-", packed)); diff != "" {
		t.Errorf("layers (-folder +tar):\n%s", diff)
	}
}
