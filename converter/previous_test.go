package converter_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/repository"
)

// frameworkVersion is a base of 4 MiB in 32 files; each version differs in two of them, and in one more file of its own.
func frameworkVersion(t testing.TB, version int) v1.Image {
	t.Helper()
	entries := []entry{dir("opt")}
	for i := range 32 {
		seed := uint64(i)
		if i < 2 {
			seed = uint64(100*version + i)
		}
		entries = append(entries, file(fmt.Sprintf("opt/lib-%02d", i), string(noise(seed, 128<<10))))
	}
	return baseImage(t, linuxAMD64(), tarOf(t, append(entries, file("opt/version", fmt.Sprint(version)))...))
}

func TestSecondVersionStoresWhatChanged(t *testing.T) {
	model, registry := flatModel(t), dockerRegistry(t)
	first := converts(t, model)
	first.Base, first.Target = writeLayout(t, frameworkVersion(t, 1)), registry+"/ml/one:v1"
	one, err := converter.Convert(t.Context(), first)
	check(t, err)
	plain := converts(t, model)
	plain.Base = writeLayout(t, frameworkVersion(t, 2))
	without, err := converter.Convert(t.Context(), plain)
	check(t, err)
	for name, tc := range map[string]struct {
		target string
		want   repository.Outcome
	}{
		"other repository": {registry + "/ml/two:v1", repository.Mounted}, "same repository": {registry + "/ml/one:v2", repository.Present},
		"other registry": {distributionRegistry(t) + "/ml/two:v1", repository.Sent}, "layout": {"oci:" + t.TempDir() + "/out:v1", repository.Sent},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := plain
			cfg.Previous, cfg.Target = first.Target, tc.target
			two, err := converter.Convert(t.Context(), cfg)
			check(t, err)
			_, err = converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target})
			check(t, err)
			var fresh int64
			old := kinds(one, "framework")[0]
			for _, l := range two.Layers {
				switch {
				case l.Kind == "framework" && l.Digest != old.Digest:
					fresh += l.Size
				case l.Digest == old.Digest && l.Outcome != tc.want:
					t.Errorf("the previous blob was %s", l.Outcome)
				}
			}
			whole := kinds(without, "framework")[0].Size
			t.Logf("%d bytes of new framework blobs, %d without --previous", fresh, whole)
			if fresh > whole/12 || len(kinds(two, "framework")) != 2 {
				t.Errorf("%d of %d bytes are new: %+v", fresh, whole, kinds(two, "framework"))
			}
			if name != "layout" {
				return
			}
			wantModel(t, cfg.Target, sums(t, model))
			f, _ := openLayout(t, cfg.Target).readFS(t)
			for i := range 32 {
				got, err := fs.ReadFile(f, fmt.Sprintf("opt/lib-%02d", i))
				check(t, err)
				seed := uint64(i)
				if i < 2 {
					seed += 200
				}
				if !bytes.Equal(got, noise(seed, 128<<10)) {
					t.Errorf("opt/lib-%02d has other bytes", i)
				}
			}
		})
	}
}

func TestPreviousImagesOfNoUse(t *testing.T) {
	host := registryWith(t, nil)
	tag, err := name.NewTag(host + "/base:v1")
	check(t, err)
	check(t, remote.Write(tag, smallBase(t)))
	index, err := name.NewTag(host + "/index:v1")
	check(t, err)
	check(t, remote.WriteIndex(index, withAttestations(t, smallBase(t), linuxAMD64(), types.OCIImageIndex)))
	arm := converts(t, flatModel(t))
	arm.Base = writeLayout(t, baseImage(t, v1.Platform{OS: "linux", Architecture: "arm64"}, tarOf(t, file("arm", "arm"))))
	_, err = converter.Convert(t.Context(), arm)
	check(t, err)
	for previous, tc := range map[string]struct {
		class error
		want  string
	}{
		arm.Target:         {converter.ErrSource, "is for linux/arm64 and has nothing for linux/amd64"},
		tag.String():       {converter.ErrSource, "shoal convert has not made it"},
		index.String():     {converter.ErrSource, "shoal convert has not made it"},
		host + "/none:v1":  {converter.ErrSource, "does not exist"},
		"oci:/no/where:v1": {converter.ErrSource, "does not exist"},
		"UP/x":             {converter.ErrConfig, "--previous"},
	} {
		cfg := converts(t, flatModel(t))
		cfg.Previous = previous
		_, err := converter.Convert(t.Context(), cfg)
		wantError(t, err, tc.class, tc.want)
		wantNothingLeft(t, cfg)
	}
	// Of several platforms those that it has are helped.
	both := converts(t, flatModel(t))
	both.Previous = arm.Target
	both.Base = writeLayout(t, smallBase(t), baseImage(t, v1.Platform{OS: "linux", Architecture: "arm64"}, tarOf(t, file("arm", "arm"))))
	_, err = converter.Convert(t.Context(), both)
	check(t, err)
	_, err = converter.Check(t.Context(), converter.CheckConfig{Image: both.Target})
	check(t, err)
}
